"""What holds of the world of every category: the same bytes, whole families held out, boxes and masks that fit."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import files_of
from tests.world.conftest import WORLDS
from tests.world.marbles import Marbles
from zoo.data.readers import read_with
from zoo.world import Pets, World
from zoo.world.base import box_of
from zoo.world.rendered import RenderedDataset
from zoo.world.things.crafts import CRAFTS


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


# Bytes.


def test_two_workers_draw_the_same_bytes_as_one(
    world: World, prepared: Callable[[RenderedDataset], Path], tmp_path: Path
) -> None:
    assert files_of(world.prepare(tmp_path, workers=2)) == files_of(prepared(world))


@pytest.mark.parametrize(
    ("name", "keys", "more"),
    [
        ("faces", [(9, 1), (0, 1), (4, 0), (0, 0)], {"views": 7, "families": 9}),
        ("objects", [(k, v) for k in range(0, 28, 5) for v in (0, 1)], {"views": 5, "families": 20}),
        ("persons", [(0, 0), (0, 7), (5, 0), (5, 7)], {"views": 12}),
        ("pets", [(3, 1), (9, 1), (0, 1), (4, 0)], {"views": 9, "families": 10}),
    ],
)
def test_a_view_depends_on_nothing_but_its_numbers(name: str, keys: list[tuple[int, int]], more: dict) -> None:
    """Neither on what was drawn before nor on how many there are."""
    first = {key: WORLDS[name].render(*key) for key in keys}
    fresh = replace(WORLDS[name], **more)
    for key in reversed(keys):
        again = fresh.render(*key)
        np.testing.assert_array_equal(again.image, first[key].image)
        np.testing.assert_array_equal(again.mask, first[key].mask)
        assert (again.box, again.attributes) == (first[key].box, first[key].attributes)
    assert len({sample.image.tobytes() for sample in first.values()}) == len(keys)


@pytest.mark.parametrize(("name", "seed"), [("faces", 8), ("objects", 3 + len(CRAFTS)), ("persons", 4), ("pets", 8)])
def test_another_seed_view_or_member_is_another_picture(name: str, seed: int) -> None:
    world = WORLDS[name]
    pictures = [world.render(0, 0), world.render(0, 1), world.render(1, 0), replace(world, seed=seed).render(0, 0)]
    assert len({sample.image.tobytes() for sample in pictures}) == 4


# Splits.


@pytest.mark.parametrize(("val_share", "test_share"), [(0.0, 0.0), (0.1, 0.25), (0.3, 0.3)])
def test_families_are_held_out_whole(val_share: float, test_share: float) -> None:
    world = Pets(families=20, members=3, views=2, val_share=val_share, test_share=test_share)
    splits: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for identity in range(world.identities):
        splits[world.split_of(identity)].add(identity // world.members)
    assert all(splits.values())
    assert sum(len(families) for families in splits.values()) == world.families  # no family is in two
    assert len(splits["test"]) == max(1, round(20 * test_share))


def test_splits_have_their_share_of_every_species() -> None:
    world = Pets(families=40, members=1, views=2, test_share=0.25)
    tested = [world.kind(k) for k in range(40) if world.split_of(k) == "test"]
    assert {tested.count(species) for species in set(tested)} == {2}
    assert len(set(tested)) == 5


# What is on disk.


def test_attributes_cover_every_image_and_boxes_fit(world: World, prepared: Callable[[RenderedDataset], Path]) -> None:
    root = prepared(world)
    with (root / "attributes.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert set(rows) == {path for path in files_of(root) if path.lower().endswith((".jpg", ".png"))}
    assert len(rows) == world.images == sum(json.loads((root / "world.json").read_text())["images"].values())
    for identity in range(world.identities):
        for view in range(world.views_of(identity)):
            row, sample = rows[world.path_of(identity, view)], world.render(identity, view)
            assert row["identity"] == world.name_of(identity)
            assert {name: row[name] for name in sample.attributes} == sample.attributes
            x, y, w, h = sample.box
            assert sample.box == box_of(sample.mask) == tuple(int(row[side]) for side in "xywh")
            assert sample.mask[y : y + h, x : x + w].sum() == sample.mask.sum() > 0
            assert sample.mask[y].any() and sample.mask[y + h - 1].any()
            assert sample.mask[:, x].any() and sample.mask[:, x + w - 1].any()
            written = np.asarray(Image.open(root / row["path"]), int)
            if row["path"].endswith(".png"):
                np.testing.assert_array_equal(written, sample.image)
            else:
                assert np.abs(written - sample.image).mean() < 4  # JPEG


# Fields.


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"families": 2}, "families must be at least 3, got 2"),
        ({"size": 8}, "size must be at least 32"),
        ({"members": 2.5}, "members must be at least 1, got 2.5"),
        ({"difficulty": 1.5}, "difficulty must be from 0 to 1, got 1.5"),
        ({"difficulty": -0.1}, "difficulty must be from 0 to 1, got -0.1"),
        ({"val_share": 0.5, "test_share": 0.8}, "leave none to train on"),
    ],
)
def test_bad_fields_are_refused(world: World, change: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(world, **change)


def test_bad_numbers_are_refused(world: World) -> None:
    last = world.identities - 1
    with pytest.raises(IndexError, match=f"identity must be from 0 to {last}, got {last + 1}"):
        world.render(last + 1, 0)
    held_out = next(k for k in range(world.identities) if world.split_of(k) == "test")
    with pytest.raises(IndexError, match=f"view must be from 0 to {world.views - 1}, got {world.views}"):
        world.render(held_out, world.views)


# One more category.


def test_a_new_world_is_one_class_and_is_read_by_the_reader_it_names(tmp_path: Path) -> None:
    world = Marbles(families=6, members=2, views=3, size=32)
    root = world.prepare(tmp_path, workers=2)
    index = read_with(world.READER, root)
    assert len(index) == world.images == 36
    for split in ("train", "val", "test"):
        names = {index.names[k] for k in index.identities[index.rows(split)]}
        assert names == {world.name_of(k) for k in range(world.identities) if world.split_of(k) == split}
