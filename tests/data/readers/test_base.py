"""A layout that the package does not know: one class, registered from outside, is used like any other reader."""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_identity
from zoo.data.holdout import HoldOut
from zoo.data.join import Source, read_sources
from zoo.data.module import InstanceData
from zoo.data.readers import Reader, choose_reader, find_reader, list_readers, read_with, register
from zoo.data.readers.base import READERS, Count, Pair, Published, Row
from zoo.transforms import Transform


@dataclass(frozen=True)
class Passports(Reader):
    """Reads photographs listed beside the name, the booth and the mood of their owners.

    Args:
        moods: keep the mood as an attribute.
    """

    name = "passports"
    layout = "photos/*.png and owners.tsv"
    published = Published("Passports", {"train+val": Count(30, 10)}, origins=("passports",))

    moods: bool = False

    @classmethod
    def is_dataset(cls, folder):
        return (folder / "owners.tsv").is_file()

    def rows(self, files):
        prefix = files.prefix(files.place / "photos")
        with open(files.place / "owners.tsv") as table:
            for file, owner, booth, mood in csv.reader(table, delimiter="\t"):
                if prefix + file not in files:
                    files.skip("photographs that are missing", file)
                else:
                    box = (0.0, 0.0, 16.0, 16.0) if booth == "north" else (-1.0,) * 4
                    attributes = {"mood": mood} if self.moods else {}
                    yield Row(prefix + file, owner, "train", booth, box=box, attributes=attributes)

    def verification(self, files, rows):
        yield Pair(rows[0].path, rows[1].path, same=rows[0].identity == rows[1].identity, fold=1)


def plant(root: Path, owners: int = 10) -> Path:
    """Three images of each owner in two booths, and one line of an image that is missing."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    lines = [("gone.png", "owner_0", "north", "calm")]
    for owner in range(owners):
        for view in range(3):
            name = f"{owner}_{view}.png"
            Image.fromarray(draw_identity(rng)).save(root / "photos" / name)
            lines.append((name, f"owner_{owner}", ("", "north", "south")[view], "calm"))
    (root / "owners.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return root


@pytest.fixture
def registered():
    """The reader is known for one test."""
    register(Passports)
    yield
    del READERS[Passports.name]


class Model:
    transform = Transform((16, 16), (0.5,) * 3, (0.5,) * 3)
    classifies = False


@pytest.mark.usefixtures("registered")
def test_a_reader_from_outside_is_used_end_to_end(tmp_path, caplog):
    plant(tmp_path / "data")
    data = InstanceData(
        root=str(tmp_path), reader="passports", options={"moods": True}, val_share=0.2, identities_per_batch=4,
        images_per_identity=3, workers=0,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert [len(data.index.rows(split)) for split in ("train", "val")] == [24, 6]
    assert "skipped 1 photographs that are missing, such as gone.png" in caplog.text
    assert "publishes" not in caplog.text, "the size is as published"
    assert set(data.index.attributes["mood"]) == {"calm"}
    data.connect(Model())
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (12, 3, 16, 16) and len(set(batch.identities.tolist())) == 4


@pytest.mark.usefixtures("registered")
def test_its_layout_is_chosen_named_in_errors_and_joined(tmp_path, trees):
    root = plant(tmp_path)
    assert choose_reader(root) == "passports" and "passports" in list_readers()
    with pytest.raises(ValueError, match="The reader sop expects .* Readers that fit: passports."):
        read_with("sop", root)
    with pytest.raises(ValueError, match=r"Unknown option 'mood' of the reader passports. Did you mean 'moods'\?"):
        read_with("passports", root, options={"mood": True})
    joined = read_sources([Source(str(root)), Source(str(trees["sop"]), splits=["train"])])
    assert {name.split("/")[0] for name in joined.names} == {"passports", "sop"}
    assert joined.origins == ("passports", "sop")


def test_named_cameras_are_numbered_boxes_and_pairs_are_kept(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        index = Passports().read(plant(tmp_path, owners=3), HoldOut(val_share=0))
    by_name = {Path(path).stem: row for row, path in enumerate(index.paths.tolist())}
    assert [index.cameras[by_name[f"1_{view}"]] for view in range(3)] == [-1, 0, 1]
    assert index.boxes[by_name["1_1"]].tolist() == [0, 0, 16, 16] and index.boxes[by_name["1_2"]].tolist() == [-1] * 4
    assert index.image(by_name["1_1"]).size == (16, 16) and index.image(by_name["1_2"]).size == (32, 32)
    assert (index.pairs.first.tolist(), index.pairs.second.tolist(), index.pairs.fold.tolist()) == ([0], [1], [1])
    assert "Passports publishes: train+val 30 images (found 9), train+val 10 identities (found 3)" in caplog.text
    assert index.attributes == {} and index.origins == ("passports",)


@pytest.mark.usefixtures("registered")
def test_two_readers_of_one_name_are_refused():
    assert register(Passports) is Passports, "once more does no harm"

    @dataclass(frozen=True)
    class Other(Passports):
        name = "sop"

    with pytest.raises(ValueError, match="a reader 'sop' already.*StanfordOnlineProducts.*Choose another name"):
        register(Other)
    assert find_reader("sop") is not Other
