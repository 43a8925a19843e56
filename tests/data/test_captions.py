"""COCO's captions: as published, as drawn, and broken in every way."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zoo.data.captions import read_captions


def write_coco(
    root: Path,
    name: str = "captions_train2017",
    folder: str = "train2017",
    images: int = 3,
    rows: list[dict[str, Any]] | None = None,
) -> Path:
    """A tree as COCO publishes it: image k has k + 1 captions."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    listed = [{"id": 100 + k, "file_name": f"{k:012d}.jpg", "width": 8, "height": 8} for k in range(images)]
    for image in listed:
        Image.new("RGB", (8, 8)).save(root / folder / str(image["file_name"]))
    if rows is None:
        rows = [{"image_id": 100 + k, "caption": f"picture {k}, {n}"} for k in range(images) for n in range(k + 1)]
    rows = [{"id": number} | row for number, row in enumerate(rows)]
    table = {"info": {}, "licenses": [], "images": listed, "annotations": rows}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(table))
    return root


@pytest.mark.parametrize("split", ["train", "train2017"])
def test_coco_as_it_is_published(tmp_path: Path, split: str) -> None:
    captions = read_captions(write_coco(tmp_path), split)
    assert captions.split == "train2017" and captions.root == tmp_path and len(captions) == 3
    assert captions.paths == tuple(f"train2017/{k:012d}.jpg" for k in range(3))
    assert captions.texts[1] == ("picture 1, 0", "picture 1, 1")
    assert [len(texts) for texts in captions.texts] == [1, 2, 3]
    assert list(captions.pairs())[1:3] == [(captions.paths[1], text) for text in captions.texts[1]]
    assert all((tmp_path / path).is_file() for path in captions.paths)


@pytest.mark.parametrize("folder", ["val", "images/val", "images", "."])
def test_images_may_lie_in_several_places(tmp_path: Path, folder: str) -> None:
    captions = read_captions(write_coco(tmp_path, "captions_val", folder), "val")
    prefix = "" if folder == "." else f"{folder}/"
    assert captions.paths == tuple(f"{prefix}{k:012d}.jpg" for k in range(3))


def test_a_file_name_with_its_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    write_coco(tmp_path, "captions_val", "val")
    file = tmp_path / "annotations" / "captions_val.json"
    file.write_text(file.read_text().replace('"file_name": "', '"file_name": "val/'))
    assert read_captions(tmp_path, "val").paths[0] == "val/000000000000.jpg"


def test_other_files_of_the_same_form(tmp_path: Path) -> None:
    write_coco(tmp_path, "captions_val", "val")
    write_coco(
        tmp_path, "sentences_val", "val", rows=[{"image_id": 101, "caption": "the cat is sitting", "about": [4]}]
    )
    captions = read_captions(tmp_path, "val", "sentences")
    assert captions.paths == ("val/000000000001.jpg",) and captions.texts == (("the cat is sitting",),)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"image_id": 100, "caption": " a  cat\n on a mat "},
        {"image_id": 101, "caption": "gone"},
        {"image_id": 102, "caption": "  "},
        {"image_id": 999, "caption": "of nothing"},
        {"image_id": 103, "caption": "another"},
        {"image_id": 100, "caption": "a cat"},
    ]
    write_coco(tmp_path, images=5, rows=rows)
    (tmp_path / "train2017" / f"{1:012d}.jpg").unlink()
    file = tmp_path / "annotations" / "captions_train2017.json"
    table = json.loads(file.read_text())
    table["images"].append(table["images"][0])
    file.write_text(json.dumps(table))
    with caplog.at_level(logging.WARNING):
        captions = read_captions(tmp_path, "train")
    assert captions.texts == (("a cat on a mat", "a cat"), ("another",))
    assert captions.paths == (f"train2017/{0:012d}.jpg", f"train2017/{3:012d}.jpg")
    assert "skipped 1 images that are not on disk, such as 000000000001.jpg" in caplog.text
    assert "skipped 2 images without a caption, such as 000000000002.jpg, 000000000004.jpg" in caplog.text
    assert "skipped 1 captions of images that are not listed, such as 999" in caplog.text
    assert "skipped 1 images that are listed again, such as 000000000000.jpg" in caplog.text


def test_several_years_must_be_named(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco(tmp_path, "captions_train2014", "train2014")
    with pytest.raises(ValueError, match="2 files that fit the split 'train': train2014, train2017. Name one"):
        read_captions(tmp_path, "train")
    assert read_captions(tmp_path, "train2014").paths[0] == f"train2014/{0:012d}.jpg"


def test_a_longer_name_is_another_split(tmp_path: Path) -> None:
    write_coco(tmp_path, "captions_trainval", "trainval")
    with pytest.raises(FileNotFoundError, match="captions_train.json. Files there: captions_trainval.json"):
        read_captions(tmp_path, "train")


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no folder annotations"):
        read_captions(tmp_path / "nowhere", "train")
    write_coco(tmp_path)
    for path in (tmp_path / "train2017").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="leaves no image with a caption"):
        read_captions(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list 'images'"),
        ('{"images": []}', "has no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', "an entry of 'images' has no file_name"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}', "of 'annotations' has no caption"),
        ('{"images": [3], "annotations": []}', "an entry of 'images' has no id, file_name"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_captions(tmp_path, "val")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_captions(tmp_path, "val")
