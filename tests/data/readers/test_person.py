import json
import logging

import numpy as np
import pytest

from tests.data.readers.trees import TREES, touch, write
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with


def rows(index, *splits):
    """(file name, identity, split, camera) of the rows of these splits, or of all."""
    chosen = index.rows(*splits) if splits else np.arange(len(index))
    return {
        (str(index.paths[r]).rsplit("/", 1)[-1], index.names[index.identities[r]], str(index.splits[r]), int(camera))
        for r, camera in zip(chosen, index.cameras[chosen], strict=True)
    }


# ---------------------------------------------------------------------- Market-1501


def test_market_drops_junk_and_keeps_distractors_in_the_gallery(trees):
    index = read_with("market1501", trees["market1501"], HoldOut(val_share=0))
    assert rows(index, "gallery") == {
        ("0001_c1s3_001051_01.jpg", "0001", "gallery", 0),
        ("0001_c4s3_001051_04.jpg", "0001", "gallery", 3),
        ("0003_c1s3_001051_01.jpg", "0003", "gallery", 0),
        ("0003_c4s3_001051_04.jpg", "0003", "gallery", 3),
        ("0000_c2s1_000151_01.jpg", "0000", "gallery", 1),
    }
    assert rows(index, "query") == {
        ("0001_c1s1_001051_00.jpg", "0001", "query", 0),
        ("0003_c1s1_001051_00.jpg", "0003", "query", 0),
    }
    assert len(index.rows("train")) == 12 and index.origins == ("market1501",)
    assert "0000" not in {index.names[i] for i in index.identities[index.rows("train", "query")]}


def test_market_at_its_published_size(tmp_path, caplog):
    """Folders of the published sizes give the published counts, and no warning."""
    top = "Market-1501-v15.09.15"

    def named(first, people, count, folder):
        people = range(first, first + people)
        return (f"{top}/{folder}/{people[k % len(people)]:04d}_c{k % 6 + 1}s1_{k:06d}_00.jpg" for k in range(count))

    touch(tmp_path, named(800, 751, 12_936, "bounding_box_train"))
    touch(tmp_path, named(1, 750, 3_368, "query"))
    touch(tmp_path, named(1, 750, 13_115, "bounding_box_test"))
    touch(tmp_path, (f"{top}/bounding_box_test/0000_c{k % 6 + 1}s2_{k:06d}_00.jpg" for k in range(2_798)))
    touch(tmp_path, (f"{top}/bounding_box_test/-1_c{k % 6 + 1}s2_{k:06d}_00.jpg" for k in range(3_819)))
    with caplog.at_level(logging.WARNING):
        index = read_with("market1501", tmp_path)
    assert not caplog.records
    assert [len(index.rows(split)) for split in ("query", "gallery")] == [3_368, 15_913]
    assert len(index.rows("train", "val")) == 12_936 and len(index.rows("val")) > 0
    people = [len(np.unique(index.identities[index.rows(*s)])) for s in (("train", "val"), ("query",), ("gallery",))]
    assert people == [751, 750, 751]
    assert len(np.unique(index.identities[index.rows("val")])) == 75
    assert np.unique(index.cameras).tolist() == [0, 1, 2, 3, 4, 5]
    (tmp_path / top / "query/0001_c1s1_000000_00.jpg").unlink()
    read_with("market1501", tmp_path)
    assert "query 3,368 images (found 3,367)" in caplog.text and len(caplog.records) == 1


def test_market_skips_and_names_broken_names_and_takes_any_ending(tmp_path, caplog):
    TREES["market1501"](tmp_path)
    folder = tmp_path / "Market-1501-v15.09.15"
    touch(
        folder / "bounding_box_train",
        ["copy of 0002_c1s1_1.jpg", "0002.jpg", "0012_c3s1_000151_01.JPG", "0012_c1_2.png"],
    )
    with caplog.at_level(logging.WARNING):
        index = read_with("market1501", tmp_path)
    assert "skipped 2 images of bounding_box_train/" in caplog.text and "copy of 0002_c1s1_1.jpg" in caplog.text
    assert {r[0] for r in rows(index) if r[1] == "0012"} == {"0012_c3s1_000151_01.JPG", "0012_c1_2.png"}


def test_market_reads_the_file_name_not_the_path(tmp_path):
    """A folder on the way that looks like an image's name changes nothing."""
    root = tmp_path / "0999_c9s1_data"
    TREES["market1501"](root)
    index = read_with("market1501", root)
    assert "0999" not in index.names and index.cameras.max() == 5


def test_market_distractors_are_never_anyone(tmp_path, caplog):
    TREES["market1501"](tmp_path)
    with pytest.raises(ValueError, match="500,000 distractors.*images/|images/.*500,000"):
        read_with("market1501", tmp_path, options={"distractors": True})
    names = ["images/0001_c3s1_000001_00.jpg", "images/part2/whatever.png", "images/-1_c6s1_2.jpg"]
    touch(tmp_path / "Market-1501-v15.09.15", names)
    plain = read_with("market1501", tmp_path)
    more = read_with("market1501", tmp_path, options={"distractors": True})
    added = rows(more) - rows(plain)
    assert added == {
        ("0001_c3s1_000001_00.jpg", "0000", "gallery", 2),
        ("whatever.png", "0000", "gallery", -1),
        ("-1_c6s1_2.jpg", "0000", "gallery", 5),
    }
    assert len(more) == len(plain) + 3


def test_duke_and_cuhk03_np_are_known_by_their_folders(tmp_path, caplog):
    images = ["bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c2_f0046985.jpg"]
    touch(tmp_path / "DukeMTMC-reID", images)
    with caplog.at_level(logging.WARNING):
        duke = read_with("market1501", tmp_path / "DukeMTMC-reID", HoldOut(val_share=0))
    assert duke.origins == ("dukemtmc",) and "DukeMTMC-reID publishes: train+val 16,522 images (found 1)" in caplog.text
    assert rows(duke, "train") == {("0001_c2_f0046182.jpg", "0001", "train", 1)}
    caplog.clear()
    for kind in ("labeled", "detected"):
        touch(tmp_path / "cuhk03-np" / kind, ["bounding_box_train/0001_c1_1.png", "bounding_box_test/0003_c2_7.png"])
        index = read_with("market1501", tmp_path / "cuhk03-np" / kind, HoldOut(val_share=0))
        assert index.origins == ("cuhk03",) and rows(index, "gallery") == {("0003_c2_7.png", "0003", "gallery", 1)}
    assert [record.getMessage().count("7,368") for record in caplog.records] == [1]
    with pytest.raises(ValueError, match="detected, labeled"):
        read_with("market1501", tmp_path / "cuhk03-np")
    own = tmp_path / "own"
    touch(own, images)
    caplog.clear()
    assert read_with("market1501", own, HoldOut(val_share=0)).origins == () and not caplog.records


# ---------------------------------------------------------------------- MSMT17


def test_msmt17_identities_of_train_and_test_stay_apart(trees):
    index = read_with("msmt17", trees["msmt17"], HoldOut(val_share=0))
    assert index.names == ("test_0000", "test_0001", "test_0002", "train_0000", "train_0001", "train_0002")
    assert len(index.rows("train")) == 9, "list_val is trained on"
    assert rows(index, "query") == {
        ("0000_000_01_0303morning_0015_0.jpg", "test_0000", "query", 0),
        ("0001_000_02_0303morning_0015_0.jpg", "test_0001", "query", 1),
    }
    assert ("0001_001_15_0303morning_0015_1.jpg", "train_0001", "train", 14) in rows(index)


def test_msmt17_list_val_is_kept_out_of_training_when_asked(tmp_path):
    TREES["msmt17"](tmp_path)
    top = tmp_path / "MSMT17_V1"
    for name, views in (("train", (0, 1)), ("val", (2,))):
        more = [f"0003/0003_{k:03d}_{k + 1:02d}_0303morning_0015_{k}.jpg" for k in views]
        write(
            top / f"list_{name}.txt",
            [*(top / f"list_{name}.txt").read_text().splitlines(), *(f"{path} 3" for path in more)],
        )
        touch(top / "train", more)
    index = read_with("msmt17", tmp_path, HoldOut(val_share=0.3), {"train": "train"})
    assert len(index.rows("closed")) == 2 and len(index.rows("train")) == 4
    held = set(index.identities[index.rows("val")].tolist())
    assert len(held) == 2 and len(index.rows("val")) == 6, "all images of an identity that is held out are"
    assert set(index.identities[index.rows("closed")]) == set(index.identities[index.rows("train")])


def test_msmt17_version_2_has_other_folders(tmp_path, trees):
    TREES["msmt17"](tmp_path)
    top = (tmp_path / "MSMT17_V1").rename(tmp_path / "MSMT17_V2")
    (top / "train").rename(top / "mask_train_v2")
    (top / "test").rename(top / "mask_test_v2")
    index = read_with("msmt17", tmp_path)
    assert rows(index) == rows(read_with("msmt17", trees["msmt17"]))
    assert {path.split("/")[1] for path in index.paths} == {"mask_train_v2", "mask_test_v2"}


def test_msmt17_missing_files_broken_lines_and_repeated_ones_are_skipped(tmp_path, caplog):
    TREES["msmt17"](tmp_path)
    top = tmp_path / "MSMT17_V1"
    (top / "train/0001/0001_000_01_0303morning_0015_0.jpg").unlink()
    lines = (top / "list_query.txt").read_text().splitlines()
    write(top / "list_query.txt", [*lines, "", lines[0], "0009/0009_000.jpg 9", "no identity"])
    (top / "list_val.txt").unlink()
    with caplog.at_level(logging.WARNING):
        index = read_with("msmt17", tmp_path, HoldOut(val_share=0))
    assert len(index.rows("train")) == 5 and len(index.rows("query")) == 2
    assert "skipped 1 images of list_train.txt that are missing" in caplog.text
    assert "skipped 2 lines of list_query.txt" in caplog.text and "0009/0009_000.jpg 9" in caplog.text
    assert "1 images that are listed again" in caplog.text and "list_val.txt" in caplog.text


# ---------------------------------------------------------------------- CUHK03


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_follows_the_protocol_which_counts_from_1(trees, boxes):
    index = read_with("cuhk03", trees["cuhk03"], HoldOut(val_share=0), {"boxes": boxes})
    assert {path.split("/")[0] for path in index.paths} == {f"images_{boxes}"}
    assert rows(index, "query", "gallery") == {
        ("1_002_1_01.png", "0002", "query", 0),
        ("1_002_1_02.png", "0002", "gallery", 0),
        ("1_002_2_06.png", "0002", "gallery", 1),
        ("2_002_1_01.png", "0004", "query", 0),
        ("2_002_1_02.png", "0004", "gallery", 0),
        ("2_002_2_06.png", "0004", "gallery", 1),
    }
    assert {r[1] for r in rows(index, "train")} == {"0001", "0003"} and len(index.rows("train")) == 6


def test_cuhk03_that_is_still_packed_says_how_to_extract_it(tmp_path):
    touch(tmp_path, ["cuhk03/cuhk03_release/cuhk-03.mat"])
    with pytest.raises(ValueError, match="Extract them to images_labeled/ with h5py.*or get CUHK03-NP.*market1501"):
        read_with("cuhk03", tmp_path / "cuhk03", options={"boxes": "labeled"})


def test_cuhk03_with_a_file_that_is_no_protocol(tmp_path):
    from scipy.io import savemat

    TREES["cuhk03"](tmp_path)
    savemat(tmp_path / "cuhk03_new_protocol_config_detected.mat", {"labels": [1, 2]})
    with pytest.raises(ValueError, match="is no protocol of CUHK03: 'filelist'"):
        read_with("cuhk03", tmp_path)
    (tmp_path / "cuhk03_new_protocol_config_labeled.mat").write_bytes(b"not a mat file")
    with pytest.raises(ValueError, match="is no protocol of CUHK03"):
        read_with("cuhk03", tmp_path, options={"boxes": "labeled"})


# ---------------------------------------------------------------------- LPW, PRCC, RSTPReid


def test_lpw_identities_belong_to_their_scene(trees):
    index = read_with("lpw", trees["lpw"], HoldOut(val_share=0))
    assert index.names == ("scen1/1", "scen1/2", "scen2/1", "scen2/2", "scen3/1")
    assert {(r[1], r[3]) for r in rows(index, "query")} == {("scen1/1", 12), ("scen1/2", 12)}
    assert {r[3] for r in rows(index, "gallery")} == {11, 13}
    assert {r[3] for r in rows(index, "train")} == {21, 24, 31, 32}


def test_lpw_slim_and_broken_names(tmp_path, trees, caplog):
    TREES["lpw"](tmp_path / "plain")
    inner = tmp_path / "slim" / "pep_256x128"
    inner.mkdir(parents=True)
    (tmp_path / "plain" / "pep_256x128").rename(inner / "data_slim")
    touch(inner / "data_slim/scen2/view1/1", ["0001_copy.jpg"])
    with caplog.at_level(logging.WARNING):
        index = read_with("lpw", tmp_path / "slim")
    assert rows(index) == rows(read_with("lpw", trees["lpw"])) and "0001_copy.jpg" in caplog.text


def test_prcc_tells_queries_in_the_same_clothes_from_those_in_others(trees):
    index = read_with("prcc", trees["prcc"], HoldOut(val_share=0))
    clothes = index.attributes["clothes"]
    assert {(str(s), int(c), str(w)) for s, c, w in zip(index.splits, index.cameras, clothes, strict=True)} == {
        ("gallery", 0, ""), ("query", 1, "same"), ("query", 2, "changed"),
        *((split, camera, "") for split in ("train", "closed") for camera in range(3)),
    }  # fmt: skip
    for split, folder in (("train", "train"), ("closed", "val"), ("gallery", "test/A")):
        assert all(f"rgb/{folder}/" in path for path in index.paths[index.rows(split)])
    assert index.names == ("001", "002", "004", "034", "035")


def test_prcc_val_of_people_who_are_not_trained_on_is_val(tmp_path, caplog):
    TREES["prcc"](tmp_path)
    touch(tmp_path / "prcc/rgb/val/009", ["A_cropped_rgb001.jpg", "cropped_rgb001.jpg"])
    with caplog.at_level(logging.WARNING):
        index = read_with("prcc", tmp_path, HoldOut(val_share=0))
    assert {r[1] for r in rows(index, "val")} == {"009"} and "skipped 1 images whose name does not begin" in caplog.text


def test_rstpreid_keeps_its_split_and_knows_where_its_images_come_from(trees):
    index = read_with("rstpreid", trees["rstpreid"])
    assert index.origins == ("rstpreid", "msmt17")
    assert rows(index, "val", "test") == {
        ("0007_c1_0001.jpg", "0007", "val", 0),
        ("0007_c14_0014.jpg", "0007", "val", 13),
        ("0009_c1_0001.jpg", "0009", "test", 0),
        ("0009_c14_0014.jpg", "0009", "test", 13),
    }


def test_rstpreid_broken_entries_are_skipped_and_a_broken_table_is_refused(tmp_path, caplog):
    TREES["rstpreid"](tmp_path)
    table = tmp_path / "RSTPReid/data_captions.json"
    good = json.loads(table.read_text())
    bad = ["text", {"id": 1}, good[0] | {"split": "dev"}, good[0] | {"img_path": "cover.jpg"}, good[0] | {"id": None}]
    gone = good[0] | {"img_path": "0000_c3_0099.jpg"}
    table.write_text(json.dumps([*good, *bad, gone]))
    with caplog.at_level(logging.WARNING):
        index = read_with("rstpreid", tmp_path)
    assert len(index) == 8 and "skipped 5 entries" in caplog.text and "imgs/0000_c3_0099.jpg" in caplog.text
    for broken, message in (("[{", "is not JSON"), ('{"a": 1}', "holds a dict, not a list")):
        table.write_text(broken)
        with pytest.raises(ValueError, match=message):
            read_with("rstpreid", tmp_path)
