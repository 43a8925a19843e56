import logging

import pytest

from tests.data.readers.trees import TREES, touch, write
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with

# ---------------------------------------------------------------------- open-metric-learning


def by_name(index, column):
    return dict(zip((path.rsplit("/", 1)[-1] for path in index.paths.tolist()), column.tolist(), strict=True))


def test_oml_roles(trees):
    index = read_with("oml_csv", trees["oml_csv"], HoldOut(val_share=0))
    splits = by_name(index, index.splits)
    assert {name: splits[name] for name in ("c0.jpg", "c1.jpg", "c2.jpg", "d0.jpg", "d1.jpg")} == {
        "c0.jpg": "query",
        "c1.jpg": "gallery",
        "c2.jpg": "gallery",
        "d0.jpg": "test",
        "d1.jpg": "test",
    }
    assert len(index.rows("train")) == 4 and index.names == ("0", "1", "2", "3")
    assert by_name(index, index.categories)["d0.jpg"] == "shoe"


def test_oml_sequences_are_cameras(trees):
    index = read_with("oml_csv", trees["oml_csv"])
    cameras = by_name(index, index.cameras)
    assert cameras["c0.jpg"] == cameras["c1.jpg"] != cameras["c2.jpg"] and cameras["c2.jpg"] >= 0
    assert cameras["d0.jpg"] == -1


def test_oml_boxes_are_left_right_top_bottom(trees):
    boxes = by_name(*(lambda index: (index, index.boxes))(read_with("oml_csv", trees["oml_csv"])))
    assert boxes["a1.jpg"] == [1, 2, 10, 20] and boxes["a0.jpg"] == [-1, -1, -1, -1]


def test_oml_queries_without_gallery_are_refused(tmp_path):
    TREES["oml_csv"](tmp_path)
    touch(tmp_path, ["images/e0.jpg"])
    with open(tmp_path / "df.csv", "a") as file:
        file.write("9,images/e0.jpg,validation,True,False,shoe,,,,,\n")
    with pytest.raises(ValueError, match="1 labels of .* have queries and nothing in the gallery, such as '9'"):
        read_with("oml_csv", tmp_path)


def test_oml_nasty_rows(tmp_path, caplog):
    TREES["oml_csv"](tmp_path)
    inside, outside = tmp_path / "images/a0.jpg", tmp_path.parent / "elsewhere.jpg"
    lines = (tmp_path / "df.csv").read_text().splitlines()
    lines[1] = f"0,{inside},train,,,shoe,,,,,"
    lines[2] = "0,./images/a1.jpg,train,,,shoe,,,,,"
    lines += [
        f"1,{outside},train,,,bag,,,,,",
        "1,images/gone.jpg,train,,,bag,,,,,",
        "1,images/b0.jpg,train,,,bag,,9,3,0,4",
        "1,images/b0.jpg,train,,,bag,,9,,0,4",
        ",images/b0.jpg,train,,,bag,,,,,",
        "3,images/d0.jpg,validation,False,False,shoe,,,,,",
        "3,images/d0.jpg,validation,maybe,True,shoe,,,,,",
        "3,images/d0.jpg,dev,True,True,shoe,,,,,",
        "4",
    ]
    write(tmp_path / "df.csv", lines)
    with caplog.at_level(logging.WARNING):
        index = read_with("oml_csv", tmp_path, HoldOut(val_share=0))
    assert len(index) == 9 and {"images/a0.jpg", "images/a1.jpg"} < set(index.paths)
    assert "skipped 7 rows without" in caplog.text and "skipped 1 images that are missing" in caplog.text
    assert f"skipped 1 images that are not below {tmp_path}, such as {outside}" in caplog.text


def test_oml_an_image_in_training_and_validation_is_refused(tmp_path):
    TREES["oml_csv"](tmp_path)
    text = (tmp_path / "df.csv").read_text()
    (tmp_path / "df.csv").write_text(text.replace("\n1,images/b0", "\n3,images/b0"))
    with pytest.raises(ValueError, match="in more than one of train, val and test, such as '3'"):
        read_with("oml_csv", tmp_path)


@pytest.mark.parametrize("name", ["oml_csv", "wildlife_csv"])
def test_several_tables_have_to_be_named(tmp_path, name):
    TREES[name](tmp_path)
    table = next(tmp_path.glob("*.csv"))
    (tmp_path / "other.csv").write_text(table.read_text())
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="has 2 tables that fit.*Name one, by the option table"):
        read_with(name, tmp_path)
    assert len(read_with(name, tmp_path, options={"table": "other.csv"})) == 9
    with pytest.raises(ValueError, match="notes.csv has no column"):
        read_with(name, tmp_path, options={"table": "notes.csv"})
    with pytest.raises(FileNotFoundError, match="No table .*nope.csv"):
        read_with(name, tmp_path, options={"table": "nope.csv"})


# ---------------------------------------------------------------------- wildlife-datasets


def test_wildlife_unknown_is_left_out_and_species_is_the_category(trees):
    index = read_with("wildlife_csv", trees["wildlife_csv"])
    assert index.names == ("luna", "milo", "nala", "olaf") and len(index) == 9
    assert by_name(index, index.categories)["000.JPG"] == "lynx"
    assert set(index.splits) == {"train", "test"}, "four are too few to validate on, too"
    boxes = by_name(index, index.boxes)
    assert boxes["000.JPG"] == [1.5, 2, 30, 40] and boxes["001.JPG"] == [-1, -1, -1, -1]
    assert (index.cameras == -1).all()


def test_wildlife_one_image_may_show_several_animals(tmp_path):
    write(
        tmp_path / "metadata.csv",
        [
            "image_id,identity,path,bbox",
            '1,luna,a.jpg,"[0, 0, 10, 10]"',
            '2,milo,a.jpg,"[20, 0, 10, 10]"',
            "3,nala,b.jpg,",
            "4,olaf,b.jpg,nan",
        ],
    )
    touch(tmp_path, ["a.jpg", "b.jpg"])
    index = read_with("wildlife_csv", tmp_path)
    assert sorted(index.paths.tolist()) == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"] and len(index.names) == 4


def test_wildlife_videos_can_be_cameras(trees):
    index = read_with("wildlife_csv", trees["wildlife_csv"], options={"videos_are_cameras": True})
    assert set(index.cameras.tolist()) == {0, 1, 2}


def test_wildlife_own_split_column(tmp_path, caplog):
    lines = ["image_id,identity,path,part"]
    for name, part in (
        ("luna", "train"),
        ("milo", "val"),
        ("nala", "query"),
        ("nala", "gallery"),
        ("olaf", "database"),
    ):
        lines.append(f"{len(lines)},{name},{len(lines)}.jpg,{part}")
    write(tmp_path / "metadata.csv", lines)
    touch(tmp_path, (f"{k}.jpg" for k in range(1, 6)))
    with caplog.at_level(logging.WARNING):
        index = read_with("wildlife_csv", tmp_path, options={"split": "part"})
    assert index.splits.tolist() == ["train", "val", "query", "gallery"] and "database" in caplog.text
    with pytest.raises(ValueError, match="has no column species_split"):
        read_with("wildlife_csv", tmp_path, options={"table": "metadata.csv", "split": "species_split"})


def test_wildlife_nasty_rows(tmp_path, caplog):
    TREES["wildlife_csv"](tmp_path)
    with open(tmp_path / "metadata.csv", "a") as file:
        file.write('20,luna,images/000.JPG,"[1, 2, 0, 4]",lynx,1\n21,luna,images/000.JPG,"[1, 2]",lynx,1\n')
        file.write('22,luna,images/000.JPG,"{""x"": 1}",lynx,1\n23,luna,,,lynx,1\n24,luna,images/gone.jpg,,lynx,1\n')
    with caplog.at_level(logging.WARNING):
        assert len(read_with("wildlife_csv", tmp_path)) == 9
    assert (
        "skipped 4 rows" in caplog.text and "skipped 1 images that are missing, such as images/gone.jpg" in caplog.text
    )
