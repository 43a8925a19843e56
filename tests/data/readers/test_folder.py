import logging
import os

import numpy as np
import pytest

from tests.conftest import write_identities
from zoo.data.readers import find_reader, list_readers, read_with


def read(root):
    return read_with("folder", root)


def test_every_image_once_and_splits_disjoint(photos):
    index = read(photos)
    assert len(index) == 80 and len(set(index.paths)) == 80 and len(index.names) == 20
    for path, identity in zip(index.paths, index.identities, strict=True):
        assert (photos / path).is_file() and path.split("/")[0] == index.names[identity]
    kinds = {name: set(index.splits[index.identities == number]) for number, name in enumerate(index.names)}
    assert all(len(kind) == 1 for kind in kinds.values())
    assert [len(np.unique(index.identities[index.rows(s)])) for s in ("train", "val", "test")] == [12, 2, 6]


def test_given_splits_are_kept(tmp_path):
    for split, seed in (("train", 1), ("test", 2)):
        write_identities(tmp_path / split, identities=3, views=2, seed=seed)
        for folder in (tmp_path / split).iterdir():
            folder.rename(folder.with_name(f"{split}_{folder.name}"))
    index = read(tmp_path)
    assert set(index.splits) == {"train", "test"}
    assert all(path.split("/")[0] == split for path, split in zip(index.paths, index.splits, strict=True))


def test_hidden_and_foreign_files_are_left_alone_and_subfolders_read(tmp_path):
    write_identities(tmp_path, identities=4, views=2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "id_000" / "notes.txt").write_text("hello")
    (tmp_path / "id_000" / ".thumb.png").write_bytes(b"")
    (tmp_path / "id_001" / "2024").mkdir()
    (tmp_path / "id_001" / "0.png").rename(tmp_path / "id_001" / "2024" / "0.PNG")
    assert len(read(tmp_path)) == 8 and "id_001/2024/0.PNG" in read(tmp_path).paths


def test_errors_for_bad_roots_name_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        read(tmp_path / "missing")
    with pytest.raises(ValueError, match="one folder for each identity"):
        read(tmp_path)
    (tmp_path / "rex").mkdir()
    with pytest.raises(ValueError, match="No image in any"):
        read(tmp_path)


def test_readers_are_found_by_name():
    assert "folder" in list_readers()
    with pytest.raises(ValueError, match="Did you mean 'folder'"):
        find_reader("foldr")


def test_names_that_are_not_utf8_are_left_out_and_named(tmp_path, caplog):
    write_identities(tmp_path, identities=5, views=2)
    try:
        os.rename(tmp_path / "id_000/0.png", os.fsencode(tmp_path) + b"/id_000/caf\xe9.png")
        os.rename(tmp_path / "id_001", os.fsencode(tmp_path) + b"/ren\xe9")
    except OSError:
        pytest.skip("a file system of UTF-8 names only")
    with caplog.at_level(logging.WARNING):
        index = read(tmp_path)
    assert len(index) == 7 and "id_001" not in index.names
    index.save(tmp_path / "manifest.csv")
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2 and all("skipped 1 files or folders whose names are not UTF-8" in line for line in logged)
    assert any("'caf\\udce9.png'" in line for line in logged) and any("'ren\\udce9'" in line for line in logged)
