"""The world of faces: heads and shoulders of invented, toy-like people, each with a face of its own."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.world.base import Sample, World, box_of
from zoo.world.bodies.complexion import (
    EYES,
    HAIR_COLOURS,
    SKINS,
    Complexion,
    Makeup,
    Marks,
    hair_on_skull,
    paint_front,
    strands,
)
from zoo.world.bodies.head import BEARDS, EYE_LEVEL, HATS, RANGES, SCALE, STYLES, Bust, Dress, Head, Mood, build_bust
from zoo.world.render.geometry import Camera, Floats
from zoo.world.render.scenery import BACKGROUNDS, LIGHTS, Light, Prop, Surroundings, develop
from zoo.world.render.setting import Setting
from zoo.world.render.solids import Hits, Solids, shade_of
from zoo.world.render.texture import Noise, linear, mix, step, stream

_BLEND = 0.036  # radius over which the parts of a head melt together

# Kind of face -> where its families lie in some of the ranges.
TYPES: dict[str, dict[str, float]] = {
    "birch": {"width": 0.15, "length": 0.75, "jaw": 0.25, "chin": 0.3},
    "cedar": {"width": 0.4, "length": 1.0, "jaw": 0.55, "chin": 0.6},
    "maple": {"width": 1.0, "length": 0.1, "jaw": 0.5, "cheek": 0.9},
    "oak": {"width": 0.8, "length": 0.5, "jaw": 1.0, "chin": 1.0},
    "willow": {"width": 0.7, "length": 0.5, "jaw": 0.0, "chin": 0.0, "cheek": 0.6},
}
# Expression -> smile, open mouth, raised brows, open lids.
EXPRESSIONS: dict[str, tuple[float, float, float, float]] = {
    "neutral": (0.0, 0.0, 0.0, 1.0), "smile": (0.9, 0.0, 0.1, 0.85), "laugh": (0.9, 0.75, 0.25, 0.65),
    "surprise": (-0.1, 0.8, 1.0, 1.1), "frown": (-0.8, 0.0, -0.9, 0.8), "asleep": (0.1, 0.0, 0.0, 0.0),
}  # fmt: skip
GLASSES = ("none", "clear", "dark")
PROPS = ("hand", "ball", "scarf")


@dataclass(frozen=True)
class Face:
    """One individual: its head, its colours and marks, its hair and beard, and the words for what is fixed."""

    head: Head
    complexion: Complexion
    style: str
    beard: str
    stubbly: bool
    hair_seed: int
    attributes: dict[str, str]


@dataclass(frozen=True)
class Styling:
    """What one view of a face looks like but for the setting.

    Args:
        cloth: colours of shirt, trimmings and hat or scarf, each (3,) in linear light.
        stripes: how close the shirt's stripes are, 0 for none.
        attributes: the words for what is worn and done.
    """

    mood: Mood
    dress: Dress
    makeup: Makeup
    cloth: tuple[Floats, Floats, Floats]
    stripes: float
    attributes: dict[str, str]


@dataclass(frozen=True)
class Faces(World):
    """Faces in look-alike families: members share skin, colour and style of hair, beard and type of face.

    They differ in the proportions of head, eyes, nose, mouth and ears, in freckles, moles and scars, a little in
    shade and sometimes in the colour of the eyes. Written in the layout of VGGFace2.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity.
        size: height and width of an image in pixels.
        difficulty: how alike the members of a family are, from 0 (as different as strangers of the same colours
            and style) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    NAME: ClassVar[str] = "faces"
    VERSION: ClassVar[int] = 1
    READER: ClassVar[str] = "vggface2"

    def kind(self, family: int) -> str:
        """The type of face of a family; they take turns, so every world has about as many of each."""
        return list(TYPES)[(family + self.seed) % len(TYPES)]

    def path_of(self, identity: int, view: int) -> str:
        """VGGFace2's folders: one of each identity, under ``train`` (validation too) or ``test``."""
        split = "test" if self.split_of(identity) == "test" else "train"
        return f"{split}/n{identity + 1:06d}/{view + 1:04d}_01.jpg"

    def finish(self, root: Path, rows: list[dict[str, str]]) -> None:
        """Writes VGGFace2's ``identity_meta.csv``; nobody here has a gender, so that column is ``n``."""
        count = Counter((row["path"].split("/")[1], row["identity"], row["path"].split("/")[0]) for row in rows)
        lines = ["Class_ID, Name, Sample_Num, Flag, Gender"]
        for (number, name, split), images in sorted(count.items()):
            lines.append(f'{number}, "{name}", {images}, {int(split == "train")}, n')
        (root / "identity_meta.csv").write_text("\n".join(lines) + "\n", newline="\n")

    def face(self, identity: int) -> Face:
        """The individual itself, whatever the view."""
        return _face(self, identity)

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one face; depends on nothing but the fields and the two numbers.

        Raises:
            IndexError: there is no such identity or view.
        """
        self.check(identity, view)
        return _draw(self.face(identity), stream(self.seed, 22, *divmod(identity, self.members), view), self.size)


def _pick(names: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]


def _striking(rng: np.random.Generator) -> float:
    """A number in [0, 1], rather near its ends: what is striking is what faces are known by."""
    return 0.5 - 0.5 * float(np.cos(np.pi * rng.uniform()))


@lru_cache(maxsize=8)
def _face(world: Faces, identity: int) -> Face:
    family, member = divmod(identity, world.members)
    shared, own = stream(world.seed, 21, family), stream(world.seed, 21, family, member + 1)
    biases, share = TYPES[world.kind(family)], world.own_share
    part = share**0.5  # of the proportions are moved, each by this part of the way to the individual's own
    shares = {}
    for name in RANGES:
        common, mine, moved = _striking(shared), _striking(own), own.uniform() < part
        mixed = common + (mine - common) * part * moved
        shares[name] = 0.4 * biases[name] + 0.6 * mixed if name in biases else mixed
    skin, hair, style = _pick(list(SKINS), shared), _pick(list(HAIR_COLOURS), shared), _pick(STYLES, shared)
    beard = BEARDS[int(shared.choice(4, p=(0.58, 0.14, 0.14, 0.14)))]
    eyes, own_eyes = _pick(list(EYES), shared), _pick(list(EYES), own)
    eyes = own_eyes if own.uniform() < 0.8 * share else eyes
    stubbly = bool(shared.uniform() < 0.3)
    marks = Marks.draw(shared).mixed(Marks.draw(own), share, own)
    attributes = {"skin": skin, "hair": hair, "hair_style": style, "beard": beard, "eyes": eyes}
    complexion = Complexion.of(skin, hair, eyes, marks)
    return Face(Head.of(shares), complexion, style, beard, stubbly, int(shared.integers(2**31)), attributes)


def _styling(face: Face, yaw: float, rng: np.random.Generator) -> tuple[Styling, str]:
    """A random styling with the head turned by ``yaw``, and a prop's name or ``none``."""
    expression = list(EXPRESSIONS)[int(rng.choice(6, p=(0.28, 0.22, 0.15, 0.12, 0.15, 0.08)))]
    force, jitter = rng.uniform(0.7, 1.1), rng.normal(0, 0.08, 4)
    smile, open_, brows, lids = EXPRESSIONS[expression]
    mood = Mood(
        yaw=yaw,
        nod=float(np.clip(rng.normal(0.02, 0.16), -0.4, 0.4)),
        tilt=float(rng.normal(0, 0.11)),
        smile=float(smile * force + jitter[0]),
        open=float(np.clip(open_ * force + (jitter[1] if open_ else 0), 0, 1)),
        brows=float(brows * force + jitter[2]),
        lids=float(np.clip(lids + jitter[3], 0.6, 1.15)) if lids else 0.0,
        gaze=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.5, 0.5))),
    )
    glasses = GLASSES[int(rng.choice(3, p=(0.72, 0.18, 0.10)))]
    hat = HATS[int(rng.choice(4, p=(0.82, 0.06, 0.06, 0.06)))]
    prop = ("none", *PROPS)[int(rng.choice(4, p=(0.82, 0.06, 0.05, 0.07)))]
    dress = Dress(face.style, float(rng.uniform()), face.beard, hat, glasses == "dark", prop == "scarf")
    rims = linear(*rng.uniform(10, 110, 3)) if rng.uniform() < 0.7 else linear(*rng.uniform(120, 230, 3))
    makeup = Makeup(
        stubble=float(rng.uniform(0.2, 0.7)) if face.stubbly and rng.uniform() < 0.5 else 0.0,
        creases=float(rng.uniform()),
        blush=float(rng.uniform()),
        parting=float(rng.uniform(-1, 1)),
        rims=rims if glasses == "clear" else None,
    )
    cloth = tuple(linear(*rng.uniform(25, 235, 3)) for _ in range(3))
    attributes = {"glasses": glasses, "hat": hat, "expression": expression}
    stripes = max(float(rng.uniform(-20, 30)), 0.0)
    return Styling(mood, dress, makeup, (cloth[0], cloth[1], cloth[2]), stripes, attributes), prop


def _camera(azimuth: float, rng: np.random.Generator) -> Camera:
    """A camera about level with the face, which fills most of its picture."""
    centre = np.array([0, 0, EYE_LEVEL - 0.07]) + rng.normal(0, 0.035, 3)
    camera = Camera.orbit(centre, azimuth, float(rng.uniform(-0.15, 0.32)), 4.5, float(rng.normal(0, 0.06)))
    return Camera(camera.origin, camera.axes, float(rng.uniform(5.0, 6.0)))


def _hand(skin: Floats, azimuth: float, rng: np.random.Generator) -> Prop:
    """A hand between face and camera, in front of chin, mouth or a cheek."""
    toward = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    across, up = np.array([-toward[1], toward[0], 0]), np.array([0.0, 0.0, 1.0])
    lean = float(rng.uniform(-0.7, 0.7))
    along, aside = np.cos(lean) * up + np.sin(lean) * across, np.cos(lean) * across - np.sin(lean) * up
    palm = toward * 1.45 + across * rng.uniform(-0.75, 0.75) + up * rng.uniform(-1.35, -0.85)
    rows = [(palm, (0.11, 0.30, 0.36))]
    for k in range(4):
        rows.append((palm + along * (0.52 - 0.05 * abs(k - 1.4)) + aside * (k - 1.5) * 0.155, (0.075, 0.08, 0.34)))
    rows.append((palm + along * 0.1 + aside * 0.36 * rng.choice([-1, 1]), (0.08, 0.09, 0.28)))
    axes = np.stack([toward, aside, along], 1)
    solids = Solids(
        np.array([at * SCALE + up * EYE_LEVEL for at, _ in rows], np.float32),
        np.stack([axes] * len(rows)).astype(np.float32),
        np.array([radii for _, radii in rows], np.float32) * np.float32(SCALE),
        np.zeros(len(rows), np.float32),
    )
    return Prop(solids, skin, skin, 0.0)


def _ball(azimuth: float, rng: np.random.Generator) -> Prop:
    """A ball held up beside the face."""
    side = rng.choice([-1, 1]) * rng.uniform(0.35, 0.6)
    at = np.array([np.cos(azimuth) * 0.7 - np.sin(azimuth) * side, np.sin(azimuth) * 0.7 + np.cos(azimuth) * side])
    ball = Prop.draw("ball", at, rng)
    centre = np.array([[*at, EYE_LEVEL - rng.uniform(0.3, 0.6)]], np.float32)
    return replace(ball, solids=replace(ball.solids, centre=centre))


def _draw(face: Face, rng: np.random.Generator, size: int) -> Sample:
    turned, split = float(rng.triangular(-1.1, 0, 1.1)), float(rng.uniform(0.3, 0.9))
    azimuth = turned * split  # the rest is the head's own turn
    styling, prop = _styling(face, turned * (split - 1), rng)
    bust = build_bust(face.head, styling.dress, styling.mood)
    background, lamp = _pick(BACKGROUNDS, rng), _pick(LIGHTS, rng)
    camera = _camera(azimuth, rng)
    light, surroundings = Light.draw(lamp, azimuth, rng), Surroundings.draw(background, azimuth, rng)
    props: tuple[tuple[str, Prop], ...] = ()
    if prop == "hand":
        props = ((prop, _hand(face.complexion.skin, azimuth, rng)),)
    elif prop == "ball":
        props = ((prop, _ball(azimuth, rng)),)
    setting = Setting(camera, background, lamp, light, surroundings, props)
    met: list[Hits] = []

    def shine(hits: Hits) -> Floats:
        met.append(hits)
        return _shine(face, styling, bust, hits, setting)

    def sensor(light: Floats, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        return develop(_mended(light, met[0]), shape, rng)

    image, mask, in_front = setting.picture(bust.figure.solids, _BLEND, shine, size, rng, sensor)
    of_setting = {
        "side": "front" if abs(turned) < 0.35 else "left" if turned > 0 else "right",  # as seen in the image
        "light": lamp,
        "background": background,
        "prop": "scarf" if styling.dress.scarf else in_front,
    }
    return Sample(image, mask, box_of(mask), face.attributes | styling.attributes | of_setting)


def _mended(light: Floats, hits: Hits) -> Floats:
    """Light (3, R, C) with the mean of their neighbours in pinholes, where a grazing ray was lost on its way."""
    hit = np.zeros(light[0].size, np.float32)
    hit[hits.ray] = 1
    hit = hit.reshape(light.shape[1:])
    for _ in range(2):  # the second time for holes of two pixels
        around = _neighbours(hit)
        holes = (hit == 0) & (around > 4.5)
        if holes.any():
            light[:, holes] = _neighbours(light * hit)[:, holes] / around[holes]
            hit[holes] = 1
    return light


def _neighbours(values: Floats) -> Floats:
    """Sum of the eight neighbours of each pixel of (..., R, C)."""
    rows, columns = values.shape[-2:]
    wide = np.zeros((*values.shape[:-2], rows + 2, columns + 2), np.float32)
    wide[..., 1:-1, 1:-1] = values
    three = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    return three[..., :-2] + three[..., 1:-1] + three[..., 2:] - values


def _shine(face: Face, styling: Styling, bust: Bust, hits: Hits, setting: Setting) -> Floats:
    """Light (3, H) from the bust's surface."""
    colour, gloss = _paint(face, styling, bust, hits)
    light = setting.light
    casters = bust.figure.part("skull", "nose", "brim", "lock", "face")
    shadow = shade_of(casters, hits.point + 0.03 * hits.normal, light.direction, light.softness, skip=0.35)
    openness = 0.62 + 0.38 * np.clip((hits.point[2] - (EYE_LEVEL - 0.8)) * 1.4, 0, 1)
    lit = light.on(hits.normal, shadow, openness)
    view = setting.camera.origin[:, None] - hits.point
    view /= np.sqrt((view * view).sum(0))
    facing = np.clip((view * hits.normal).sum(0), 0, 1)
    half = view + light.direction[:, None]
    half /= np.sqrt((half * half).sum(0))
    shine = np.clip((half * hits.normal).sum(0), 0, 1) ** 24 * shadow * (0.05 + 0.6 * gloss)
    rim = (1 - facing) ** 3 * 0.2
    return colour * lit + light.lamp[:, None] * shine + light.sky[:, None] * rim * (0.2 + 0.8 * colour)


def _paint(face: Face, styling: Styling, bust: Bust, hits: Hits) -> tuple[Floats, Floats]:
    """Colour (3, H) and gloss (H,) of skin, hair and clothes."""
    figure, head, skin, dress = bust.figure, bust.head, face.complexion, styling.dress
    at = bust.on_head(hits.point)
    ragged = Noise(stream(face.hair_seed), 0.12, waves=4)(at)

    def share(*parts: str) -> Floats:
        return step(0.35, 0.65, hits.blend(figure.belongs(*parts)))

    body = share("shirt", "scarf")
    ear = share("ear")
    colour = np.repeat(skin.skin[:, None], at.shape[1], 1)
    gloss = np.zeros(at.shape[1], np.float32)
    edge = -0.1 if face.beard == "full" or styling.makeup.stubble else 0.25
    front = np.flatnonzero((at[0] > edge) & (body < 1) & (ear < 0.5) & (at[2] > -head.length - 0.35))
    colour[:, front], gloss[front] = paint_front(
        skin, head, styling.mood, styling.makeup, face.beard, at[:, front], ragged[front]
    )
    grown = hair_on_skull(head, face.style, at, ragged, styling.makeup.parting) * (1 - ear)
    if "lock" in figure.parts:
        grown = np.maximum(grown, share("lock"))
    if face.style == "afro" and dress.hat == "none":
        grown = np.maximum(grown, share("cap"))
    if "beard" in figure.parts:
        grown = np.maximum(grown, share("beard") * (at[2] < head.mouth - head.lower_lip - 0.1))
    hairy = np.flatnonzero(grown * (1 - body) > 0)
    tuft = strands(skin.hair, face.hair_seed, at[:, hairy], face.style)
    if face.style == "buzz":
        tuft = mix(tuft, skin.skin * 0.8, np.full(len(hairy), 0.3, np.float32))
    colour[:, hairy] = mix(colour[:, hairy], tuft, grown[hairy])
    if styling.makeup.rims is not None:
        arm = step(0.05, 0.03, np.abs(at[2] - 0.06)) * (np.abs(at[1]) > 0.55) * (at[0] < 0.62) * (at[0] > 0)
        colour = mix(colour, styling.makeup.rims, arm * (1 - grown) * (1 - ear) * (1 - body))
    if dress.shades:
        arm = step(0.06, 0.04, np.abs(at[2] - 0.06)) * (np.abs(at[1]) > 0.6) * (at[0] < 0.8) * (at[0] > 0)
        off = np.sqrt((np.abs(at[1]) - head.eye_gap) ** 2 + (at[2] * 1.2) ** 2)
        behind = step(0.30, 0.26, off) * (at[0] > 0.5)  # eyes may bulge through the lens
        lens = np.maximum(np.maximum(share("lens"), behind), arm * (1 - grown) * (1 - ear) * (1 - body))
        colour, gloss = mix(colour, linear(24, 24, 30), lens), np.maximum(gloss * (1 - lens), lens * 0.06)
    return _clothe(styling, bust, hits, colour, body), gloss * (1 - body)


def _clothe(styling: Styling, bust: Bust, hits: Hits, colour: Floats, body: Floats) -> Floats:
    """Shirt, scarf and hat over ``colour`` (3, H); ``body`` (H,) is the share of shirt and scarf."""
    figure, (shirt, trim, hat) = bust.figure, styling.cloth
    x, y, z = hits.point
    band = step(-0.1, 0.1, np.sin((z + 0.3 * y) * np.float32(styling.stripes))) if styling.stripes else body * 0
    colour = mix(colour, mix(np.repeat(shirt[:, None], len(x), 1), trim, band), body)
    if styling.dress.scarf:
        fold = step(-0.2, 0.2, np.sin((z * 1.2 + 0.5 * y) * 26))
        woven = mix(np.repeat(hat[:, None], len(x), 1), hat * 0.6, fold)
        colour = mix(colour, woven, step(0.35, 0.65, hits.blend(figure.belongs("scarf"))))
    if styling.dress.hat != "none":
        cover = step(0.35, 0.65, hits.blend(figure.belongs("hat", "brim")))
        brim = step(0.35, 0.65, hits.blend(figure.belongs("brim")))
        colour = mix(colour, mix(np.repeat(hat[:, None], len(x), 1), trim, brim * 0.8), cover)
    return colour
