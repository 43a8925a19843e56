"""The pets: the same bytes every time, honest splits, labels that fit the pixels, and safe interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import files_of
from zoo.world import Pets
from zoo.world.bodies.anatomy import Pose, pose_body
from zoo.world.bodies.coat import Skin, paint_coat
from zoo.world.render.geometry import Camera
from zoo.world.render.solids import trace

SEARCH = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
SMALL = Pets(families=5, members=2, views=2, size=40, seed=3)


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "attributes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.prepare(tmp_path_factory.mktemp("worlds"), workers=1)


def test_two_workers_draw_the_same_bytes_as_one(root: Path, tmp_path: Path) -> None:
    assert files_of(SMALL.prepare(tmp_path, workers=2)) == files_of(root)


def test_a_second_call_draws_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert SMALL.prepare(root.parent, workers=2) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_every_field_names_another_folder() -> None:
    others = [
        replace(SMALL, **change)
        for change in ({"seed": 4}, {"size": 48}, {"difficulty": 0.9}, {"views": 3}, {"val_share": 0.3})
    ]
    assert len({world.folder for world in [SMALL, *others]}) == 6
    assert replace(SMALL, difficulty=1).folder == replace(SMALL, difficulty=1.0).folder


def test_another_seed_is_another_pet() -> None:
    same, other = SMALL.render(0, 0).image, replace(SMALL, seed=8).render(0, 0).image
    assert not np.array_equal(same, other)


def test_a_view_drawn_alone_equals_its_file(root: Path) -> None:
    world = replace(SMALL)  # a fresh object, asked in another order than the files were written in
    for identity, view in ((9, 1), (0, 1), (4, 0)):
        written = np.asarray(Image.open(root / world.path_of(identity, view)))
        np.testing.assert_array_equal(world.render(identity, view).image, written)


def test_a_view_does_not_depend_on_how_many_there_are() -> None:
    more = replace(SMALL, views=9, families=10)
    np.testing.assert_array_equal(SMALL.render(3, 1).image, more.render(3, 1).image)


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


def test_attributes_cover_every_image_and_boxes_fit(root: Path) -> None:
    rows = rows_of(root)
    assert {row["path"] for row in rows} == {name for name in files_of(root) if name.endswith(".png")}
    assert len(rows) == SMALL.images
    names = {SMALL.name_of(k): k for k in range(SMALL.identities)}
    for row in rows:
        sample = SMALL.render(names[row["identity"]], int(Path(row["path"]).stem))
        x, y, w, h = (int(row[name]) for name in "xywh")
        inside = np.zeros_like(sample.mask)
        inside[y : y + h, x : x + w] = True
        assert not (sample.mask & ~inside).any()
        assert sample.mask[y].any() and sample.mask[y + h - 1].any()
        assert sample.mask[:, x].any() and sample.mask[:, x + w - 1].any()
        assert {name: row[name] for name in sample.attributes} == sample.attributes
    about = json.loads((root / "world.json").read_text())
    assert sum(about["images"].values()) == len(rows)


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
    near = before.mask.copy()
    for axis, by in ((0, 1), (1, 1)) * 4:
        near |= np.roll(near, by, axis) | np.roll(near, -by, axis)
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


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"families": 2}, "families must be at least 3, got 2"),
        ({"size": 8}, "size must be at least 32"),
        ({"members": 2.5}, "members must be at least 1, got 2.5"),
        ({"difficulty": 1.5}, "difficulty must be from 0 to 1, got 1.5"),
        ({"val_share": 0.5, "test_share": 0.8}, "leave none to train on"),
    ],
)
def test_bad_fields_are_refused(change: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(SMALL, **change)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        SMALL.prepare(tmp_path, workers=0)
    with pytest.raises(IndexError, match="identity must be from 0 to 9, got 10"):
        SMALL.render(10, 0)
    with pytest.raises(IndexError, match="view must be from 0 to 1, got 2"):
        SMALL.render(4, 2)  # a test cat; training pets have more
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*INSTANCE_ZOO_HOME"):
        SMALL.prepare(tmp_path / "file", workers=1)


def test_a_killed_render_goes_on_where_it_was(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    code = (
        "import time; from zoo.world import Pets\n"
        "render = Pets.render\n"
        "Pets.render = lambda self, *key: (time.sleep(0.1), render(self, *key))[1]\n"
        f"Pets(families=5, members=2, views=2, size=40, seed=3).prepare({str(tmp_path)!r}, workers=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=SEARCH) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/.partial/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    partial = tmp_path / SMALL.folder
    complete = {json.loads(record.read_text())[0]["identity"] for record in partial.glob(".partial/*.json")}
    names = {SMALL.name_of(k): k for k in range(SMALL.identities)}
    paths = [partial / SMALL.path_of(names[n], v) for n in complete for v in range(SMALL.views_of(names[n]))]
    kept = {path: path.stat().st_mtime_ns for path in paths}
    assert 2 <= len(complete) < SMALL.identities and not (partial / "world.json").exists()
    assert SMALL.prepare(tmp_path, workers=2) == partial
    assert "Going on with" in capfd.readouterr().err
    assert files_of(partial) == files_of(root)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_two_processes_may_prepare_one_world(root: Path, tmp_path: Path) -> None:
    fields = "families=5, members=2, views=2, size=40, seed=3"
    code = f"from zoo.world import Pets; Pets({fields}).prepare({str(tmp_path)!r}, workers=2)"
    both = [subprocess.Popen([sys.executable, "-c", code], env=SEARCH) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert files_of(tmp_path / SMALL.folder) == files_of(root)


def test_a_world_of_a_script_is_drawn_in_its_own_process(tmp_path: Path) -> None:
    """Its main module runs once, even without a guard."""
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\nfrom zoo.world import Pets\nprint('runs')\n"
        "@dataclass(frozen=True)\nclass Mine(Pets):\n    pass\n"
        "for kind in (Mine, Pets):\n"
        "    world = kind(families=3, members=1, views=2, size=32)\n"
        f"    world.prepare({str(tmp_path)!r} + '/cache_' + kind.__name__, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], env=SEARCH, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["runs"]
    assert len(list(tmp_path.glob("cache_*/*/images/*/*/*.png"))) == 2 * (3 * 2 + 2)


def test_importing_the_world_is_cheap() -> None:
    code = "import sys, zoo.world; print(*(m in sys.modules for m in ('zoo.world.pets', 'torch', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], env=SEARCH, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
