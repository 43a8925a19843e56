import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex, Pairs

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


def test_closed_holds_further_images_of_training_identities_only():
    index = IdentityIndex.build(ROOT, ["a/1", "a/2", "b/1"], ["a", "a", "b"], ["train", "closed", "test"])
    assert index.rows("closed").tolist() == [1] and "closed 1 images of 1" in index.describe()
    for held_out in ("val", "test", "query", "gallery"):
        with pytest.raises(ValueError, match="'b'"):
            IdentityIndex.build(ROOT, ["a/1", "b/1", "b/2"], ["a", "b", "b"], ["train", "closed", held_out])


def test_cameras_are_an_array_whether_there_are_any_or_not():
    without = IdentityIndex.build(ROOT, ["a/1", "a/2"], ["a", "a"], ["train", "train"])
    assert without.cameras.dtype == np.int64 and without.cameras.tolist() == [-1, -1]
    mixed = IdentityIndex.build(ROOT, ["a/1", "a/2"], ["a", "a"], ["train", "train"], cameras=[0, -1])
    assert mixed.cameras.tolist() == [0, -1] and mixed.select(np.array([1])).cameras.tolist() == [-1]


# ---------------------------------------------------------------------- pairs


@pytest.fixture
def paired():
    """Five images, four pairs."""
    pairs = Pairs.build([0, 0, 4, 2], [1, 2, 3, 3], [True, False, True, False], [1, 1, 2, 2])
    return IdentityIndex.build(
        ROOT, ["a/1", "a/2", "b/1", "c/1", "c/2"], ["a", "a", "b", "c", "c"], ["test"] * 5, pairs=pairs
    )


def named(index):
    """Pairs by path, the way they are meant."""
    if index.pairs is None:
        return None
    columns = zip(index.pairs.first, index.pairs.second, index.pairs.same, index.pairs.fold, strict=True)
    return {(str(index.paths[a]), str(index.paths[b]), bool(same), int(fold)) for a, b, same, fold in columns}


def test_selected_rows_keep_the_pairs_that_are_whole(paired):
    all_pairs = named(paired)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.permutation(5)[: rng.integers(0, 6)]
        kept = {paired.paths[row] for row in rows}
        whole = {pair for pair in all_pairs if pair[0] in kept and pair[1] in kept}
        assert named(paired.select(rows)) == (whole or None)
        assert named(paired.select(np.isin(np.arange(5), rows))) == (whole or None)
    assert paired.select(np.array([0, 1])).pairs.same.tolist() == [True]


def test_pairs_are_kept_beside_the_manifest(paired, tmp_path):
    digest = paired.save(tmp_path / "runs" / "manifest.csv")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["manifest.csv", "manifest.pairs.csv"]
    again = IdentityIndex.load(tmp_path / "runs" / "manifest.csv", ROOT)
    assert named(again) == named(paired) and again.pairs.fold.tolist() == paired.pairs.fold.tolist()
    assert again.pairs.same.dtype == bool and again.pairs.first.dtype == np.int64
    assert "4 pairs" in again.describe()
    without = paired.select(np.array([0, 3]))
    assert without.pairs is None and without.save(tmp_path / "runs" / "manifest.csv") != digest
    assert IdentityIndex.load(tmp_path / "runs" / "manifest.csv", ROOT).pairs is None, "none of an earlier manifest"


def test_pairs_of_another_manifest_are_refused(paired, tmp_path):
    path = tmp_path / "manifest.csv"
    paired.save(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(ValueError, match="manifest.pairs.csv does not belong to the manifest"):
        IdentityIndex.load(path, ROOT)
    path.write_text("".join(lines))
    for broken in ("first,second\n0,1\n", "first,second,same,fold,first_path,second_path\n-5,1,1,0,a/1,a/2\n"):
        (tmp_path / "manifest.pairs.csv").write_text(broken)
        with pytest.raises(ValueError, match="does not belong"):
            IdentityIndex.load(path, ROOT)


# ---------------------------------------------------------------------- manifest


@pytest.mark.parametrize("rich", [False, True])
def test_the_manifest_gives_the_same_index_again(tmp_path, rich):
    extras = dict(
        cameras=[3, -1, 0],
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
    assert again.cameras.tolist() == ([3, -1, 0] if rich else [-1, -1, -1]) and (again.boxes is None) == (not rich)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_foreign_table_is_no_manifest(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n1,2\n")
    with pytest.raises(ValueError, match="no manifest"):
        IdentityIndex.load(tmp_path / "table.csv", ROOT)


def test_an_image_is_cut_to_its_box(tmp_path):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = np.array([[2, 1, 4, 3], [-1] * 4, [0, 0, 2, 2]], np.float32)
    index = IdentityIndex.build(tmp_path, ["a.png", "a.png", "gone.png"], ["a"] * 3, ["train"] * 3, boxes=boxes)
    assert np.array_equal(index.image(0), pixels[1:4, 2:6]) and np.array_equal(index.image(1), pixels)
    with pytest.raises(UnreadableImage, match="no such file"):
        index.image(2)
