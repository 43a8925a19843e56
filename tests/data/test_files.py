import logging
import os

import pytest

from tests.data.readers.trees import touch
from zoo.data.files import Files, image_names, lines_of, subfolders


@pytest.fixture
def tree(tmp_path):
    touch(
        tmp_path, ["b/2.JPG", "b/1.png", "b/.hidden.png", "b/notes.txt", "b/deep/3.webp", "b/.cache/4.png", "a/5.gif"]
    )
    return tmp_path


def test_images_are_listed_in_order_relative_to_the_root(tree):
    files = Files(tree)
    assert files.images(tree / "b") == [("b/1.png", "1.png"), ("b/2.JPG", "2.JPG")]
    assert sorted(files.images_below(tree)) == ["a/5.gif", "b/1.png", "b/2.JPG", "b/deep/3.webp"]
    assert files.images_below(tree / "b") == ["b/1.png", "b/2.JPG", "b/deep/3.webp"]
    assert [folder.name for folder in subfolders(tree / "b")] == ["deep"] and image_names(tree / "a") == ["5.gif"]
    assert (files.prefix(tree), files.prefix(tree / "b/deep")) == ("", "b/deep/")


def test_folders_that_are_missing_hold_nothing(tmp_path):
    gone = tmp_path / "gone"
    assert (
        subfolders(gone)
        == image_names(gone)
        == Files(tmp_path).images(gone)
        == Files(tmp_path).images_below(gone)
        == []
    )


def test_each_folder_is_listed_once_to_find_out_which_files_are_there(tree, monkeypatch):
    listed = []
    monkeypatch.setattr(os, "listdir", lambda folder, listdir=os.listdir: listed.append(folder) or listdir(folder))
    files = Files(tree)
    assert "b/1.png" in files and "b/2.JPG" in files and "b/9.png" not in files and "gone/1.png" not in files
    assert listed == [tree / "b"]


def test_what_is_skipped_is_reported_once_by_reason(tree, caplog):
    files = Files(tree, tree / "b")
    for name in range(5):
        files.skip("images without a camera", name)
    files.skip("lists that are missing", "list.txt")
    with caplog.at_level(logging.WARNING):
        files.report_skipped()
        files.report_skipped()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tree}/b: skipped 5 images without a camera, such as 0, 1, 2",
        f"{tree}/b: skipped 1 lists that are missing, such as list.txt",
    ]


def test_lines_are_stripped_and_other_encodings_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes("  é 1\r\n\n2 \n".encode())
    assert lines_of(tmp_path / "list.txt") == ["é 1", "2"]
    (tmp_path / "list.txt").write_bytes(b"\xe9\n")
    with pytest.raises(ValueError, match="list.txt is not UTF-8.*Convert it"):
        lines_of(tmp_path / "list.txt")
