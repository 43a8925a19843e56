"""Conversations whose images cannot be used are left out, and a run ends where they are too many."""

import logging
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.vlm.rig import corrupt, data_of, galleries, rows, scores_of, stage, trainer
from zoo.conversations.manifest import Conversations, hashes
from zoo.vlm.match import MatchData
from zoo.vlm.tasks.match import GallerySource


def used(conversations: Conversations) -> dict[str, list[int]]:
    """Path of an image -> numbers of the conversations that show it."""
    found: dict[str, list[int]] = {}
    for number, conversation in enumerate(conversations):
        for ref in (*conversation.gallery, conversation.query):
            found.setdefault(ref.path, []).append(number)
    return found


@pytest.mark.parametrize(("cached", "workers"), [(False, 0), (True, 1)])
def test_a_corrupt_image_takes_its_conversations_along_and_no_others(cached, workers, tmp_path, caplog):
    """Also one whose size can still be read, so that only a tower notices."""
    root = tmp_path / "photos"
    made = galleries(root, "pet", rows("test", 30), identities=40)
    cache = str(tmp_path / "cache") if cached else False
    data = data_of(made, max_unreadable=0.5, workers=workers)
    data.setup("test")
    path, lost = next((path, numbers) for path, numbers in used(made).items() if len(numbers) == 3)
    whole = scores_of(tmp_path, data, cache=False)
    assert whole["test/conversations"] == 30
    corrupt(root / path)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data, cache=cache)
    assert scores["test/conversations"] == 30 - len(lost)
    assert "3 conversations were skipped" in caplog.text and caplog.text.count(f"{path}: ") == 3
    assert all(f"(conversation {number} of pet)" in caplog.text for number in lost)
    made.select(np.setdiff1d(np.arange(30), lost)).save(root / "kept.parquet")
    (root / path).unlink()  # of no conversation any more
    alone = MatchData([GallerySource(str(root / "kept.parquet"))], eval_batch_size=4, workers=0)
    again = scores_of(tmp_path, alone)
    assert again == pytest.approx(scores)


def test_an_evaluation_batch_of_nothing_else_is_left_out(tmp_path):
    made = galleries(tmp_path, "pet", rows("test", 9), identities=40)
    data = data_of(made, max_unreadable=1.0, eval_batch_size=4)
    data.setup("test")
    corrupt(tmp_path / made[8].query.path)  # alone in its batch
    assert scores_of(tmp_path, data)["test/conversations"] == 8


@pytest.mark.parametrize("cached", [False, True])
def test_images_outside_of_the_token_budget_take_their_conversations_along(cached, tmp_path, caplog):
    made = galleries(tmp_path, "pet", rows("test", 20), identities=40)
    found = used(made)
    line, long = [path for path, numbers in found.items() if len(numbers) == 2][:2]
    Image.new("RGB", (900, 3), "red").save(tmp_path / line)
    Image.new("RGB", (600, 28), "red").save(tmp_path / long)
    lost = {*found[line], *found[long]}
    options = {"cache": str(tmp_path / "cache") if cached else False, "min_tokens": 4, "max_tokens": 6}
    made = _hashed_again(made)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data_of(made, max_unreadable=0.5), **options)
    assert scores["test/conversations"] == 20 - len(lost) and f"{len(lost)} conversations were skipped" in caplog.text
    assert re.search(rf"{line} .*hardly more than a line", caplog.text)
    assert re.search(rf"{long} .*outside the budget of 4 to 6", caplog.text)
    assert all(f"(conversation {number} of pet)" in caplog.text for number in lost)


def _hashed_again(made: Conversations) -> Conversations:
    found, table = hashes(made.root, list(made.images())), made._table.to_pylist()
    for row in table:
        row["query_sha256"] = found[row["query_path"]]
        row["gallery_sha256"] = [found[path] for path in row["gallery_paths"]]
    return Conversations(made.root, pa.Table.from_pylist(table, made._table.schema), made.meta)


@pytest.mark.parametrize(("cached", "workers"), [(False, 1), (True, 0)])
def test_a_box_outside_of_its_image_takes_its_conversation_along(cached, workers, tmp_path, caplog):
    made = galleries(tmp_path / "photos", "pet", rows("test", 12), identities=12)
    table = made._table.to_pylist()
    table[5]["query_box"] = [90.0, 0.0, 20.0, 20.0]
    table[7]["query_box"] = [4.0, 4.0, 20.0, 20.0]
    made = Conversations(made.root, pa.Table.from_pylist(table, made._table.schema), made.meta)
    cache = str(tmp_path / "cache") if cached else False
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data_of(made, max_unreadable=0.1, workers=workers), cache=cache)
    assert scores["test/conversations"] == 11
    reason = f"{made[5].query.path} (conversation 5 of pet): the box (90.0, 0.0, 20.0, 20.0) holds nothing"
    assert caplog.text.count(reason) == 1


def test_training_goes_on_without_a_corrupt_image(tmp_path, caplog):
    made = galleries(tmp_path, "pet", rows("train", 40), identities=40)
    losses = {}
    for cache in (False, str(tmp_path / "cache")):
        data = data_of(made, max_unreadable=0.5, batch_size=8)
        data.setup("fit")
        corrupt(tmp_path / made[0].query.path)
        losses[cache] = []
        model = stage(cache=cache)
        model.on_train_batch_end = lambda out, *_, c=cache: losses[c].append(float(out["loss"]))  # type: ignore[method-assign]
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="zoo"):
            trainer(tmp_path).fit(model, data)
        galleries(tmp_path, "pet", rows("train", 40), identities=40)
        assert len(losses[cache]) == 5 and made[0].query.path in caplog.text
    assert losses[False] == pytest.approx(losses[str(tmp_path / "cache")], abs=1e-5)


def test_too_many_unusable_conversations_end_the_run_in_words(tmp_path):
    made = galleries(tmp_path, "pet", rows("test", 40), identities=20)
    data = data_of(made, max_unreadable=0.1)
    data.setup("test")
    for identity in range(6):
        corrupt(tmp_path / f"{identity:02d}_0.jpg")
    with pytest.raises(RuntimeError, match=r"\d+ of 40 conversations have images that cannot be used .at most 10.0%"):
        scores_of(tmp_path, data)


def test_a_training_batch_of_nothing_else_ends_the_run_in_words(tmp_path):
    made = galleries(tmp_path, "pet", rows("train", 3), identities=40)
    data = data_of(made, max_unreadable=1.0, batch_size=1)
    data.setup("fit")
    corrupt(tmp_path / made[1].query.path)
    with pytest.raises(
        RuntimeError, match="None of the conversations of a training batch can be used: .*raise data.batch"
    ):
        trainer(tmp_path).fit(stage(), data)
