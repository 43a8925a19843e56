import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.readers.trees import TREES, touch
from zoo.data.holdout import HoldOut
from zoo.data.index import IdentityIndex, Pairs
from zoo.data.join import Source, join, read_sources
from zoo.data.readers import read_with


def index_of(root, rows, **parts):
    """rows: (path, identity, split)"""
    paths, names, splits = zip(*rows, strict=True)
    return IdentityIndex.build(Path(root), paths, names, splits, **parts)


@pytest.fixture
def two():
    """A source with everything, and one with nothing but images."""
    rich = index_of(
        "/data/deep/rich",
        [("a/1.png", "a", "train"), ("a/2.png", "a", "train"), ("b/1.png", "b", "test"), ("b/2.png", "b", "test")],
        categories=["cat", "cat", "dog", "dog"],
        cameras=[0, 2, -1, 1],
        boxes=np.array([[1, 2, 3, 4], [-1] * 4, [0, 0, 5, 5], [-1] * 4], np.float32),
        attributes={"coat": np.array(["red", "", "brindled", "red"])},
        pairs=Pairs.build([0, 2], [1, 3], [True, True], [1, 2]),
        origins=("rich",),
    )
    plain = index_of(
        "/data/plain",
        [("a/1.png", "a", "query"), ("a/2.png", "a", "gallery"), ("z/1.png", "z", "val")],
        cameras=[0, 1, 0],
        attributes={"side": np.array(["left", "right", "left"])},
        pairs=Pairs.build([1], [2], [False]),
        origins=("plain", "web"),
    )
    return {"rich": rich, "plain": plain}


def test_columns_of_both_are_kept_and_what_one_lacks_is_unknown(two):
    index = join(two)
    assert index.root == Path("/data")
    assert index.paths.tolist() == [
        "deep/rich/a/1.png", "deep/rich/a/2.png", "deep/rich/b/1.png", "deep/rich/b/2.png",
        "plain/a/1.png", "plain/a/2.png", "plain/z/1.png",
    ]  # fmt: skip
    assert index.names == ("plain/a", "plain/z", "rich/a", "rich/b") and index.identities.tolist() == [
        2,
        2,
        3,
        3,
        0,
        0,
        1,
    ]
    assert index.splits.tolist() == ["train", "train", "test", "test", "query", "gallery", "val"]
    assert index.categories.tolist() == ["cat", "cat", "dog", "dog", "", "", ""]
    assert index.attributes["coat"].tolist() == ["red", "", "brindled", "red", "", "", ""]
    assert index.attributes["side"].tolist() == ["", "", "", "", "left", "right", "left"]
    assert index.boxes[:4].tolist() == two["rich"].boxes.tolist() and (index.boxes[4:] == -1).all()
    assert index.origins == ("rich", "plain", "web")


def test_every_row_names_its_source_unless_its_source_says_more(two, tmp_path):
    index = join(two)
    assert index.attributes["source"].tolist() == ["rich"] * 4 + ["plain"] * 3
    index.save(tmp_path / "manifest.csv")
    assert (IdentityIndex.load(tmp_path / "manifest.csv", index.root).attributes["source"][-1]) == "plain"
    own = replace(two["plain"], attributes={"source": np.array(["web", "", "shop"])})
    again = join({"rich": two["rich"], "plain": own})
    assert again.attributes["source"].tolist() == ["rich"] * 4 + ["web", "", "shop"]


def test_no_two_sources_share_a_camera(two):
    index = join(two)
    assert index.cameras.tolist() == [0, 2, -1, 1, 3, 4, 3]
    swapped = join(dict(reversed(two.items())))
    assert swapped.cameras.tolist() == [0, 1, 0, 2, 4, -1, 3]


def test_pairs_point_at_the_same_images_as_before(two):
    index = join(two)
    before = {
        (f"{name}/{source.paths[a]}", f"{name}/{source.paths[b]}", bool(same), int(fold))
        for name, source in two.items()
        for a, b, same, fold in zip(*vars(source.pairs).values(), strict=True)
    }
    after = {
        (str(index.paths[a]).removeprefix("deep/"), str(index.paths[b]).removeprefix("deep/"), bool(same), int(fold))
        for a, b, same, fold in zip(*vars(index.pairs).values(), strict=True)
    }
    assert after == before


def test_a_joined_index_survives_its_manifest(two, tmp_path):
    index = join(two)
    index.save(tmp_path / "manifest.csv")
    again = IdentityIndex.load(tmp_path / "manifest.csv", index.root)
    assert again.manifest() == index.manifest() and again.cameras.tolist() == index.cameras.tolist()
    assert np.array_equal(again.pairs.first, index.pairs.first) and np.array_equal(again.pairs.fold, index.pairs.fold)


def test_one_source_inside_another_and_the_same_folder_twice(tmp_path):
    touch(tmp_path, ["outer/a/1.png", "outer/inner/b/1.png"])
    outer = index_of(tmp_path / "outer", [("a/1.png", "a", "train")])
    inner = index_of(tmp_path / "outer/inner", [("b/1.png", "b", "test")])
    index = join({"outer": outer, "inner": inner})
    assert index.root == tmp_path / "outer" and index.paths.tolist() == ["a/1.png", "inner/b/1.png"]
    assert all((index.root / path).is_file() for path in index.paths)


def test_relative_roots_are_joined_where_they_are(tmp_path, monkeypatch):
    touch(tmp_path, ["x/a/1.png", "y/b/1.png"])
    monkeypatch.chdir(tmp_path)
    index = join({"x": index_of("x", [("a/1.png", "a", "train")]), "y": index_of("y", [("b/1.png", "b", "test")])})
    assert all((index.root / path).is_file() for path in index.paths)


def test_different_drives_are_refused(two, monkeypatch):
    def fail(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", fail)
    with pytest.raises(ValueError, match="no folder in common. Keep the sources on one drive"):
        join(two)


def test_names_with_a_slash_and_no_source_are_refused(two):
    with pytest.raises(ValueError, match="cannot be named 'a/b'"):
        join({"a/b": two["rich"]})
    with pytest.raises(ValueError, match="No source to join"):
        join({})


# ---------------------------------------------------------------------- leaks


def test_training_on_rstpreid_and_testing_on_msmt17_is_refused(trees):
    rstpreid, msmt17 = (read_with(name, trees[name], HoldOut(val_share=0)) for name in ("rstpreid", "msmt17"))
    train = rstpreid.select(rstpreid.rows("train"))
    test = msmt17.select(msmt17.rows("query", "gallery"))
    for sources in ({"rstpreid": train, "msmt17": test}, {"msmt17": test, "rstpreid": train}):
        with pytest.raises(ValueError, match="rstpreid would be trained on and msmt17 tested on.*made from msmt17"):
            join(sources)
    for part in ("val", "query"):
        held = IdentityIndex.build(msmt17.root, ["x.jpg"], ["x"], [part], origins=["msmt17"])
        for sources in ({"r": train, "m": held}, {"m": held, "r": train}):
            with pytest.raises(ValueError, match=f"r would be trained on and m {'valid' if part == 'val' else 't'}"):
                join(sources)
    turned = {"msmt17": msmt17.select(msmt17.rows("train")), "rstpreid": rstpreid.select(rstpreid.rows("test"))}
    with pytest.raises(ValueError, match="msmt17 would be trained on and rstpreid tested on"):
        join(turned)


def test_training_on_both_warns_once_and_testing_on_both_is_fine(trees, caplog):
    rstpreid, msmt17 = (read_with(name, trees[name], HoldOut(val_share=0)) for name in ("rstpreid", "msmt17"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        index = join({"r": rstpreid.select(rstpreid.rows("train")), "m": msmt17.select(msmt17.rows("train"))})
    assert len(index) == 4 + 9 and index.origins == ("rstpreid", "msmt17")
    assert [r.getMessage() for r in caplog.records] == [
        "r and m are both made from msmt17: one identity may be trained on under two names."
    ]
    caplog.clear()
    join({"r": rstpreid.select(rstpreid.rows("test")), "m": msmt17.select(msmt17.rows("query", "gallery"))})
    assert not caplog.records


def test_one_data_set_read_twice_may_give_its_training_and_its_test(trees):
    """The same identities are named alike in both readings, so that a leak differs from a fair split."""
    market = read_with("market1501", trees["market1501"], HoldOut(val_share=0))
    parts = {"a": market.select(market.rows("train")), "b": market.select(market.rows("query", "gallery"))}
    assert len(join(parts)) == len(market)
    held_out = read_with("market1501", trees["market1501"], HoldOut(val_share=0.5))
    with pytest.raises(ValueError, match="the same dataset, and 2 identities that a trains on are tested on in b"):
        join({"a": parts["a"], "b": held_out.select(held_out.rows("val"))})


def test_two_drawn_worlds_of_one_layout_share_no_one(tmp_path):
    """Their identities are named alike and are not the same."""
    for name in ("one", "two"):
        TREES["vggface2"](tmp_path / name)
        (tmp_path / name / "world.json").write_text("{}")
    index = read_sources([Source(str(tmp_path / name)) for name in ("one", "two")], HoldOut(val_share=0.4))
    assert index.origins == () and len(index.names) == 10


@pytest.mark.parametrize("split", ["val", "test", "query", "gallery", "closed"])
def test_one_file_in_training_and_held_out_is_refused_through_links(tmp_path, split):
    touch(tmp_path, ["real/a/1.png", "real/a/2.png"])
    (tmp_path / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "copy/b").mkdir(parents=True)
    (tmp_path / "copy/b/9.png").symlink_to(tmp_path / "real/a/2.png")
    train = index_of(tmp_path / "real", [("a/1.png", "a", "train"), ("a/2.png", "a", "train")])
    for root, path in (("linked", "a/1.png"), ("copy", "b/9.png"), ("real", "a/../a/2.png"), ("real/a", "1.png")):
        other = index_of(tmp_path / root, [(path, "x", split)])
        for sources in ({"one": train, "two": other}, {"two": other, "one": train}):
            with pytest.raises(
                ValueError, match="1 files that one trains on are held out in two, such as .*real/a/.*png"
            ):
                join(sources)
    (tmp_path / "copy/b/9.png").unlink()
    touch(tmp_path, ["copy/b/9.png"])
    assert len(join({"one": train, "two": index_of(tmp_path / "copy", [("b/9.png", "x", split)])})) == 3


# ---------------------------------------------------------------------- sources


def test_a_single_source_is_read_as_it_is(trees):
    index = read_sources([Source(str(trees["market1501"]))], HoldOut(val_share=0.3, seed=2))
    assert index.manifest() == read_with("market1501", trees["market1501"], HoldOut(val_share=0.3, seed=2)).manifest()


def test_sources_are_named_after_their_readers_unless_named(trees, tmp_path):
    for part in ("one", "two"):
        TREES["petface"](tmp_path / part)
    sources = [
        Source(str(tmp_path / "one"), options={"families": ["cat"]}, splits=["train", "val"]),
        Source(str(tmp_path / "two"), "petface", options={"families": ["dog"]}, splits=["val"]),
        Source(str(trees["vggface2"]), splits=["train"]),
        Source(str(trees["sop"]), name="shop", splits=["train"]),
    ]
    index = read_sources(sources, HoldOut(val_share=0))
    assert {name.split("/")[0] for name in index.names} == {"petface", "petface-2", "vggface2", "shop"}
    assert len(index) == 8 + 2 + 9 + 6 and all((index.root / path).is_file() for path in index.paths)


def test_sources_keep_the_splits_that_are_asked_for(trees):
    sources = [
        Source(str(trees["market1501"]), splits=["query", "gallery"]),
        Source(str(trees["sop"]), splits=["train"]),
    ]
    index = read_sources(sources)
    assert set(index.splits) == {"query", "gallery", "train"}
    with pytest.raises(ValueError, match="has no split 'closed'. It has train, val, query, gallery"):
        read_sources([Source(str(trees["market1501"]), splits=["train", "closed"])])
    with pytest.raises(ValueError, match="has no split"):
        read_sources([Source(str(trees["market1501"]), splits=[])])


def test_sources_join_each_its_own_attributes(trees, tmp_path):
    TREES["folder"](tmp_path)
    lines = [f"{name}/{k}.jpg,{name[0]}" for name in ("rex", "bella", "tom", "kim") for k in (1, 2)]
    (tmp_path / "attributes.csv").write_text("\n".join(["path,letter", *lines]))
    index = read_sources([Source(str(tmp_path)), Source(str(trees["sop"]), splits=["train"])])
    letters = dict(zip((index.names[i] for i in index.identities), index.attributes["letter"].tolist(), strict=True))
    assert letters["folder/rex"] == "r" and letters["sop/00001"] == ""


def test_a_manifest_is_read_instead_of_the_sources(trees, tmp_path):
    sources = [Source(str(trees["sop"])), Source(str(trees["petface"]))]
    index = read_sources(sources, HoldOut(val_share=0.3))
    index.save(tmp_path / "manifest.csv")
    again = read_sources(sources, HoldOut(val_share=0.9), tmp_path / "manifest.csv")
    assert again.root == index.root and again.manifest() == index.manifest() and len(again.pairs) == len(index.pairs)
    single = read_sources(sources[:1])
    single.save(tmp_path / "single.csv")
    assert read_sources(sources[:1], manifest=tmp_path / "single.csv").root == single.root == trees["sop"]


def test_sources_of_one_name_and_none_are_refused(trees):
    twice = [Source(str(trees["sop"]), name="x"), Source(str(trees["lfw"]), name="x")]
    with pytest.raises(ValueError, match="Two sources are named 'x'"):
        read_sources(twice)
    with pytest.raises(ValueError, match="No source to read"):
        read_sources([])
    names = [Source(str(trees["sop"]), name="lfw", splits=["test"]), Source(str(trees["lfw"]))]
    assert {name.split("/")[0] for name in read_sources(names).names} == {"lfw", "lfw-2"}
