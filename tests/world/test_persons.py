"""The persons: Market-1501's layout with queries in both outfits, and labels that fit the pixels."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import files_of
from tests.world.conftest import PERSONS, grown
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with
from zoo.world import Persons
from zoo.world.bodies.clothes import BAGS, BOTTOMS, COLOURS, HAIRS, PATTERNS, TOPS, paint_clothes
from zoo.world.render.geometry import Camera
from zoo.world.render.solids import trace
from zoo.world.render.surveillance import SITES
from zoo.world.render.texture import Noise, stream
from zoo.world.rendered import RenderedDataset

SMALL = PERSONS


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(SMALL)


def held_out(world: Persons) -> list[int]:
    return [identity for identity in range(world.identities) if world.split_of(identity) == "test"]


@pytest.mark.parametrize("size", [32, 75, 128])
def test_an_image_is_half_as_wide_as_high(size: int) -> None:
    sample = replace(SMALL, size=size).render(0, 0)
    assert sample.image.shape == (size, size // 2, 3) and sample.mask.shape == (size, size // 2)
    x, y, w, h = sample.box
    assert sample.mask[y : y + h, x : x + w].sum() == sample.mask.sum() > 0


def test_a_person_fills_the_box_of_a_detector() -> None:
    world = replace(SMALL, size=64)
    boxes = np.array([world.render(k, v).box for k in range(12) for v in range(5)])
    tall, across = boxes[:, 3] / 64, boxes[:, 0] + boxes[:, 2] / 2
    assert 0.8 < np.median(tall) < 0.97
    assert np.abs(across - 16).mean() < 3  # near the middle, but not in it
    assert across.std() > 0.3 and tall.std() > 0.02


# ------------------------------------------------------------------ layout


def test_the_layout_is_that_of_market1501(root: Path) -> None:
    assert SMALL.READER == "market1501"
    written = [name for name in files_of(root) if name.endswith(".jpg")]
    assert len(written) == SMALL.images == 120
    for identity in range(SMALL.identities):
        for view in range(SMALL.views):
            path = SMALL.path_of(identity, view)
            match = re.match(r"([-\d]+)_c(\d)", Path(path).name)
            assert path in written and match
            assert int(match[1]) == identity + 1 and int(match[2]) == SMALL.camera_of(identity, view)
            of_test = SMALL.split_of(identity) == "test"
            assert path.startswith("bounding_box_train") != of_test
    with Image.open(root / SMALL.path_of(0, 0)) as picture:
        assert picture.format == "JPEG" and picture.size == (16, 32)


def test_the_reader_finds_every_identity_in_its_split(root: Path) -> None:
    index = read_with("market1501", root, HoldOut(val_share=0.2))
    assert len(index) == SMALL.images
    test = {f"{k + 1:04d}" for k in held_out(SMALL)}
    for split in ("query", "gallery"):
        assert {index.names[k] for k in index.identities[index.rows(split)]} == test
    known = {index.names[k] for k in index.identities[index.rows("train", "val")]}
    assert len(known) == SMALL.identities - len(test) and not known & test
    assert set(index.cameras.tolist()) == set(range(6))


@pytest.mark.parametrize("views", [4, 5, 7, 10])
def test_queries_of_both_kinds_have_a_gallery_image_from_another_camera(views: int) -> None:
    world = replace(SMALL, views=views, families=12)
    for identity in held_out(world):
        cameras: dict[str, list[int]] = {"same": [], "changed": [], "gallery": []}
        for view in range(views):
            of_query = world.path_of(identity, view).startswith("query/")
            worn = world.worn(identity, view)
            assert of_query or worn == 0  # the whole gallery wears the first outfit
            kind = ("same", "changed")[worn] if of_query else "gallery"
            cameras[kind].append(world.camera_of(identity, view))
        for kind in ("same", "changed"):
            assert cameras[kind]
            assert all(set(cameras["gallery"]) - {camera} for camera in cameras[kind])
        if views == 10:
            assert {kind: len(found) for kind, found in cameras.items()} == {"same": 2, "changed": 2, "gallery": 6}


def test_identities_of_training_wear_either_outfit_before_every_camera() -> None:
    world = replace(SMALL, views=12)
    for identity in set(range(world.identities)) - set(held_out(world)):
        seen = {(world.camera_of(identity, view), world.worn(identity, view)) for view in range(12)}
        assert len(seen) == 12


# ------------------------------------------------------------------ what is drawn


def test_attributes_are_the_familys_or_the_persons_or_the_views() -> None:
    world = replace(SMALL, difficulty=0.2)
    vocabulary = {
        "clothes": ("same", "changed"), "top": TOPS, "top_colour": COLOURS, "top_pattern": PATTERNS,
        "bottom": BOTTOMS, "bottom_colour": COLOURS, "hair": HAIRS, "bag": BAGS, "background": SITES,
        "side": ("front", "back", "left", "right"), "camera": tuple("123456"),
    }  # fmt: skip
    of_outfit: dict[tuple[int, str], set[tuple[str, ...]]] = {}
    of_person: dict[int, set[tuple[str, ...]]] = {}
    of_camera: dict[str, set[str]] = {}
    for identity in range(world.identities):
        for view in range(6):
            words = world.render(identity, view).attributes
            assert all(words[name] in known for name, known in vocabulary.items())
            family = (identity // world.members, words["clothes"])
            garments = ("top", "top_colour", "top_pattern", "bottom", "bottom_colour")
            of_outfit.setdefault(family, set()).add(tuple(words[name] for name in garments))
            of_person.setdefault(identity, set()).add(
                tuple(words[name] for name in ("hair", "hair_colour", "bag", "hat"))
            )
            of_camera.setdefault(words["camera"], set()).add(words["background"])
            assert int(words["camera"]) == world.camera_of(identity, view)
    assert len(of_outfit) == 12 and all(len(words) == 1 for words in of_outfit.values())
    assert all(of_outfit[family, "same"] != of_outfit[family, "changed"] for family in range(6))
    assert all(len(words) == 1 for words in of_person.values())
    kin = [of_person[2 * family] != of_person[2 * family + 1] for family in range(6)]
    assert sum(kin) >= 4  # members of most families differ even in words
    assert all(len(places) == 1 for places in of_camera.values())
    assert len(set.union(*of_camera.values())) == 6


def painted(world: Persons, identity: int, worn: int, azimuth: float = 0.0) -> np.ndarray:
    """Colours (3, 80, 40) in linear light of a person at rest, without light or background; NaN beside it."""
    person = world.person(identity)
    rest = person.rests[worn]
    tall = person.wearer.build.height
    camera = Camera.orbit(np.array([0, 0, tall / 2], np.float32), azimuth, 0.0, 8.0, 0.0)
    rays = replace(camera, zoom=2 * 8.0 / (1.08 * tall)).rays(80, 40)
    hits = trace(rest.solids, camera.origin, rays, 0.018)
    picture = np.full((3, 80 * 40), np.nan, np.float32)
    folds = Noise(stream(1), 0.1)
    folds.wave *= 0
    folds.phase *= 0
    picture[:, hits.ray] = paint_clothes(person.wearer, person.outfits[worn], hits, rest, folds)
    return picture.reshape(3, 80, 40)


def word_of(patch: np.ndarray) -> str:
    """Name of the colour nearest to the median of a patch (3, H, W) in linear light."""
    shown = np.nanmedian(patch.reshape(3, -1), 1) ** (1 / 2.2) * 255
    return min(COLOURS, key=lambda word: float(np.abs(np.array(COLOURS[word]) - shown).sum()))


def test_colour_words_are_the_colours_of_the_clothes() -> None:
    world = replace(SMALL, families=60, members=1, difficulty=1.0)
    right: dict[str, list[bool]] = {"top": [], "bottom": []}
    for identity in range(60):
        person = world.person(identity)
        for worn, outfit in enumerate(person.outfits):
            picture = painted(world, identity, worn, np.pi)  # from behind: no prints, no zips
            if outfit.pattern in ("plain", "print") and person.wearer.bag == "none":
                right["top"].append(word_of(picture[:, 24:34, 17:23]) == outfit.top_word)
            if outfit.top != "coat" and person.wearer.bag != "shoulder_bag":
                right["bottom"].append(word_of(picture[:, 43:47, 12:28]) == outfit.bottom_word)
    assert len(right["top"]) >= 10 and len(right["bottom"]) >= 40
    assert np.mean(right["top"]) > 0.85 and np.mean(right["bottom"]) > 0.85  # some shades are near another word


def test_clothes_show_through_light_and_cameras() -> None:
    """Chests in light tops are brighter in the pictures than chests in dark ones."""
    world = replace(SMALL, families=40, members=1, size=48)
    bright: dict[bool, list[float]] = {True: [], False: []}
    for identity in range(40):
        for view in (0, 1, 4, 5):
            outfit = world.person(identity).outfits[world.worn(identity, view)]
            if outfit.top_word in ("white", "beige", "yellow", "black", "navy") and outfit.pattern == "plain":
                sample = world.render(identity, view)
                x, y, w, h = sample.box
                chest = sample.image[y + h // 4 : y + h // 3 + 1, x + w // 3 : x + 2 * w // 3 + 1]
                bright[outfit.top_word in ("white", "beige", "yellow")].append(float(np.median(chest)))
    assert min(len(found) for found in bright.values()) >= 6
    assert np.median(bright[True]) > np.median(bright[False]) + 40


def test_the_side_is_the_side_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    facing: list[np.ndarray] = []

    def look(looks, outfit, hits, rest, folds):  # type: ignore[no-untyped-def]
        facing.append(hits.normal.mean(1))
        return np.ones_like(hits.point)

    monkeypatch.setattr("zoo.world.persons.paint_clothes", look)
    sides = set()
    for view in range(10):
        for identity in (0, 1, 4):
            side = SMALL.render(identity, view).attributes["side"]
            ahead, left, _ = facing[-1]
            along, value = {"front": (ahead, 1), "back": (ahead, -1), "left": (left, 1), "right": (left, -1)}[side]
            assert along * value > 0
            sides.add(side)
    assert len(sides) == 4


def test_the_mask_is_where_the_person_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dyed black, the picture changes all over the mask and, rim apart, only there."""
    world = replace(SMALL, size=64)
    before = [world.render(k, v) for k, v in ((0, 0), (5, 3), (9, 8))]
    monkeypatch.setattr(
        "zoo.world.persons.paint_clothes", lambda looks, outfit, hits, rest, folds: np.zeros_like(hits.point)
    )
    after = [world.render(k, v) for k, v in ((0, 0), (5, 3), (9, 8))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        changed = np.abs(one.image.astype(int) - other.image).sum(-1) > 0
        near = grown(one.mask, steps=5)  # lenses blur by up to five pixels
        assert changed[one.mask].mean() > 0.9 and not changed[~near].any()
        assert 0.1 < one.mask.mean() < 0.6


def spread(difficulty: float) -> float:
    """Mean difference between the members of a family at rest in the same outfit."""
    world = Persons(families=8, members=3, difficulty=difficulty)
    gaps = []
    for family in range(world.families):
        seen = [np.nan_to_num(painted(world, family * 3 + member, 0)) for member in range(3)]
        gaps += [np.abs(seen[a] - seen[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    return float(np.mean(gaps))


def test_difficulty_makes_members_alike() -> None:
    easy, middle, twins = spread(0.0), spread(0.5), spread(1.0)
    assert easy > 1.1 * middle > 1.1 * 1.5 * twins
    assert twins > 0.001  # even at the end they are not the same person


def test_cameras_see_with_a_cast_of_their_own() -> None:
    """The mean colour of pictures differs more between cameras than between people before one camera."""
    world = replace(SMALL, views=12)
    means: dict[int, list[np.ndarray]] = {}
    for identity in range(12):
        for view in range(6):
            sample = world.render(identity, view)
            means.setdefault(world.camera_of(identity, view), []).append(sample.image[~sample.mask].mean(0))
    between = np.var([np.mean(found, 0) for found in means.values()], 0).sum()
    within = np.mean([np.var(found, 0).sum() for found in means.values()])
    assert between > within


# ------------------------------------------------------------------ fields


def test_defaults_make_four_thousand_images() -> None:
    world = Persons()
    assert (world.images, world.size) == (4000, 128)
    assert len(held_out(world)) == 100
    assert replace(world, size=64).folder != world.folder


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"views": 3}, "views must be at least 4, got 3: two for the gallery"),
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"families": 2}, "families must be at least 3, got 2"),
        ({"size": 8}, "size must be at least 32"),
        ({"difficulty": -0.1}, "difficulty must be from 0 to 1, got -0.1"),
    ],
)
def test_bad_fields_are_refused(change: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(SMALL, **change)
