"""Cameras whose rule would leave nothing to find."""

import logging
from pathlib import Path

import numpy as np
import pytest

from zoo.data.cameras import without_useless_cameras
from zoo.data.index import IdentityIndex
from zoo.data.join import join


def index_of(*rows, root="/data"):
    """rows: (identity, split, camera)"""
    names, splits, cameras = zip(*rows, strict=True)
    return IdentityIndex.build(Path(root), [f"{i}.png" for i in range(len(rows))], names, splits, cameras=cameras)


@pytest.mark.parametrize("seed", range(5))
def test_positives_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    names, cameras = rng.integers(0, 4, 30).astype(str), rng.integers(-1, 3, 30)
    index = index_of(*zip(names, ["test"] * 30, cameras, strict=True))
    queries, gallery = np.flatnonzero(rng.random(30) < 0.5), np.flatnonzero(rng.random(30) < 0.7)
    for by_camera in (True, False):
        by_hand = [
            sum(
                g != q and names[g] == names[q] and not (by_camera and cameras[q] >= 0 and cameras[g] == cameras[q])
                for g in gallery
            )
            for q in queries
        ]
        assert index.positives(queries, gallery, by_camera).tolist() == by_hand and sum(by_hand) > 0


def test_one_camera_for_each_identity_leaves_nothing_and_is_ignored(caplog):
    """Several cameras, and yet all positives are junk."""
    rows = [("a", "test", 0), ("a", "test", 0), ("b", "test", 1), ("b", "test", 1), ("lone", "test", 2)]
    with caplog.at_level(logging.WARNING):
        index = without_useless_cameras(index_of(*rows, ("t", "train", 0), ("v", "val", 0), ("v", "val", 1)))
    assert index.cameras.tolist() == [-1] * 6 + [0, 1], "val keeps its own"
    assert "4 of 4 queries" in caplog.text and "all positives would be junk" in caplog.text


def test_cameras_that_cost_most_queries_are_kept_with_a_warning(caplog):
    rows = [("a", "query", 0), ("a", "gallery", 1), ("b", "query", 0), ("b", "gallery", 0), ("b", "gallery", 0)]
    few, many = index_of(*rows), index_of(*rows, ("b", "query", 0))
    with caplog.at_level(logging.WARNING):
        assert without_useless_cameras(few).cameras.tolist() == few.cameras.tolist()
        assert not caplog.text, "half of them"
        assert without_useless_cameras(many).cameras.tolist() == many.cameras.tolist()
    assert "2 of 3 queries" in caplog.text and "left out of the scores" in caplog.text


def test_a_source_with_one_camera_is_judged_apart_from_the_others(caplog):
    several = index_of(("a", "test", 0), ("a", "test", 1), ("b", "test", 0), ("b", "test", 1), root="/data/several")
    constant = index_of(
        ("a", "test", 0), ("a", "test", 0), ("b", "test", 0), ("c", "train", 0), ("v", "val", 0), root="/data/one"
    )
    with caplog.at_level(logging.WARNING):
        index = without_useless_cameras(join({"several": several, "one": constant}))
    assert index.cameras.tolist() == [0, 1, 0, 1, -1, -1, -1, -1, 2]
    assert "source one" in caplog.text and "2 of 2 queries" in caplog.text and "source several" not in caplog.text
