"""The faces: families that share what they should, VGGFace2's layout, and labels that fit the pixels."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.world.conftest import FACES, grown
from zoo.world import Faces, faces
from zoo.world.bodies.complexion import EYES, HAIR_COLOURS, SKINS
from zoo.world.bodies.head import BEARDS, EYE_LEVEL, HATS, RANGES, STYLES, Bust, Dress, Head, Mood, build_bust
from zoo.world.faces import EXPRESSIONS, GLASSES, PROPS, TYPES, Face, Makeup, Styling
from zoo.world.render.geometry import Camera
from zoo.world.render.scenery import BACKGROUNDS, LIGHTS
from zoo.world.render.solids import Hits, trace
from zoo.world.render.texture import stream
from zoo.world.rendered import RenderedDataset

SMALL = FACES
BASE = ("skin", "hair", "hair_style", "beard")  # what a family shares
WORDS: dict[str, set[str]] = {
    "skin": set(SKINS), "hair": set(HAIR_COLOURS), "hair_style": set(STYLES), "beard": set(BEARDS), "eyes": set(EYES),
    "glasses": set(GLASSES), "hat": set(HATS), "expression": set(EXPRESSIONS), "side": {"front", "left", "right"},
    "light": set(LIGHTS), "background": set(BACKGROUNDS), "prop": {"none", *PROPS},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(SMALL)


def portrait(face: Face, shades: bool = False, mood: Mood | None = None, **makeup: object) -> tuple:
    """A bare head from the front without light: its own coordinates (3, H) and colours (3, H) at the hits."""
    mood = mood or Mood()
    styling = Styling(
        mood, Dress(face.style, beard=face.beard, shades=shades), Makeup(**makeup), (np.zeros(3),) * 3, 0.0, {}
    )
    bust = build_bust(face.head, styling.dress, mood)
    centre = np.array([0, 0, EYE_LEVEL - 0.1], np.float32)
    camera = replace(Camera.orbit(centre, 0.0, 0.0, 4.5, 0.0), zoom=5.0)
    hits = trace(bust.figure.solids, camera.origin, camera.rays(90), 0.03)
    colour, _ = faces._paint(face, styling, bust, hits)
    return bust.on_head(hits.point), colour


def around_eyes(head: Head, at: np.ndarray) -> np.ndarray:
    off = (np.abs(at[1]) - head.eye_gap) ** 2 + at[2] ** 2
    return (off < 0.15**2) & (at[0] > 0.4)


# Bytes.


# Identities and families.


def spread(difficulty: float) -> float:
    """Mean distance of two heads of a family, in shares of each proportion's range."""
    world = Faces(families=10, members=3, views=2, difficulty=difficulty)
    low, high = np.array(list(RANGES.values())).T
    heads = [[getattr(world.face(k).head, name) for name in RANGES] for k in range(world.identities)]
    places = ((np.array(heads) - low) / (high - low)).reshape(10, 3, -1)
    assert (places >= -1e-6).all() and (places <= 1 + 1e-6).all()
    return float(np.abs(places - places[:, [1, 2, 0]]).mean())


def test_difficulty_makes_members_alike() -> None:
    easy, middle, hard = (spread(difficulty) for difficulty in (0.0, 0.5, 1.0))
    assert easy > 1.2 * middle > 1.2 * 2 * hard > 0


def test_a_family_shares_colours_and_style_but_neither_head_nor_marks() -> None:
    world = Faces(families=10, members=4, views=2)
    for family in range(10):
        members = [world.face(family * 4 + k) for k in range(4)]
        assert len({tuple(face.attributes[name] for name in BASE) for face in members}) == 1
        assert len({face.head for face in members}) == 4
        assert len({face.complexion.marks.shift["mole"].tobytes() for face in members}) == 4
    assert len({tuple(world.face(4 * k).attributes[name] for name in BASE) for k in range(10)}) > 5


@pytest.mark.parametrize("difficulty", [0.5, 1.0])
def test_members_look_different_and_views_of_one_head_are_painted_alike(difficulty: float) -> None:
    world = Faces(families=5, members=2, views=2, difficulty=difficulty)
    for family in range(5):
        one, other = world.face(2 * family), world.face(2 * family + 1)
        at, colour = portrait(one)
        skin = replace(one, complexion=other.complexion)
        np.testing.assert_array_equal(colour, portrait(one)[1])
        assert np.abs(portrait(skin)[1] - colour).mean() > 1e-4  # marks and shades alone differ
        assert at.shape != portrait(other)[0].shape or np.abs(at - portrait(other)[0]).max() > 1e-3


def test_names_and_paths_parse() -> None:
    world = Faces(families=12, members=3, views=2)
    paths = set()
    for identity in range(world.identities):
        name = re.fullmatch(r"([a-z]+)_(\d{3})_(\d)", world.name_of(identity))
        assert name and name[1] in TYPES and int(name[2]) * 3 + int(name[3]) == identity
        for view in range(2):
            path = re.fullmatch(r"(train|test)/n(\d{6})/(\d{4})_(\d{2})\.jpg", world.path_of(identity, view))
            assert path and int(path[2]) == identity + 1 and int(path[3]) == view + 1
            assert (path[1] == "test") == (world.split_of(identity) == "test")
            paths.add(path[0])
    assert len(paths) == world.images


# What is on disk.


def test_identity_meta_lists_what_is_there(root: Path) -> None:
    header, *lines = (root / "identity_meta.csv").read_text().splitlines()
    assert header == "Class_ID, Name, Sample_Num, Flag, Gender"
    read = [next(csv.reader([line], skipinitialspace=True)) for line in lines]
    assert [row[0] for row in read] == sorted(f"n{k + 1:06d}" for k in range(SMALL.identities))
    for identity, (number, name, images, flag, gender) in enumerate(read):
        assert name == SMALL.name_of(identity) and gender == "n" and f' "{name}", ' in lines[identity]
        folder = root / ("train" if flag == "1" else "test") / number
        assert len(list(folder.glob("*.jpg"))) == int(images) == 2
        assert (flag == "0") == (SMALL.split_of(identity) == "test")
    assert {row[3] for row in read} == {"0", "1"}


def test_finish_repairs_a_torn_list(root: Path, tmp_path: Path) -> None:
    with (root / "attributes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "identity_meta.csv").write_text("Class_ID, Na")
    SMALL.finish(tmp_path, rows)
    assert (tmp_path / "identity_meta.csv").read_bytes() == (root / "identity_meta.csv").read_bytes()


# Labels that fit the pixels.


def test_words_are_few_and_all_are_used() -> None:
    world = Faces(families=60, members=1, views=10, size=32)
    seen: dict[str, set[str]] = {}
    for identity in range(60):
        for view in range(0, 10, 2):
            for name, word in world.render(identity, view).attributes.items():
                seen.setdefault(name, set()).add(word)
    assert seen == WORDS


@pytest.mark.parametrize("identity", range(6))
def test_dark_glasses_darken_the_eyes_and_only_them(identity: int) -> None:
    face = Faces(families=6, members=1, views=2).face(identity)
    bare, worn = portrait(face), portrait(face, shades=True)
    clear = portrait(face, rims=np.array([0.9, 0.1, 0.1], np.float32))
    light = [colour[:, around_eyes(face.head, at)] for at, colour in (bare, worn)]
    assert light[1].max() < 0.03 < light[0].mean()
    np.testing.assert_array_equal(clear[0], bare[0])  # clear ones are rims around eyes that stay in sight
    changed = np.abs(clear[1] - bare[1]).max(0) > 0.01
    assert changed.any() and not changed[around_eyes(face.head, bare[0])].any()
    below = (bare[0][2] < face.head.mouth + 0.1) & (bare[0][2] > -face.head.length)
    assert not changed[below].any()


@pytest.mark.parametrize("identity", range(6))
def test_closed_eyes_show_no_iris(identity: int) -> None:
    face = Faces(families=6, members=1, views=2).face(identity)
    face = replace(face, complexion=replace(face.complexion, iris=np.array([0.0, 0.9, 0.9], np.float32)))
    shown = {}
    for lids in (1.0, 0.0):
        at, colour = portrait(face, mood=Mood(lids=lids))
        eyes = colour[:, around_eyes(face.head, at)]
        shown[lids] = ((eyes[1] > 0.4) & (eyes[0] < 0.2)).sum()
    assert shown[1.0] > 5 and shown[0.0] == 0


def test_a_laugh_shows_teeth_and_moves_the_chin() -> None:
    face = replace(Faces().face(0), beard="none")
    for open_, least, most in ((0.0, 0, 0), (0.8, 10, 1000)):
        at, colour = portrait(face, mood=Mood(open=open_, smile=0.9))
        mouth = (np.abs(at[1]) < face.head.mouth_width) & (np.abs(at[2] - face.head.mouth) < 0.25) & (at[0] > 0.4)
        assert least <= (colour[:, mouth].min(0) > 0.7).sum() <= most
    chins = [build_bust(face.head, Dress(), Mood(open=o)).figure.part("chin").centre[0, 2] for o in (0.0, 0.8)]
    assert chins[1] < chins[0] - 0.05


def test_the_side_is_where_the_nose_points(monkeypatch: pytest.MonkeyPatch) -> None:
    tips = []
    shine = faces._shine

    def spy(face: Face, styling: Styling, bust: Bust, hits: Hits, setting: faces.Setting) -> np.ndarray:
        points = np.stack([bust.figure.head_centre, bust.figure.part("nose").centre[-1]])
        middle, tip = setting.camera.project(points)[:, 0]
        tips.append(tip - middle)
        return shine(face, styling, bust, hits, setting)

    monkeypatch.setattr(faces, "_shine", spy)
    world = Faces(families=20, members=1, views=4, size=32)
    sides = [world.render(k, view).attributes["side"] for k in range(20) for view in range(4)]
    for side, tip in zip(sides, tips, strict=True):
        assert {"left": tip < 0, "right": tip > 0, "front": abs(tip) < 0.35}[side]
    assert min(sides.count(side) for side in ("left", "right", "front")) > 10


@pytest.mark.parametrize("identity", range(4))
def test_the_mask_is_where_the_person_is_seen(identity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the person dyed black the picture changes all over the mask and, edges apart, only there."""
    world = Faces(families=4, members=1, views=4, size=64)
    before = world.render(identity, 1)
    monkeypatch.setattr(faces, "_shine", lambda face, styling, bust, hits, setting: np.zeros_like(hits.point))
    after = world.render(identity, 1)
    np.testing.assert_array_equal(before.mask, after.mask)
    changed = np.abs(before.image.astype(int) - after.image).sum(-1) > 0
    near = grown(before.mask)
    assert changed[before.mask].mean() > 0.9
    assert not changed[~near].any()
    assert 0.15 < before.mask.mean() < 0.9


def test_pinholes_are_mended_and_nothing_else() -> None:
    light = stream(1).random((3, 9, 9)).astype(np.float32)
    hit = np.ones((9, 9), bool)
    hit[4, 4] = hit[2, 2] = hit[2, 3] = False
    hit[:, 7:] = False  # beside the person, not a hole in it
    none = np.zeros(0, np.float32)
    hits = Hits(np.flatnonzero(hit), none, none, none, none, none, none, none)
    mended = faces._mended(light.copy(), hits)
    hole = ~hit
    hole[:, 7:] = False
    np.testing.assert_array_equal(mended[:, ~hole], light[:, ~hole])
    around = light[:, 3:6, 3:6].copy()
    around[:, 1, 1] = 0
    np.testing.assert_allclose(mended[:, 4, 4], around.sum((1, 2)) / 8, rtol=1e-5)
