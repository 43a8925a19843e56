"""Clothes: what an outfit is made of, and how skin, hair, garments and bags are painted on a person at rest."""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.anatomy import Figure
from zoo.world.bodies.human import Build, Shape
from zoo.world.render.geometry import Floats
from zoo.world.render.solids import Hits
from zoo.world.render.texture import Noise, linear, mix, step

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (34, 34, 38), "white": (230, 229, 224), "grey": (132, 134, 138), "red": (180, 36, 40),
    "orange": (222, 116, 38), "yellow": (226, 196, 64), "green": (48, 122, 66), "blue": (58, 108, 190),
    "navy": (32, 40, 84), "purple": (104, 58, 136), "pink": (228, 148, 172), "brown": (104, 68, 46),
    "beige": (200, 180, 146),
}  # fmt: skip
TOPS = ("tee", "shirt", "hoodie", "jacket", "coat")
BOTTOMS = ("trousers", "shorts", "skirt")
PATTERNS = ("plain", "stripes", "check", "block", "print")
HAIRS = ("short", "long", "tied", "curly", "bob", "bald")
HAIR_COLOURS = {
    "black": (30, 26, 26),
    "brown": (84, 54, 36),
    "blond": (206, 170, 104),
    "red": (156, 74, 34),
    "grey": (168, 166, 164),
}
HATS = ("none", "cap", "beanie")
BAGS = ("none", "backpack", "shoulder_bag")
SKINS = ((244, 208, 180), (226, 180, 146), (196, 146, 108), (158, 108, 76), (118, 78, 54), (82, 54, 40))
PRINTS = 6


@dataclass(frozen=True)
class Outfit:
    """One set of clothes; colours are linear light (3,), lengths shares of the height, the rest in [0, 1].

    Args:
        top, bottom, pattern: of `TOPS`, `BOTTOMS` and `PATTERNS`.
        top_word, bottom_word: names of the main colours, of `COLOURS`.
        top_colour, second: main colour of the top and that of its pattern. inner: what an open jacket shows.
        sleeve: length of the sleeves. hem: height of the top's lower edge. cuff: height of the bottom's.
        boot: height of the shoes.
        scale: stripes and checks in the person's height. edge: height of a block's border.
        mark: number of the print, less than `PRINTS`; mark_size, mark_up: its size and height.
        open_: how wide a jacket stands open.
        piping: whether the trousers have a stripe down the side.
        thickness: of the top. slack: how wide the trousers are.
    """

    top: str
    bottom: str
    pattern: str
    top_word: str
    bottom_word: str
    top_colour: Floats
    second: Floats
    inner: Floats
    bottom_colour: Floats
    shoes: Floats
    sole: Floats
    sleeve: float
    hem: float
    cuff: float
    boot: float
    scale: float
    edge: float
    mark: int
    mark_size: float
    mark_up: float
    open_: float
    piping: bool
    thickness: float
    slack: float


@dataclass(frozen=True)
class Wearer:
    """What stays when the clothes change; colours are linear light (3,).

    Args:
        hair, hat, bag: of `HAIRS`, `HATS` and `BAGS`. hair_word: of `HAIR_COLOURS`.
    """

    build: Build
    skin: Floats
    hair: str
    hair_word: str
    hair_colour: Floats
    beard: bool
    glasses: bool
    hat: str
    hat_colour: Floats
    bag: str
    bag_colour: Floats
    bag_size: float


def shape_of(wearer: Wearer, outfit: Outfit) -> Shape:
    """The outline that the clothes give the person."""
    skirt, coat = outfit.bottom == "skirt", outfit.top == "coat"
    return Shape(
        top=outfit.thickness,
        leg=outfit.slack if outfit.bottom == "trousers" else 0.0,
        flare=(1.0 + 3 * outfit.thickness * coat + outfit.slack * 10) * (skirt or coat),
        hem=min(outfit.cuff if skirt else 1.0, outfit.hem if coat else 1.0),
        hood=outfit.top == "hoodie",
        hair=wearer.hair,
        hat=wearer.hat,
        bag=wearer.bag,
        bag_size=wearer.bag_size,
    )


@dataclass(frozen=True)
class _Cloth:
    """Points of the person at rest, each (N,): coordinates, and the share of each part.

    Args:
        ahead, left, up: in units of the height.
        around: angle about the trunk's axis, 0 in front, left is +.
        reach: length along the arm from the shoulder, in units of the height.
        face: forward, left, up from the middle of the head in half heights of it, (3, N).
    """

    ahead: Floats
    left: Floats
    up: Floats
    around: Floats
    reach: Floats
    face: Floats
    part: dict[str, Floats]


_PARTS = {
    "head": ("head", "neck"), "hair": ("hair",), "hat": ("hat",), "bag": ("bag",), "hood": ("hood",),
    "skirt": ("skirt",), "torso": ("torso",), "arm": ("arm_left", "arm_right"), "hand": ("hand_left", "hand_right"),
    "leg": ("leg_left", "leg_right"), "foot": ("foot_left", "foot_right"),
}  # fmt: skip


def _under(hits: Hits, rest: Figure, height: float) -> _Cloth:
    """The cloth under the hits of a posed figure's solids."""
    points = hits.carried_to(rest.solids)
    ahead, left, up = points / np.float32(height)
    present = set(rest.parts)
    none = np.zeros(len(up), np.float32)
    share = {
        name: hits.blend(rest.belongs(*parts)) ** 3 if present & set(parts) else none for name, parts in _PARTS.items()
    }
    total = sum(share.values())  # cubed, so that the borders between parts are sharp
    share = {name: value / total for name, value in share.items()}
    face = (points - rest.head_centre[:, None]) / np.float32(0.072 * height)
    return _Cloth(ahead, left, up, np.arctan2(left, ahead), np.float32(0.805) - up, face, share)


def _mark(outfit: Outfit, x: Floats, y: Floats) -> Floats:
    """Cover (N,) of a print at places (N,) in units of its half size."""
    far = np.sqrt(x * x + y * y)
    box = np.maximum(np.abs(x), np.abs(y))
    if outfit.mark == 0:
        inside = 1.0 - far
    elif outfit.mark == 1:
        inside = 0.9 - box
    elif outfit.mark == 2:
        inside = 0.28 - np.abs(far - 0.75)
    elif outfit.mark == 3:
        inside = np.minimum(0.36 - np.minimum(np.abs(x), np.abs(y)), 1.0 - box)
    elif outfit.mark == 4:
        inside = np.minimum(0.35 - np.abs(y), 1.5 - np.abs(x))
    else:
        inside = np.minimum(0.8 + y, 0.55 - np.abs(x) - 0.6 * y)
    return step(-0.06, 0.06, inside)


def _pattern(outfit: Outfit, cloth: _Cloth, colour: Floats) -> Floats:
    """The top's pattern over its plain ``colour`` (3, N)."""
    if outfit.pattern == "stripes":
        cover = step(-0.15, 0.15, np.sin(cloth.up * np.float32(2 * np.pi * outfit.scale)) + (outfit.edge - 0.5) * 1.2)
    elif outfit.pattern == "check":
        # On the arms, which hang straight down at rest, left and ahead do for the way around.
        way = np.where(cloth.part["arm"] > 0.5, (cloth.left + cloth.ahead) * 6, cloth.around * 0.9)
        rows = step(0.1, 0.4, np.sin(cloth.up * np.float32(2 * np.pi * outfit.scale * 0.8)))
        columns = step(0.1, 0.4, np.sin(way * np.float32(outfit.scale * 0.75)))
        cover = 0.5 * rows + 0.5 * columns
    elif outfit.pattern == "block":
        cover = step(0.004, -0.004, cloth.up - np.float32(0.62 + 0.14 * outfit.edge))
    elif outfit.pattern == "print":
        size = np.float32(0.036 + 0.034 * outfit.mark_size)
        there = (cloth.ahead > 0) * cloth.part["torso"]
        cover = _mark(outfit, cloth.left / size, (cloth.up - np.float32(0.68 + 0.04 * outfit.mark_up)) / size) * there
    else:
        return colour
    return mix(colour, outfit.second, cover)


def _details(outfit: Outfit, cloth: _Cloth, colour: Floats) -> Floats:
    """Collars, buttons, zips and pockets on the top's ``colour`` (3, N)."""
    front = (cloth.ahead > 0) * (1 - cloth.part["arm"])
    middle = np.abs(cloth.left)
    if outfit.top in ("jacket", "coat") and outfit.open_ > 0.45:
        gap = 0.008 + 0.03 * outfit.open_ * step(0.95, 0.6, cloth.up)
        colour = mix(colour, outfit.inner, step(0.003, -0.003, middle - gap) * front)
    elif outfit.top in ("jacket", "coat", "shirt"):
        colour = mix(colour, outfit.top_colour * 0.45, step(0.006, 0.003, middle) * front * 0.8)
    if outfit.top == "hoodie":
        pocket = step(0.056, 0.052, middle) * step(0.012, 0.008, np.abs(cloth.up - 0.60)) * front
        colour = mix(colour, outfit.top_colour * 0.55, pocket * 0.6)
    if outfit.top == "shirt":
        collar = step(0.800, 0.806, cloth.up) * step(0.05, 0.045, middle)
        colour = mix(colour, np.minimum(outfit.top_colour * 1.6 + 0.1, 0.9), collar)
    return colour


def _dress(outfit: Outfit, cloth: _Cloth, skin: Floats) -> Floats:
    """Garments and shoes over ``skin`` (3,): colour (3, N)."""
    part = cloth.part
    colour = np.repeat(skin[:, None], len(cloth.up), 1)
    below = part["leg"] + part["torso"] * step(0.62, 0.58, cloth.up)
    below = below * step(outfit.cuff - 0.004, outfit.cuff + 0.004, cloth.up) + part["skirt"]
    bottom = np.repeat(outfit.bottom_colour[:, None], len(cloth.up), 1)
    if outfit.piping:
        seam = step(0.016, 0.010, np.abs(cloth.ahead)) * (np.abs(cloth.left) > 0.07)
        bottom = mix(bottom, outfit.second, seam)
    colour = mix(colour, bottom, below)
    shoe = part["foot"] + part["leg"] * step(outfit.boot + 0.004, outfit.boot - 0.004, cloth.up)
    colour = mix(colour, outfit.shoes, shoe)
    colour = mix(colour, outfit.sole, part["foot"] * step(0.016, 0.010, cloth.up))
    top = np.repeat(outfit.top_colour[:, None], len(cloth.up), 1)
    top = _details(outfit, cloth, _pattern(outfit, cloth, top))
    hung = part["torso"] + (part["skirt"] + part["leg"]) * (outfit.top == "coat")
    neckline = step(0.834, 0.842, cloth.up + 0.25 * np.maximum(cloth.ahead, 0)) * step(0.055, 0.045, np.abs(cloth.left))
    above = hung * step(outfit.hem - 0.004, outfit.hem + 0.004, cloth.up) * (1 - neckline)
    above = above + part["arm"] * step(outfit.sleeve + 0.004, outfit.sleeve - 0.004, cloth.reach) + part["hood"]
    return mix(colour, top, above)


def _head(wearer: Wearer, cloth: _Cloth, colour: Floats) -> Floats:
    """Face, beard, glasses, hair and hat over ``colour`` (3, N)."""
    ahead, left, up = cloth.face
    front = cloth.part["head"] * (ahead > 0.2)
    for side in (1.0, -1.0):
        eye = np.sqrt((left - 0.28 * side) ** 2 + ((up - 0.02) * 1.3) ** 2)
        colour = mix(colour, linear(40, 28, 26), step(0.15, 0.09, eye) * front)
        if wearer.glasses:
            colour = mix(colour, linear(20, 20, 24), step(0.31, 0.25, eye) * front)
    mouth = step(0.07, 0.03, np.abs(up + 0.58)) * step(0.26, 0.20, np.abs(left)) * front
    colour = mix(colour, wearer.skin * np.array([0.72, 0.42, 0.42], np.float32), mouth)
    if wearer.beard:
        jaw = step(-0.28, -0.38, up) * cloth.part["head"] * step(-0.1, 0.05, ahead) * step(-1.1, -0.95, up)
        colour = mix(colour, wearer.hair_colour, jaw * (1 - mouth))
    if wearer.hair != "bald":
        scalp = step(0.52, 0.60, up + 0.45 * np.maximum(-ahead, -0.2)) * cloth.part["head"] * (up > -0.6)
        colour = mix(colour, wearer.hair_colour, scalp + cloth.part["hair"])
    return mix(colour, wearer.hat_colour, cloth.part["hat"])


def _carry(wearer: Wearer, cloth: _Cloth, colour: Floats) -> Floats:
    """Bag and straps over ``colour`` (3, N)."""
    if wearer.bag == "none":
        return colour
    if wearer.bag == "backpack":
        aside, over = np.abs(np.abs(cloth.left) - 0.062), step(0.66, 0.67, cloth.up) * (cloth.ahead > -0.03)
        strap: Floats = step(0.017, 0.013, aside) * over
    else:  # from the left shoulder to the right hip
        strap = step(0.016, 0.012, np.abs(cloth.up - 0.67 - cloth.left * 1.35) * 0.6)
    colour = mix(colour, wearer.bag_colour * 0.7, strap * cloth.part["torso"])
    return mix(colour, wearer.bag_colour, cloth.part["bag"])


def paint_clothes(wearer: Wearer, outfit: Outfit, hits: Hits, rest: Figure, folds: Noise) -> Floats:
    """Colour (3, N) in linear light of a dressed person under the hits of its posed solids.

    Args:
        rest: the same person at rest.
        folds: light and dark on the cloth, over points in units of the height.
    """
    cloth = _under(hits, rest, wearer.build.height)
    colour = _carry(wearer, cloth, _dress(outfit, cloth, wearer.skin))
    wrinkled = folds(np.stack([cloth.ahead, cloth.left, cloth.up * 0.6]))
    return _head(wearer, cloth, colour) * (1 + 0.13 * wrinkled * (1 - cloth.part["head"]))
