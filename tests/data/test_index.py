import hashlib
from pathlib import Path

import numpy as np
import pytest

from zoo.data.index import IdentityIndex, split_identities

ROOT = Path("somewhere")


def test_identities_are_numbered_by_sorted_name_over_all_splits():
    index = IdentityIndex.build(
        ROOT, ["b/1", "a/1", "c/1", "a/2"], ["b", "a", "c", "a"], ["test", "train", "val", "train"]
    )
    assert index.names == ("a", "b", "c")
    assert index.identities.tolist() == [1, 0, 2, 0]
    assert index.rows("train").tolist() == [1, 3]


def test_an_identity_in_two_splits_is_refused():
    with pytest.raises(ValueError, match="'a'"):
        IdentityIndex.build(ROOT, ["a/1", "a/2"], ["a", "a"], ["train", "test"])


def test_query_and_gallery_may_share_identities():
    index = IdentityIndex.build(ROOT, ["a/1", "a/2"], ["a", "a"], ["query", "gallery"])
    assert len(index.rows("query", "gallery")) == 2


@pytest.mark.parametrize("rich", [False, True])
def test_the_manifest_gives_the_same_index_again(tmp_path, rich):
    extras = dict(
        cameras=[3, 1, 2],
        boxes=np.array([[1, 2, 3.5, 4], [-1, -1, -1, -1], [0, 0, 7, 7]], np.float32),
        attributes={"coat": np.array(["red", "a,b", ""])},
    )
    index = IdentityIndex.build(
        ROOT, ["ü/1.jpg", 'a"b/2.jpg', "c/3.jpg"], ["ü", "x", "c"], ["train", "test", "val"], ["cat", "", "dog"],
        **(extras if rich else {}),
    )  # fmt: skip
    digest = index.save(tmp_path / "manifest.csv")
    assert digest == hashlib.sha256((tmp_path / "manifest.csv").read_bytes()).hexdigest()
    again = IdentityIndex.load(tmp_path / "manifest.csv", ROOT)
    assert again.manifest() == index.manifest()
    assert again.names == index.names and np.array_equal(again.identities, index.identities)
    assert (again.cameras is None) == (not rich) and (again.boxes is None) == (not rich)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_foreign_table_is_no_manifest(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n1,2\n")
    with pytest.raises(ValueError, match="no manifest"):
        IdentityIndex.load(tmp_path / "table.csv", ROOT)


def test_splitting_depends_on_names_and_seed_only():
    names = [f"n{i}" for i in range(50)]
    split = split_identities(names, 0.1, 0.3, seed=4)
    assert split == split_identities([*reversed(names), "n3"], 0.1, 0.3, seed=4)
    assert split != split_identities(names, 0.1, 0.3, seed=5)
    assert sorted(split.values()).count("val") == 5 and sorted(split.values()).count("test") == 15


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.0, 0.99)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(ValueError, match="share"):
        split_identities(["a", "b", "c"], *shares, seed=0)
