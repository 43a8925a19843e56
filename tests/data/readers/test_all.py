"""What every reader does, and the error that it raises for the wrong dataset."""

import logging
import sys
from dataclasses import MISSING, fields

import numpy as np
import pytest

from tests.data.readers.trees import TREES, touch
from zoo.data.holdout import HoldOut
from zoo.data.readers import choose_reader, find_reader, fitting_readers, list_readers, read_with

READERS = list_readers()


def test_every_reader_has_a_tree_here():
    assert sorted(TREES) == READERS


@pytest.mark.parametrize("name", READERS)
def test_name_and_description(name):
    reader = find_reader(name)
    assert reader.name == name and reader.__module__ == f"zoo.data.readers.{name}", "the name is that of its module"
    assert "\n    " in sys.modules[reader.__module__].__doc__ and "\n" not in reader.layout
    for option in fields(reader):
        assert option.default is not MISSING and f"        {option.name}: " in reader.__doc__, (
            "every option is explained"
        )


def test_without_arguments_a_tenth_is_validated_and_three_tenths_are_tested_on():
    assert (HoldOut().val_share, HoldOut().test_share, HoldOut().seed) == (0.1, 0.3, 0)


@pytest.mark.parametrize("name", READERS)
def test_a_tree_fits_one_reader_alone_and_is_chosen(trees, name):
    assert fitting_readers(trees[name]) == [name]
    assert choose_reader(trees[name]) == name


@pytest.mark.parametrize("name", READERS)
def test_rows_are_files_named_in_order_and_read_alike_every_time(trees, name):
    index = read_with(name, trees[name], HoldOut(val_share=0.3, seed=5))
    assert all((index.root / path).is_file() for path in index.paths) and index.root == trees[name]
    assert len(set(index.paths)) == len(index)
    assert list(index.names) == sorted(index.names)
    again = read_with(name, trees[name], HoldOut(val_share=0.3, seed=5))
    assert again.manifest() == index.manifest()
    assert index.cameras.dtype == np.int64 and index.cameras.shape == (len(index),) and (index.cameras >= -1).all()


@pytest.mark.parametrize("name", READERS)
def test_no_share_holds_out_none_that_is_not_published(trees, name):
    index = read_with(name, trees[name], HoldOut(val_share=0, test_share=0))
    assert bool(len(index.rows("val"))) == (name in ("rstpreid", "petface"))


@pytest.mark.parametrize("name", [name for name in READERS if name != "folder"])
def test_the_dataset_folder_and_its_parent_are_both_accepted(trees, name, tmp_path):
    children = list(trees[name].iterdir())
    if len(children) == 1:  # the tree is the parent
        parent, own = trees[name], children[0]
    else:
        parent, own = tmp_path, tmp_path / "data"
        own.symlink_to(trees[name], target_is_directory=True)
    from_parent, from_own = read_with(name, parent), read_with(name, own)
    assert from_parent.paths.tolist() == [f"{own.name}/{path}" for path in from_own.paths]
    assert from_parent.names == from_own.names and from_parent.splits.tolist() == from_own.splits.tolist()


@pytest.mark.parametrize("tree", READERS)
@pytest.mark.parametrize("name", READERS)
def test_at_the_wrong_tree_the_error_names_what_is_expected_what_is_there_and_what_fits(trees, name, tree):
    if name == tree or (name, tree) == ("folder", "vggface2"):  # train and test with a folder for each identity
        return
    with pytest.raises(ValueError) as caught:
        read_with(name, trees[tree])
    message = str(caught.value)
    assert str(trees[tree]) in message and find_reader(name).layout in message
    first = sorted(trees[tree].iterdir())[0].name
    assert f"Found: {first}" in message
    assert f"Readers that fit: {tree}." in message


@pytest.mark.parametrize("name", READERS)
def test_folders_that_are_missing_empty_or_files(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder .*missing"):
        read_with(name, tmp_path / "missing")
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="No folder .*file.txt"):
        read_with(name, tmp_path / "file.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expects"):
        read_with(name, tmp_path / "empty")
    assert fitting_readers(tmp_path) == []


@pytest.mark.parametrize("name", READERS)
def test_hidden_files_and_folders_are_left_alone(name, trees, tmp_path):
    TREES[name](tmp_path)
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        touch(folder, [".DS_Store", "._0001_c1s1_000151_00.jpg", ".cache/0001_c1s1_000151_00.jpg"])
    index, expected = read_with(name, tmp_path), read_with(name, trees[name])
    assert index.paths.tolist() == expected.paths.tolist()


def test_one_of_several_datasets_in_a_folder_has_to_be_named(tmp_path):
    for name in ("one", "two"):
        TREES["market1501"](tmp_path)
        (tmp_path / "Market-1501-v15.09.15").rename(tmp_path / name)
    with pytest.raises(ValueError, match="holds 2 folders that the reader market1501 fits: one, two. Give one"):
        read_with("market1501", tmp_path)
    TREES["sop"](tmp_path)
    with pytest.raises(ValueError, match="fits the readers market1501, sop. Name the one"):
        read_with(None, tmp_path)


def test_options_are_checked_against_the_reader(trees):
    with pytest.raises(ValueError, match=r"Unknown option 'trian' of the reader msmt17. Did you mean 'train'\? Known"):
        read_with("msmt17", trees["msmt17"], options={"trian": "train"})
    with pytest.raises(ValueError, match="cannot be 'all'. Give one of 'train', 'train.val'"):
        read_with("msmt17", trees["msmt17"], options={"train": "all"})
    with pytest.raises(ValueError, match="cannot be 'yes'. Give bool"):
        read_with("market1501", trees["market1501"], options={"distractors": "yes"})
    with pytest.raises(ValueError, match="has none"):
        read_with("sop", trees["sop"], options={"seed": 3})
    with pytest.raises(ValueError, match="cannot be 3"):
        read_with("petface", trees["petface"], options={"families": 3})
    assert len(read_with("petface", trees["petface"], options={"families": ["cat"]})) == 13
    assert read_with("petface", trees["petface"], options={"families": None}).names[-1].startswith("dog/")


def test_published_counts_are_compared_except_in_a_drawn_world(tmp_path, caplog):
    TREES["sop"](tmp_path)
    with caplog.at_level(logging.WARNING):
        read_with("sop", tmp_path)
    assert "train+val 59,551 images (found 6), train+val 11,318 identities (found 3), test 60,502" in caplog.text
    caplog.clear()
    (tmp_path / "world.json").write_text("{}")
    read_with("sop", tmp_path)
    assert not caplog.records


def test_a_folder_of_many_folders_is_no_parent(tmp_path):
    touch(tmp_path, (f"person{i:03d}/1.jpg" for i in range(150)))
    touch(tmp_path, ["person007/bounding_box_train/0001_c1_1.jpg", "person007/query/0001_c1_1.jpg"])
    assert fitting_readers(tmp_path) == ["folder"]


def test_refuse_names_only_the_first_of_many_files(tmp_path):
    touch(tmp_path, (f"{i:03d}.jpg" for i in range(50)))
    with pytest.raises(ValueError, match=r"Found: 000.jpg, .*005.jpg and 44 more. No other reader fits"):
        find_reader("sop").refuse(tmp_path)
