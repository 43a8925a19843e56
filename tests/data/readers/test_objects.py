import logging

import numpy as np
import pytest

from tests.data.readers.trees import TREES, touch, write
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with

# ---------------------------------------------------------------------- Stanford Online Products


def test_sop_classes_categories_and_splits(trees):
    index = read_with("sop", trees["sop"], HoldOut(val_share=0))
    assert index.names == ("00001", "00002", "00011", "11319", "11320")
    kinds = {(index.names[i], str(kind)) for i, kind in zip(index.identities, index.categories, strict=True)}
    assert kinds == {
        ("00001", "bicycle"), ("00002", "coffee_maker"), ("00011", "bicycle"),
        ("11319", "bicycle"), ("11320", "coffee_maker"),
    }  # fmt: skip
    assert [len(index.rows(split)) for split in ("train", "test")] == [6, 4]


def test_sop_holds_whole_classes_out(tmp_path):
    TREES["sop"](tmp_path)
    top = tmp_path / "Stanford_Online_Products"
    more = [f"{7 + view} 12 4 coffee_maker_final/111085122800012_{view}.JPG" for view in (0, 1)]
    write(top / "Ebay_train.txt", [*(top / "Ebay_train.txt").read_text().splitlines(), *more])
    touch(top, (line.split()[3] for line in more))
    index = read_with("sop", tmp_path, HoldOut(val_share=0.3, seed=1))
    assert len(index.rows("val")) == 4 and len(set(index.identities[index.rows("val")])) == 2
    assert len(index.rows("test")) == 4


def test_sop_nasty_lists(tmp_path, caplog):
    TREES["sop"](tmp_path)
    top = tmp_path / "Stanford_Online_Products"
    lines = (top / "Ebay_train.txt").read_text().splitlines()
    gone = lines[1].split()[3]
    (top / gone).unlink()
    extra = [lines[2], "7 x 1 bicycle_final/a.JPG", "7 8 1", "", "8 12 1 bicycle_final/with a space_0.JPG"]
    touch(top, ["bicycle_final/with a space_0.JPG"])
    write(top / "Ebay_train.txt", lines + extra)
    with caplog.at_level(logging.WARNING):
        index = read_with("sop", tmp_path, HoldOut(val_share=0))
    assert len(index.rows("train")) == 6 and any("with a space" in path for path in index.paths)
    assert "skipped 2 lines of Ebay_train.txt" in caplog.text and "1 images that are listed again" in caplog.text
    assert f"1 images of Ebay_train.txt that are missing, such as Stanford_Online_Products/{gone}" in caplog.text
    (top / "Ebay_test.txt").unlink()
    assert set(read_with("sop", tmp_path).splits) == {"train", "val"} and "Ebay_test.txt" in caplog.text


# ---------------------------------------------------------------------- ILIAS


def test_ilias_queries_find_positives_of_their_object(trees):
    index = read_with("ilias", trees["ilias"])
    assert index.names == ("bold_bimp_000", "zippy_zootlenibble_001")
    assert [len(index.rows(split)) for split in ("query", "gallery")] == [2, 4]
    for split, folder in (("query", "query"), ("gallery", "pos")):
        assert all(path.split("/")[-2] == folder for path in index.paths[index.rows(split)])


def test_ilias_queries_are_cropped_around_all_boxes_of_the_object(trees):
    index = read_with("ilias", trees["ilias"])
    by_name = dict(zip((path.split("/")[-1] for path in index.paths), index.boxes.tolist(), strict=True))
    assert by_name["Q000_00.jpg"] == [1, 2, 3, 4]
    assert by_name["Q001_00.jpg"] == [10, 10, 45, 50]  # of 10..40 x 20..60 and 50..55 x 10..15
    assert by_name["P000_00.jpg"] == [-1, -1, -1, -1], "the gallery is seen whole"
    assert read_with("ilias", trees["ilias"], options={"crop": False}).boxes is None


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 0 4", "a b c d", None])
def test_ilias_boxes_that_are_none_leave_the_query_whole(tmp_path, text, caplog):
    TREES["ilias"](tmp_path)
    table = tmp_path / "ilias_core/bold_bimp_000/query/Q000_00_bbox.txt"
    table.unlink() if text is None else table.write_text(text)
    touch(tmp_path, ["ilias_core/bold_bimp_000/pos/cover.jpg"])
    with caplog.at_level(logging.WARNING):
        index = read_with("ilias", tmp_path)
    whole = index.boxes[[path.endswith("Q000_00.jpg") for path in index.paths]]
    assert np.array_equal(whole, [[-1, -1, -1, -1]]) and len(index.rows("query")) == 2
    assert "Q000_00_bbox.txt" in caplog.text and "pos/cover.jpg" in caplog.text


def test_ilias_distractors_fill_the_gallery(tmp_path):
    TREES["ilias"](tmp_path)
    touch(tmp_path, ["yfcc100m/000/1.jpg", "yfcc100m/001/2.JPG", "yfcc100m/urls.txt"])
    index = read_with("ilias", tmp_path, options={"distractors": "yfcc100m"})
    added = [row for row, path in enumerate(index.paths) if path.startswith("yfcc100m/")]
    assert len(added) == 2 and len(index) == 8 and len(index.boxes) == 8
    assert {str(index.splits[row]) for row in added} == {"gallery"}
    assert not {index.identities[row] for row in added} & set(index.identities[index.rows("query")])
    for folder in ("nowhere", "..", str(tmp_path.parent)):
        with pytest.raises(ValueError, match="No distractors in"):
            read_with("ilias", tmp_path, options={"distractors": folder})


def test_lists_that_are_not_utf8_are_named(tmp_path):
    TREES["sop"](tmp_path)
    table = tmp_path / "Stanford_Online_Products/Ebay_train.txt"
    table.write_bytes(table.read_bytes() + b"9 9 1 bicycle_final/\xe9.JPG\n")
    with pytest.raises(ValueError, match="Ebay_train.txt is not UTF-8.*Convert it"):
        read_with("sop", tmp_path)
