"""The pets: PetFace's lists, attributes that single out nobody, members that differ, and masks that fit."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.world.conftest import PETS, grown
from zoo.world import Pets
from zoo.world.bodies.anatomy import Pose, pose_body
from zoo.world.bodies.coat import Skin, paint_coat
from zoo.world.render.geometry import Camera
from zoo.world.render.solids import trace
from zoo.world.rendered import RenderedDataset

SMALL = PETS


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "attributes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(SMALL)


def test_the_lists_of_petface_agree_with_the_splits(root: Path) -> None:
    split = {f"{SMALL.path_of(k, v)}": SMALL.split_of(k) for k in range(10) for v in range(SMALL.views_of(k))}
    identity = {row["path"]: row["identity"] for row in rows_of(root)}
    listed: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder in (root / "split").iterdir():
        tables = {p.stem: [r for r in csv.reader(p.open())][p.suffix == ".csv" :] for p in folder.iterdir()}
        for name in ("train", "val", "test"):
            listed[name] += [f"images/{row[0]}" for row in tables[name]]
        labels = {identity[f"images/{path}"]: label for path, label in tables["train"]}
        assert sorted(labels.values()) == [str(n) for n in range(len(labels))]
        for path, label in tables["reidentification"]:
            assert labels[identity[f"images/{path}"]] == label and f"images/{path}" not in listed["train"]
        assert len(tables["reidentification"]) == 2 * len(labels)
        for first, second, same in tables["verification"]:
            one, other = identity[f"images/{first}"], identity[f"images/{second}"]
            assert first != second and (one == other) == (same == "1")
            assert split[f"images/{first}"] == split[f"images/{second}"] == "test"
    assert sorted(sum(listed.values(), [])) == sorted(p for p in split if split[p] != "train" or int(p[-6:-4]) < 2)
    assert all(split[path] == name for name in listed for path in listed[name])


@pytest.mark.parametrize("identity", range(5))
def test_the_mask_is_where_the_pet_is_seen(identity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its coat dyed black the picture changes all over the mask and, rim apart, only there."""
    world = Pets(families=5, members=1, views=2, size=64)
    before = world.render(identity, 0)
    black = np.zeros(1, np.float32)
    monkeypatch.setattr("zoo.world.pets.paint_coat", lambda coat, skin, body: (skin.face * 0, skin.low * 0 + black))
    after = world.render(identity, 0)
    np.testing.assert_array_equal(before.mask, after.mask)
    changed = np.abs(before.image.astype(int) - after.image).sum(-1) > 0
    near = grown(before.mask)
    assert changed[before.mask].mean() > 0.9
    assert not changed[~near].any()
    assert 0.03 < before.mask.mean() < 0.8


def test_attributes_are_shared_by_several_identities() -> None:
    """No attribute, and no pair of them that the pet itself brings along, singles out an individual."""
    world = Pets(families=12, members=4, views=6, size=32, difficulty=0.2)
    seen: dict[tuple[str, str], set[int]] = {}
    fixed: dict[int, set[tuple[str, ...]]] = {}
    for identity in range(12):  # three families
        for view in range(world.views):
            attributes = world.render(identity, view).attributes
            for item in attributes.items():
                seen.setdefault(item, set()).add(identity)
            of_pet = tuple(attributes[name] for name in ("species", "coat", "pattern"))
            fixed.setdefault(identity // world.members, set()).add(of_pet)
    assert all(len(words) == 1 for words in fixed.values())  # the family shares them
    of_view = {name for name, _ in seen} - {"species", "coat", "pattern"}
    for name in of_view:  # and views do not go with the individual
        assert max(len(who) for (other, _), who in seen.items() if other == name) > 6


def painted(world: Pets, identity: int) -> np.ndarray:
    """Colours of the resting pet's skin from one fixed camera: no light, no background, the family's body."""
    pet, family = world.pet(identity), world.pet(identity // world.members * world.members)
    figure = pose_body(family.body, Pose())
    camera = Camera.orbit(np.array([0.1, 0, 0.4], np.float32), 0.7, 0.2, 4.5, 0.0)
    rays = replace(camera, zoom=6.0).rays(48)
    hits = trace(figure.solids, camera.origin, rays, 0.02)
    colour, _ = paint_coat(pet.coat, Skin.under(hits, figure, family.body), family.body)
    return np.sqrt(np.clip(colour, 0, 1))


def spread(difficulty: float) -> float:
    """Mean difference between members of a family, over families of every species."""
    world = Pets(families=10, members=3, views=2, difficulty=difficulty)
    gaps = []
    for family in range(world.families):
        skins = [painted(world, family * world.members + member) for member in range(world.members)]
        gaps += [np.abs(skins[a] - skins[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    return float(np.mean(gaps))


def test_difficulty_makes_members_alike() -> None:
    easy, middle, hard, twins = (spread(difficulty) for difficulty in (0.1, 0.5, 0.9, 1.0))
    assert easy > 1.2 * middle > 1.2 * 1.2 * hard
    assert hard > twins > 0.001  # even at the end they are not the same pet


def test_bodies_change_little_within_a_family() -> None:
    world = Pets(families=5, members=2, views=2, difficulty=0.0)
    for family in range(5):
        one, other = world.pet(2 * family).body, world.pet(2 * family + 1).body
        assert one != other and one.ear_kind == other.ear_kind
        assert abs(one.trunk / other.trunk - 1) < 0.16
