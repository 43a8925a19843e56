"""The scenes: the same bytes every time, masks and boxes that fit the pixels, whole splits, and COCO's layout."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import files_of
from tests.world.conftest import SCENES, SEARCH, grown
from zoo.data.captions import read_captions
from zoo.world import Objects, Persons, Pets, Scenes
from zoo.world.base import box_of
from zoo.world.bodies.anatomy import Pose
from zoo.world.pets import PlacedPet
from zoo.world.render.geometry import Camera
from zoo.world.render.scenery import Light, Surroundings
from zoo.world.render.setting import Setting
from zoo.world.render.texture import stream
from zoo.world.rendered import RenderedDataset
from zoo.world.scenes import CATEGORIES, run_lengths
from zoo.world.sentences import before, left_of, vocabulary, words_of

SMALL = SCENES
MANY = Scenes(scenes=400, families=20, members=3, seed=1)


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(SMALL)


@pytest.fixture(scope="module")
def drawn() -> list:
    return [MANY.render(k) for k in range(60)]


def table(root: Path, name: str, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"{name}_{split}.json").read_text())


# The same bytes.


def test_workers_of_another_process_with_more_threads_draw_the_same_bytes(root: Path, tmp_path: Path) -> None:
    code = (
        "from zoo.world import Scenes\n"
        f"Scenes(scenes=24, size=48, families=12, members=2, seed=3).prepare({str(tmp_path)!r}, workers=2)"
    )
    subprocess.run([sys.executable, "-c", code], env=SEARCH | {"OMP_NUM_THREADS": "3"}, check=True, capture_output=True)
    assert files_of(tmp_path / SMALL.folder) == files_of(root)


def test_a_scene_depends_on_its_number_alone() -> None:
    more = replace(SMALL, scenes=50)
    for scene in (7, 0):
        one, other = SMALL.render(scene), more.render(scene)
        np.testing.assert_array_equal(one.image, other.image)
        assert one.captions == other.captions and one.sentences == other.sentences
        assert SMALL.split_of(scene) == more.split_of(scene)
    assert not np.array_equal(SMALL.render(0).image, replace(SMALL, seed=4).render(0).image)


# Masks and boxes.


def test_masks_are_apart_and_boxes_are_tight(drawn: list) -> None:
    counts = set()
    for scene in drawn:
        counts.add(len(scene.instances))
        assert sum(one.mask.astype(int) for one in scene.instances).max() == 1
        for one in scene.instances:
            assert one.observed.box == box_of(one.mask)
            assert one.mask.mean() > 0.003
        middles = [one.observed.middle for one in scene.instances]
        assert middles == sorted(middles)
        assert len({one.identity for one in scene.instances}) == len(scene.instances)
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("scene", range(0, 30, 3))
def test_a_mask_is_where_the_instance_is_seen(scene: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that gives no light changes the picture all over its mask and, rim apart, only there."""
    before_ = MANY.render(scene)
    dark = before_.instances[scene % len(before_.instances)]
    for world in (Pets, Objects, Persons):
        monkeypatch.setattr(world, "subject", _unlit(world.subject, dark.identity))
    after = MANY.render(scene)
    changed = np.abs(before_.image.astype(int) - after.image).sum(-1) > 0
    near = grown(dark.mask)  # lens blur
    assert changed[dark.mask].mean() > 0.9
    assert not changed[~near].any()
    assert [one.observed for one in after.instances] == [one.observed for one in before_.instances]


def _unlit(make: Callable[..., Any], identity: str) -> Callable[..., Any]:
    def dark_subject(world: Any, number: int, rng: np.random.Generator) -> Any:
        subject = make(world, number, rng)
        if world.name_of(number) == identity:
            shine = subject.shine
            subject.shine = lambda *args: (0 * shine(*args)[0], shine(*args)[1])
        return subject

    return dark_subject


# Captions and sentences.


def test_sentences_agree_with_the_masks(drawn: list) -> None:
    relations = 0
    for scene in drawn:
        columns = [np.flatnonzero(one.mask.any(0)) for one in scene.instances]
        for text, about in scene.sentences:
            if len(about) < 2:
                continue
            relations += 1
            one, other = (columns[k] for k in about)
            if "to the left of" in text:
                assert np.median(one) < np.median(other) and one[0] < other[0] and one[-1] < other[-1]
            elif "to the right of" in text:
                assert np.median(one) > np.median(other) and one[0] > other[0] and one[-1] > other[-1]
            else:
                front, back = about if "in front of" in text else about[::-1]
                assert scene.instances[front].observed.distance < scene.instances[back].observed.distance
                assert len(np.intersect1d(one, other)) > 0
    assert relations > 60


def test_in_front_is_who_hides_the_other(drawn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other taken away, nothing more is seen of the one in front; of the one behind, often more is."""
    checked, uncovered = 0, 0
    for number, scene in enumerate(drawn):
        pairs = [(a, b) for a in scene.instances for b in scene.instances if before(a.observed, b.observed)]
        if len(scene.instances) != 2 or not pairs:
            continue
        alone = {}
        for row in range(4):
            with monkeypatch.context() as patch:
                patch.setattr("zoo.world.render.setting._owners", partial(_only, row))
                for one in MANY.render(number).instances:
                    alone[one.identity] = one.mask
        front, back = pairs[0]
        np.testing.assert_array_equal(alone[front.identity], front.mask)
        assert not (back.mask & ~alone[back.identity]).any()
        uncovered += int(alone[back.identity].sum() > back.mask.sum())
        checked += 1
    assert checked > 3 and uncovered > 1


def _only(row: int, depth: np.ndarray) -> np.ndarray:
    """Owners of the rays as if subject number ``row`` were the only one."""
    return np.where(np.isfinite(depth[row % len(depth)]), row % len(depth), -1)


def test_nothing_hidden_is_named() -> None:
    """A collar, a pattern and a pose are named where pixels show them, not from the individual's record."""
    setting = Setting(
        Camera.orbit(np.array([0, 0, 0.3], np.float32), 0.7, 0.1, 7.0, 0.0), "lawn", "noon",
        Light.draw("noon", 0.0, stream(1)), Surroundings.draw("lawn", 0.0, stream(2)), (),
    )  # fmt: skip
    camera = replace(setting.camera, zoom=5.0)
    collars = 0
    for number in range(0, 100, 5):
        posed = PlacedPet(Pets().pet(number), Pose("sitting"), 0.0, "red")
        met = posed.meet(camera, camera.rays(90))
        light, words = posed.shine(met, np.ones(len(met.ray), bool), setting)
        bare, without = PlacedPet(posed.pet, posed.pose, 0.0, "none").shine(met, np.ones(len(met.ray), bool), setting)
        red = np.abs(light - bare).max(0) > 0.02
        assert words["facing"] == "camera" and words["pose"] == "sitting" and "collar" not in without
        if "collar" in words:
            collars += 1
            _, hidden = posed.shine(met, ~red, setting)
            assert red.mean() > 0.01 and "collar" not in hidden
            _, hidden = posed.shine(met, met.point[2] < 0.1, setting)  # the paws alone
            assert not {"pose", "facing"} & set(hidden)
    assert collars > 1

    things = Objects()
    lamps = [k for k in range(0, things.identities, things.members) if things.kind(k // things.members) == "lamp"]
    checked = 0
    for number in lamps[:6]:
        lamp = things.subject(number, stream(4))
        met = lamp.meet(camera, camera.rays(90))
        main = lamp.thing.shapes.slot[met.element] == lamp.thing.shapes.slots.index("main")
        foot = ~main & (met.point[2] < 0.1)
        _, words = lamp.shine(met, main, setting)
        assert words["colour"] == lamp.thing.attributes["colour"]
        _, hidden = lamp.shine(met, foot, setting)
        finish, slots = lamp.thing.finish, set(lamp.thing.shapes.slots) - {"main"}
        if not any(np.allclose(finish.of_slot(slot)[0], finish.main, rtol=0.4, atol=0.03) for slot in slots):
            assert set(hidden) == {"category"}
            checked += 1
    assert checked


def test_every_word_is_in_the_vocabulary(drawn: list) -> None:
    texts = [text for scene in drawn for text in (*scene.captions, *(sentence.text for sentence in scene.sentences))]
    used = {word for text in texts for word in words_of(text)}
    assert used <= set(vocabulary())
    assert len(used) > 0.75 * len(vocabulary())  # which is no heap of words that never come
    assert all(text == " ".join(text.split()) and text[0] != " " for text in texts)


# Splits and identities.


def test_individuals_are_those_of_the_worlds_and_splits_share_none() -> None:
    worlds = (Pets(20, 3, seed=1), Objects(20, 3, seed=1), Persons(20, 3, seed=1))
    split_of = {world.name_of(k): world.split_of(k) for world in worlds for k in range(world.identities)}
    kinds = set()
    for number in range(90):
        for world, identity in MANY._choose(MANY.split_of(number), stream(9, number)):
            assert split_of[MANY.worlds[world].name_of(identity)] == MANY.split_of(number)
            kinds.add(world)
    assert kinds == {"pets", "objects", "persons"}
    assert MANY.worlds["pets"].pet(4).body == worlds[0].pet(4).body
    shares = [sum(MANY.split_of(k) == split for k in range(400)) / 400 for split in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.65, 0.1, 0.25], atol=0.01)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"scenes": 0}, "scenes must be at least 1, got 0"),
        ({"scenes": 3}, "3 scenes leave none for"),
        ({"families": 2}, "families must be at least 3"),
        ({"size": 8}, "size must be at least 32"),
        ({"difficulty": 2.0}, "difficulty must be from 0 to 1"),
    ],
)
def test_bad_fields_are_refused(change: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(SMALL, **change)
    with pytest.raises(IndexError, match="scene must be from 0 to 23, got 24"):
        SMALL.render(24)


# COCO's layout.


def test_lists_agree_with_the_pictures(root: Path) -> None:
    identities: dict[str, set[str]] = {}
    files = set()
    for split in ("train", "val", "test"):
        lists = {name: table(root, name, split) for name in ("instances", "captions", "sentences")}
        images = {image["id"]: image for image in lists["instances"]["images"]}
        names = {kind["id"]: kind["name"] for kind in lists["instances"]["categories"]}
        assert set(names.values()) == set(CATEGORIES)
        boxes = {row["id"]: row for row in lists["instances"]["annotations"]}
        assert len(boxes) == len(lists["instances"]["annotations"])
        for number, image in images.items():
            files.add(f"{split}/{image['file_name']}")
            pixels = np.asarray(Image.open(root / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            scene = SMALL.render(number)
            np.testing.assert_array_equal(pixels, scene.image)
            own = [row for row in boxes.values() if row["image_id"] == number]
            for row, one in zip(own, scene.instances, strict=True):
                assert tuple(row["bbox"]) == one.observed.box and row["area"] == one.mask.sum()
                assert row["identity"] == one.identity and names[row["category_id"]] == one.observed.kind
                assert row["attributes"] == one.observed.attributes and row["iscrowd"] == 0
                np.testing.assert_array_equal(decoded(row["segmentation"]), one.mask)
                identities.setdefault(split, set()).add(row["identity"])
            captions_there = [row["caption"] for row in lists["captions"]["annotations"] if row["image_id"] == number]
            assert captions_there == list(scene.captions) and len(captions_there) >= 2
        for row in lists["sentences"]["annotations"]:
            assert {boxes[k]["image_id"] for k in row["about"]} == {row["image_id"]}
        captions = read_captions(root, split)
        assert len(captions) == len(images) == sum(SMALL.split_of(k) == split for k in range(24))
    assert files == {name for name in files_of(root) if name.endswith(".png")}
    assert not identities["train"] & identities["test"] and not identities["train"] & identities["val"]


def decoded(runs: dict[str, Any]) -> np.ndarray:
    """A mask from COCO's run lengths, as its own tools read them: columns first, beginning with zeros."""
    value = np.arange(len(runs["counts"])) % 2 == 1
    return np.repeat(value, runs["counts"]).reshape(runs["size"], order="F")


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_any_mask(seed: int) -> None:
    masks = [np.zeros((3, 5), bool), np.ones((3, 5), bool), stream(seed).random((7, 4)) < 0.5]
    for mask in masks:
        runs = run_lengths(mask)
        np.testing.assert_array_equal(decoded(runs), mask)
        assert sum(runs["counts"]) == mask.size
        assert all(count > 0 for count in runs["counts"][1:])
    assert run_lengths(np.array([[True, False], [True, True]])) == {"counts": [0, 2, 1, 1], "size": [2, 2]}


def test_left_and_in_front_exclude_each_other(drawn: list) -> None:
    for scene in drawn:
        for one in scene.instances:
            for other in scene.instances:
                if one is not other and left_of(one.observed, other.observed, MANY.size):
                    assert not left_of(other.observed, one.observed, MANY.size)
                    assert not before(one.observed, other.observed) and not before(other.observed, one.observed)
