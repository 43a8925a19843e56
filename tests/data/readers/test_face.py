import logging

import pytest

from tests.data.readers.trees import TREES, touch, write
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with


def name_of(index, row):
    return str(index.paths[row]).rsplit("/", 1)[-1]


def pairs_of(index):
    p = index.pairs
    columns = zip(p.first, p.second, p.same.tolist(), p.fold.tolist(), strict=True)
    return [(name_of(index, a), name_of(index, b), same, fold) for a, b, same, fold in columns]


# ---------------------------------------------------------------------- VGGFace2


def test_vggface2(trees):
    index = read_with("vggface2", trees["vggface2"], HoldOut(val_share=0))
    assert index.names == ("n000001", "n000002", "n000003", "n000004", "n000009")
    assert [len(index.rows(split)) for split in ("train", "test")] == [9, 4]
    assert all(path.split("/")[0] == split for path, split in zip(index.paths, index.splits, strict=True))


def test_vggface2_broken_names_and_one_part_alone(tmp_path, caplog):
    TREES["vggface2"](tmp_path)
    touch(tmp_path / "train", ["n000002/face.jpg", "n2/0001_01.jpg"])
    with caplog.at_level(logging.WARNING):
        index = read_with("vggface2", tmp_path, HoldOut(val_share=0))
    assert len(index.rows("train")) == 9 and "n2" not in index.names
    assert "train/n000002/face.jpg" in caplog.text and "six digits, such as n2" in caplog.text
    (tmp_path / "train").rename(tmp_path / "other")
    assert set(read_with("vggface2", tmp_path).splits) == {"test"}


# ---------------------------------------------------------------------- LFW


def test_lfw_pairs_and_their_folds(trees):
    index = read_with("lfw", trees["lfw"])
    assert set(index.splits) == {"test"} and len(index) == 10
    assert pairs_of(index) == [
        ("Abel_Pacheco_0001.jpg", "Abel_Pacheco_0004.jpg", True, 1),
        ("Akhmed_Zakayev_0001.jpg", "Akhmed_Zakayev_0003.jpg", True, 1),
        ("Abel_Pacheco_0001.jpg", "Akhmed_Zakayev_0001.jpg", False, 1),
        ("Akhmed_Zakayev_0002.jpg", "Slobodan_Milosevic_0003.jpg", False, 1),
        ("Slobodan_Milosevic_0002.jpg", "Slobodan_Milosevic_0003.jpg", True, 2),
        ("Abel_Pacheco_0002.jpg", "Abel_Pacheco_0003.jpg", True, 2),
        ("Slobodan_Milosevic_0001.jpg", "Abel_Pacheco_0004.jpg", False, 2),
        ("Akhmed_Zakayev_0003.jpg", "Abel_Pacheco_0002.jpg", False, 2),
    ]


def test_lfw_published_size_of_pairs_gives_ten_folds_of_600(tmp_path):
    touch(tmp_path / "lfw", (f"P_{i}/P_{i}_{k:04d}.jpg" for i in range(30) for k in (1, 2)))
    lines = ["10\t300"]
    for _ in range(10):
        lines += [f"P_{k % 30}\t1\t2" for k in range(300)]
        lines += [f"P_{k % 30}\t1\tP_{(k + 1) % 30}\t2" for k in range(300)]
    write(tmp_path / "pairs.txt", lines)
    pairs = read_with("lfw", tmp_path).pairs
    assert len(pairs) == 6000 and int(pairs.same.sum()) == 3000
    assert [int((pairs.fold == fold).sum()) for fold in range(11)] == [0, *[600] * 10]
    assert all(int(pairs.same[pairs.fold == fold].sum()) == 300 for fold in range(1, 11))


def test_lfw_development_pairs_have_no_folds(tmp_path):
    TREES["lfw"](tmp_path)
    (tmp_path / "pairs.txt").unlink()
    lines = ["1", "Abel_Pacheco\t1\t4", "Abel_Pacheco\t1\tAkhmed_Zakayev\t1"]
    write(tmp_path / "lfw" / "pairsDevTest.txt", lines)
    with pytest.raises(FileNotFoundError, match="No table pairs.txt .*There are pairsDevTest.txt"):
        read_with("lfw", tmp_path)
    index = read_with("lfw", tmp_path, options={"pairs": "pairsDevTest.txt"})
    assert [(same, fold) for _, _, same, fold in pairs_of(index)] == [(True, 0), (False, 0)]
    inside = read_with("lfw", tmp_path / "lfw", options={"pairs": "pairsDevTest.txt"})
    assert pairs_of(inside) == pairs_of(index)


def test_lfw_missing_images_and_broken_lines_do_not_shift_the_folds(tmp_path, caplog):
    TREES["lfw"](tmp_path)
    (tmp_path / "lfw/Abel_Pacheco/Abel_Pacheco_0001.jpg").unlink()
    touch(tmp_path / "lfw/Abel_Pacheco", ["Somebody_0001.jpg", "Abel_Pacheco_1.jpg"])
    lines = (tmp_path / "pairs.txt").read_text().splitlines()
    lines[2] = "Akhmed_Zakayev\tone"
    write(tmp_path / "pairs.txt", [line.replace("\t", " ") for line in lines] + [""])
    with caplog.at_level(logging.WARNING):
        index = read_with("lfw", tmp_path)
    assert [fold for *_, fold in pairs_of(index)] == [1, 2, 2, 2, 2]
    assert "skipped 2 pairs with an image that is missing, such as Abel_Pacheco 1 4" in caplog.text
    assert "skipped 1 lines of pairs.txt" in caplog.text and "Somebody_0001.jpg" in caplog.text


@pytest.mark.parametrize("first", ["name\t1\t2", "", "1 2 3"])
def test_lfw_a_table_that_is_none_is_refused(tmp_path, first, caplog):
    TREES["lfw"](tmp_path)
    write(tmp_path / "pairs.txt", [first])
    with pytest.raises(ValueError, match="not with the number of folds"):
        read_with("lfw", tmp_path)
    write(tmp_path / "pairs.txt", ["10\t300"])
    assert read_with("lfw", tmp_path).pairs is None and "announces 6000 pairs, and lists 0" in caplog.text


def test_lfw_several_versions_of_the_images_have_to_be_kept_apart(tmp_path):
    TREES["lfw"](tmp_path)
    touch(tmp_path / "lfw-deepfunneled", ["Abel_Pacheco/Abel_Pacheco_0001.jpg"])
    with pytest.raises(ValueError, match="several versions of the images: lfw, lfw-deepfunneled"):
        read_with("lfw", tmp_path)


def test_own_folders_with_such_names_are_not_lfw(tmp_path):
    touch(tmp_path, (f"rex{i}/rex{i}_{k:04d}.jpg" for i in range(6) for k in range(2)))
    assert set(read_with(None, tmp_path).splits) == {"train", "val", "test"}


# ---------------------------------------------------------------------- PetFace


def test_petface_joins_families_without_mixing_their_identities(trees):
    index = read_with("petface", trees["petface"])
    assert index.names[:3] == ("cat/000000", "cat/000001", "cat/000002") and len(index.names) == 12
    assert {(path.split("/")[1], str(kind)) for path, kind in zip(index.paths, index.categories, strict=True)} == {
        ("cat", "cat"),
        ("dog", "dog"),
    }
    assert [len(index.rows(s)) for s in ("train", "val", "test", "closed")] == [12, 4, 6, 4]
    trained = set(index.identities[index.rows("train")])
    assert set(index.identities[index.rows("closed")]) < trained
    assert [(str(index.paths[a]), str(index.paths[b]), bool(same), int(fold)) for a, b, same, fold in zip(
        index.pairs.first, index.pairs.second, index.pairs.same, index.pairs.fold, strict=True
    )] == [
        (f"images/{family}/000020/00.png", f"images/{family}/{other}.png", same, 0)
        for family in ("cat", "dog") for other, same in (("000020/01", True), ("000021/00", False))
    ]  # fmt: skip


def test_petface_without_val_lists_holds_identities_out(tmp_path):
    TREES["petface"](tmp_path)
    for family in ("cat", "dog"):
        (tmp_path / f"split/{family}/val.txt").unlink()
    index = read_with("petface", tmp_path, HoldOut(val_share=0.34))
    assert len(set(index.identities[index.rows("val")])) == 2
    assert not set(index.identities[index.rows("val")]) & set(index.identities[index.rows("train", "closed")])


def test_petface_unknown_family_is_refused(trees):
    with pytest.raises(ValueError, match="no family 'cow'. It has cat, dog"):
        read_with("petface", trees["petface"], options={"families": ["cow"]})


def test_petface_nasty_lists(tmp_path, caplog):
    TREES["petface"](tmp_path)
    lists = tmp_path / "split/cat"
    train = (lists / "train.csv").read_text().splitlines()
    write(
        lists / "train.csv", [*train, train[1], "dog/000000/00.png,0", "cat/000099/00.png,99", "cat/x/00.png,1", ",3"]
    )
    write(lists / "val.txt", ["000010/00.png", "cat/000000/00.png", ""])  # without the family; an image of training
    touch(tmp_path / "images/cat", ["000022/00.png", "000000/05.png"])
    write(lists / "reidentification.csv", ["filename,label", "cat/000000/02.png,0", "cat/000000/00.png,0"])
    (tmp_path / "images/cat/000021/00.png").unlink()
    pairs = ["cat/000020/00.png,cat/000022/00.png,0", "cat/000020/00.png,cat/000021/00.png,0", "a,b,maybe"]
    write(lists / "verification.csv", ["filename1,filename2,label", *pairs])
    with caplog.at_level(logging.WARNING):
        index = read_with("petface", tmp_path, options={"families": ["cat"]})
    assert [len(index.rows(s)) for s in ("train", "val", "test", "closed")] == [6, 1, 3, 1]
    assert "images/cat/000022/00.png" in index.paths[index.rows("test")], "an image that only a pair names"
    assert len(index.pairs) == 1 and not index.pairs.same[0]
    for message in (
        "3 lines of train.csv that are not", "1 images of train.csv that are missing, such as cat/000099/00.png",
        "1 images of val.txt that show training identities", "2 images that are listed again",
        "1 pairs of verification.csv with an image that is missing", "1 pairs of verification.csv whose label",
    ):  # fmt: skip
        assert message in caplog.text, message
