"""The objects: families that share what they should, lists that fit, and the side and colour that are visible."""

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.world.conftest import OBJECTS, SEARCH, grown
from zoo.world import Objects
from zoo.world.base import box_of
from zoo.world.objects import SOP_CATEGORIES
from zoo.world.render.geometry import Floats
from zoo.world.render.shapes import trace_shapes
from zoo.world.rendered import RenderedDataset
from zoo.world.things.crafts import CRAFTS
from zoo.world.things.finish import MATERIALS, PALETTE, Finish, PaintedSurface, paint_finish
from zoo.world.things.maker import Maker
from zoo.world.things.still_life import BACKGROUNDS, LIGHTS, PROPS, StillLife, frame_shapes

SMALL = OBJECTS
HEADER = "image_id class_id super_class_id path"


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(SMALL)


def lines_of(path: Path) -> list[tuple[int, int, int, str]]:
    header, *lines = path.read_text().splitlines()
    assert header == HEADER
    rows = [line.split(" ") for line in lines]
    return [(int(image), int(class_), int(super_), path) for image, class_, super_, path in rows]


# The same bytes.


def test_files_hold_what_render_draws_and_another_process_draws_the_same(root: Path, tmp_path: Path) -> None:
    code = (
        "from zoo.world import Objects\n"
        f"Objects(families=14, members=2, views=2, size=40, seed=3).prepare({str(tmp_path)!r}, workers=2)"
    )
    subprocess.run([sys.executable, "-c", code], env=SEARCH | {"OMP_NUM_THREADS": "3"}, check=True, capture_output=True)
    mine, others = (sorted(path for path in base.rglob("*") if path.is_file()) for base in (root, tmp_path / root.name))
    assert [path.relative_to(root) for path in mine] == [path.relative_to(tmp_path / root.name) for path in others]
    for one, other in zip(mine, others, strict=True):
        assert one.read_bytes() == other.read_bytes(), one
    sample = SMALL.render(9, 1)
    with Image.open(root / SMALL.path_of(9, 1)) as file:
        assert file.format == "JPEG"
        assert np.abs(np.asarray(file, int) - sample.image).mean() < 4  # quality 95, noise and all


# The layout of Stanford Online Products.


def test_lists_name_every_file_once_and_splits_share_no_class(root: Path) -> None:
    train, test, info = (lines_of(root / f"Ebay_{name}.txt") for name in ("train", "test", "info"))
    assert info == train + test
    assert [row[0] for row in info] == list(range(1, SMALL.images + 1))
    classes = [row[1] for row in info]
    assert sorted(set(classes)) == list(range(1, SMALL.identities + 1))
    assert max(row[1] for row in train) + 1 == min(row[1] for row in test)
    assert sorted(row[3] for row in info) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPG"))
    for _, _, super_class, path in info:
        assert path.split("_final/")[0] == SOP_CATEGORIES[super_class - 1]
    number_of = {path.rsplit("_", 1)[0]: class_ for _, class_, _, path in info}
    assert len(number_of) == SMALL.identities  # one class a product number, and the other way round
    assert all(number_of[path.rsplit("_", 1)[0]] == class_ for _, class_, _, path in info)


def test_lists_follow_the_splits_and_the_table_of_attributes(root: Path) -> None:
    where = {path: name for name in ("train", "test") for *_, path in lines_of(root / f"Ebay_{name}.txt")}
    for identity in range(SMALL.identities):
        split = SMALL.split_of(identity)
        for view in range(SMALL.views):
            assert where[SMALL.path_of(identity, view)] == ("test" if split == "test" else "train")
    with (root / "attributes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == set(where)
    for row in rows:
        assert row["path"].startswith(f"{row['category']}_final/")
    assert {"val", "test", "train"} == {SMALL.split_of(k) for k in range(SMALL.identities)}


def test_lists_are_written_by_path_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [
        {"path": "mug_final/2_0.JPG", "identity": "b", "split": "test"},
        {"path": "table_final/3_0.JPG", "identity": "c", "split": "train"},
        {"path": "bicycle_final/1_1.JPG", "identity": "a", "split": "val"},
        {"path": "bicycle_final/1_0.JPG", "identity": "a", "split": "val"},
    ]
    SMALL.finish(tmp_path, rows)
    lines = ["1 1 1 bicycle_final/1_0.JPG", "2 1 1 bicycle_final/1_1.JPG", "3 2 11 table_final/3_0.JPG"]
    assert (tmp_path / "Ebay_train.txt").read_text().splitlines() == [HEADER, *lines]
    assert (tmp_path / "Ebay_test.txt").read_text().splitlines() == [HEADER, "4 3 8 mug_final/2_0.JPG"]
    SMALL.finish(tmp_path, rows[::-1])
    assert (tmp_path / "Ebay_info.txt").read_text().splitlines() == [HEADER, *lines, "4 3 8 mug_final/2_0.JPG"]


# Families and attributes.


def test_families_share_what_they_should_and_members_differ() -> None:
    world = Objects(families=24, members=3, views=2)
    for family in range(world.families):
        things = [world.thing(3 * family + member) for member in range(3)]
        assert len({tuple(thing.attributes.items()) for thing in things}) == 1
        assert things[0].attributes["category"] == world.kind(family)
        assert len({thing.finish.grain_seed for thing in things}) == 1
        for one, other in ((0, 1), (0, 2), (1, 2)):
            a, b = things[one], things[other]
            assert not np.array_equal(a.finish.main, b.finish.main)
            np.testing.assert_allclose(np.log(a.finish.main / b.finish.main), 0, atol=0.6)  # but the same colour
            assert not np.array_equal(a.shapes.corners().min((0, 1)), b.shapes.corners().min((0, 1)))


def difference(difficulty: float) -> float:
    """Mean difference between members' pictures under one camera, without light, noise and surroundings."""
    world = Objects(families=12, members=3, views=2, difficulty=difficulty, seed=2)
    gaps = []
    for family in range(world.families):
        pictures = []
        for member in range(3):
            thing = world.thing(3 * family + member)
            camera = frame_shapes(thing.shapes, thing.craft.sides[0] + 0.4, 0.3, 0.0, 3.5, 0.9)
            seen = trace_shapes(thing.shapes, camera, camera.rays(48))
            picture = np.zeros((3, 48 * 48), np.float32)
            picture[:, seen.ray] = paint_finish(thing.finish, thing.shapes, seen).colour
            pictures.append(picture)
        gaps += [np.abs(pictures[a] - pictures[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    return float(np.mean(gaps))


def test_difficulty_makes_members_alike() -> None:
    easy, middle, twins = (difference(difficulty) for difficulty in (0.0, 0.5, 1.0))
    assert easy > 1.15 * middle > 1.15 * 1.15 * twins > 0.001


def test_every_category_is_one_of_sops_and_takes_its_turn() -> None:
    assert tuple(sorted(CRAFTS)) == SOP_CATEGORIES == tuple(sorted(SOP_CATEGORIES))
    kinds = [Objects(families=24, seed=5).kind(family) for family in range(24)]
    assert {kinds.count(kind) for kind in SOP_CATEGORIES} == {2}


def test_attributes_are_of_closed_vocabularies_and_views_are_nobodys() -> None:
    world = Objects(families=12, members=1, views=10, size=32)
    known: dict[str, tuple[str, ...]] = {
        "category": SOP_CATEGORIES,
        "material": tuple(MATERIALS),
        "colour": tuple(PALETTE),
        "pattern": ("plain", "stripes", "bands", "dots", "checks", "emblem"),
        "side": ("front", "left", "back", "right"),
        "light": LIGHTS,
        "background": BACKGROUNDS,
        "prop": (*PROPS, "none"),
    }
    seen: dict[tuple[str, str], set[int]] = {}
    for identity in range(12):
        for view in range(world.views):
            attributes = world.render(identity, view).attributes
            assert list(attributes) == list(known)
            for name, word in attributes.items():
                assert word in known[name]
                seen.setdefault((name, word), set()).add(identity)
    for name in ("side", "light", "background", "prop"):
        assert all(len(seen[name, word]) > 1 for word in known[name])


def hue_of(rgb: Floats) -> float:
    """Angle of a display colour on the colour wheel."""
    red, green, blue = (float(v) for v in rgb)
    return float(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))


def test_the_colour_is_the_one_that_is_seen() -> None:
    """The hue of most of a plain object's pixels, over its views, is nearest to that of its colour's word."""
    world = Objects(families=240, members=1, views=4, size=40)
    hues = {word: hue_of(np.array(rgb, float)) for word, rgb in PALETTE.items() if max(rgb) - min(rgb) > 90}
    right = wrong = 0
    for family in range(world.families):
        thing = world.thing(family)
        word = thing.attributes["colour"]
        big = thing.attributes["category"] in ("cabinet", "sofa", "toaster", "mug", "kettle", "stapler")
        if not big or thing.finish.pattern not in ("plain", "emblem") or thing.finish.material == "metal":
            continue
        if word not in hues:
            continue
        samples = [world.render(family, view) for view in range(world.views)]
        colour = np.median(np.concatenate([sample.image[sample.mask] for sample in samples]).astype(float), 0)
        gaps = {w: abs((hue_of(colour) - hue + np.pi) % (2 * np.pi) - np.pi) for w, hue in hues.items()}
        good = gaps[word] < min(gaps.values()) + 0.25  # brown and orange share a hue, and lights are tinted
        right, wrong = right + good, wrong + (not good)
    assert right >= 10
    assert wrong <= 0.1 * right


def test_the_side_is_the_objects_own() -> None:
    """From the front its left side is on the picture's right; from the left it is nearest."""
    make = Maker()
    make.box("main", (0, 0, 0.2), (0.2, 0.2, 0.2))
    make.ball("second", (0, 0.3, 0.2), (0.1, 0.1, 0.1))
    figure = make.shapes()
    front = frame_shapes(figure, 0.0, 0.2, 0.0, 3.5, 0.9)
    seen = trace_shapes(figure, front, front.rays(40))
    assert (seen.ray[seen.element == 1] % 40).min() > 24
    left = frame_shapes(figure, np.pi / 2, 0.2, 0.0, 3.5, 0.9)
    seen = trace_shapes(figure, left, left.rays(40))
    assert seen.element[seen.depth.argmin()] == 1
    views = {}
    for view in range(30):
        sample = Objects(families=12, views=30, size=32, seed=7).render(0, view)
        views[view] = sample.attributes["side"]
    assert set(views.values()) == {"front", "left", "back", "right"}


# The picture.


def test_the_box_fits_the_mask_and_the_object_fills_its_share() -> None:
    for identity in range(0, 28, 3):
        sample = SMALL.render(identity, 1)
        x, y, w, h = sample.box
        assert sample.box == box_of(sample.mask)
        assert sample.mask[y : y + h, x : x + w].sum() == sample.mask.sum() > 0.02 * sample.mask.size
        assert sample.mask[y].any() and sample.mask[y + h - 1].any()
        assert sample.mask[:, x].any() and sample.mask[:, x + w - 1].any()


@pytest.mark.parametrize("identity", [0, 7, 12, 22])
def test_the_mask_is_where_the_object_is_seen(identity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painted black the object changes nearly all over the mask and, rim apart, only there."""
    world = replace(SMALL, size=64)
    before = world.render(identity, 0)

    def black(finish: Finish, figure: object, seen: object) -> PaintedSurface:
        real = paint_finish(finish, figure, seen)  # type: ignore[arg-type]
        none = real.shine * 0
        return PaintedSurface(real.colour * 0, none, none + 1, none, none)

    monkeypatch.setattr("zoo.world.things.still_life.paint_finish", black)
    after = world.render(identity, 0)
    np.testing.assert_array_equal(before.mask, after.mask)
    changed = np.abs(before.image.astype(int) - after.image).sum(-1) > 0
    near = grown(before.mask, steps=5)
    assert changed[before.mask].mean() > 0.85
    assert not changed[~near].any()


def test_a_prop_is_named_where_it_hides_something(monkeypatch: pytest.MonkeyPatch) -> None:
    around = StillLife.around
    masks: dict[int, list[np.ndarray]] = {view: [] for view in range(16)}
    words = {}
    world = Objects(families=3, views=16, size=64, seed=1)
    for bare in (False, True):
        if bare:
            monkeypatch.setattr(StillLife, "around", staticmethod(lambda *a: replace(around(*a), props=())))
        for view, found in masks.items():
            sample = world.render(0, view)
            found.append(sample.mask)
            words.setdefault(view, sample.attributes["prop"])
    hidden = {view: bool((free & ~seen).any()) for view, (seen, free) in masks.items()}
    assert all(words[view] != "none" for view in masks if hidden[view])
    assert not any((seen & ~free).any() for seen, free in masks.values())
    assert any(hidden.values()) and not all(word != "none" for word in words.values())


# Geometry, against a march along the rays in small steps.


# Every word that a craft knows, and every print.
