"""Contact sheets: which conversations are on them, and how they are framed."""

import shutil

import numpy as np

from zoo.conversations.manifest import Conversations
from zoo.conversations.sheets import contact_sheet, contact_sheets
from zoo.drawing import GREEN, GREY, RED

FRAME = 120**2 - 112**2  # pixels of a frame


def frames(sheet, colour) -> float:
    return (np.asarray(sheet.convert("RGB")).reshape(-1, 3) == colour).all(1).sum() / FRAME


def test_a_sheet_for_each_level_of_the_last_split(made):
    sheets = dict(contact_sheets(made, rows=3))
    assert list(sheets) == ["test_quantile=0.2", "test_tau=0.3"]
    assert int(frames(sheets["test_quantile=0.2"], GREEN)) == 3, "one positive in each row"
    of_train = made.select(made.column("split") == "train")
    assert [name.partition("_")[0] for name, _ in contact_sheets(of_train, rows=1)] == ["train", "train"]
    assert not [*contact_sheets(made, rows=0)] and not [*contact_sheets(made.select(np.zeros(0, dtype=int)), rows=3)]


def test_every_image_has_its_frame(made):
    chosen = made.select(np.array([0, len(made) - 1]))
    sheet, conversations = contact_sheet(chosen, "title"), [*chosen]
    distractors = sum(len(c.gallery) - bool(c.answer) for c in conversations)
    assert int(frames(sheet, RED)) == distractors
    assert int(frames(sheet, GREEN)) == sum(bool(c.answer) for c in conversations)


def test_an_image_that_is_gone_is_grey(made, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    one = Conversations(tmp_path / "photos", made._table, made.meta).select(np.array([0]))
    before = frames(contact_sheet(one, ""), GREY)
    (one.root / one[0].query.path).unlink()
    assert frames(contact_sheet(one, ""), GREY) - before > 0.9 * 112**2 / FRAME
