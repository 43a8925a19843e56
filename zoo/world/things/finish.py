"""What household objects are covered with: materials, colours, prints and wear."""

from dataclasses import dataclass

import numpy as np

from zoo.world.render.geometry import Floats, Ints, Mask
from zoo.world.render.shapes import ShapeHits, Shapes, on_canvas
from zoo.world.render.texture import Noise, linear, mix, step, stream
from zoo.world.render.traits import Traits

PALETTE = {
    "white": (236, 234, 228), "grey": (150, 152, 156), "black": (38, 38, 42), "brown": (124, 78, 46),
    "red": (196, 36, 40), "orange": (228, 122, 36), "yellow": (236, 196, 50), "green": (58, 138, 64),
    "teal": (40, 150, 150), "blue": (44, 84, 184), "purple": (122, 62, 156), "pink": (232, 140, 168),
}  # fmt: skip
METALS = {"grey": (186, 188, 192), "brown": (196, 124, 88), "yellow": (214, 178, 96), "black": (64, 64, 70)}
_FIXED = {
    "dark": ((34, 34, 38), "plastic"), "steel": ((190, 192, 196), "metal"), "wood": ((156, 108, 64), "wood"),
    "white": ((236, 234, 228), "ceramic"), "coffee": (None, "ceramic"), "glow": ((255, 240, 200), "plastic"),
    "glass": ((150, 168, 176), "glass"), "toast": ((186, 120, 56), "fabric"),
}  # fmt: skip
_COFFEE = (58, 34, 22)


@dataclass(frozen=True)
class Material:
    """How a material answers to light.

    Args:
        shine: strength of the highlight. sharp: its exponent. mirror: share of the surroundings it reflects.
        grain: depth of wood grain. weave: depth of a fabric's texture.
    """

    shine: float
    sharp: float
    mirror: float
    grain: float = 0.0
    weave: float = 0.0


MATERIALS = {
    "ceramic": Material(0.55, 60, 0.07),
    "plastic": Material(0.22, 18, 0.02),
    "metal": Material(0.5, 40, 0.55),
    "wood": Material(0.08, 10, 0.0, grain=0.4),
    "fabric": Material(0.0, 1, 0.0, weave=0.16),
    "glass": Material(0.6, 60, 0.3),
    "leather": Material(0.3, 12, 0.03, weave=0.05),
}
_BARS, _BANDS, _DOTS, _CELLS, _WEAR = 7, 5, 14, 6, 3
EMBLEMS = ("disc", "ring", "star", "flower", "heart", "square", "diamond", "cross", "triangle", "moon", "bars", "drop")


class Print(Traits):
    """Where prints and wear lie."""

    SHIFTS = {
        "bar": (_BARS, 2), "slant": (1,), "band": (_BANDS, 2), "dot": (_DOTS, 3), "check": (1,),
        "emblem": (4,), "inlay": (2,), "wear": (_WEAR, 3), "tint": (9,),
    }  # fmt: skip
    CHOICES = {
        "bar": (_BARS,), "bar_colour": (_BARS,), "band": (_BANDS,), "band_colour": (_BANDS,), "dot": (_DOTS,),
        "dot_colour": (_DOTS,), "cell": (_CELLS, _CELLS), "emblem": (2,), "wear": (_WEAR,), "side": (_WEAR,),
    }  # fmt: skip


@dataclass(frozen=True)
class Finish:
    """What an object is covered with.

    Args:
        material: one of `MATERIALS`. pattern: what is printed on its main slot.
        main, second, third: colours in linear light, (3,).
        print: where it is printed.
        grain_seed: draws the grain of its wood and the weave of its fabric.
    """

    material: str
    pattern: str
    main: Floats
    second: Floats
    third: Floats
    print: Print
    grain_seed: int

    @classmethod
    def of(
        cls, material: str, pattern: str, words: tuple[str, str, str], print_: Print, grain_seed: int
    ) -> "Finish":  # fmt: skip
        """The finish in the named colours, their shades moved a little by the print's tint."""
        tint = np.exp((print_.shift["tint"].reshape(3, 3) - 0.5) * np.array([0.45, 0.2, 0.2], np.float32))
        shades = []
        for word, (level, warm, green) in zip(words, tint, strict=True):
            rgb = METALS[word] if material == "metal" and word == words[0] else PALETTE[word]
            cast = level * np.array([warm, green, 1 / warm], np.float32)
            shades.append(np.minimum(linear(*rgb) * cast, 0.92).astype(np.float32))
        return cls(material, pattern, shades[0], shades[1], shades[2], print_, grain_seed)

    def of_slot(self, slot: str) -> tuple[Floats, Material]:
        """Colour (3,) and material of a slot."""
        if slot in ("main", "frame"):
            return self.main, MATERIALS[self.material]
        if slot in ("second", "third"):
            soft = "plastic" if self.material in ("metal", "ceramic") else self.material
            return getattr(self, slot), MATERIALS[self.material if slot == "second" else soft]
        colour, material = _FIXED[slot]
        return linear(*(colour or _COFFEE)), MATERIALS[material]


@dataclass(frozen=True)
class PaintedSurface:
    """A painted surface at H points: colour (3, H) in linear light, and what shines, each (H,)."""

    colour: Floats
    shine: Floats
    sharp: Floats
    mirror: Floats
    glow: Floats


def paint_finish(finish: Finish, shapes: Shapes, hits: ShapeHits) -> PaintedSurface:
    """The finish on an object where rays hit it."""
    colours, materials = zip(*(finish.of_slot(slot) for slot in shapes.slots), strict=True)
    slot = shapes.slot[hits.element]
    colour = np.stack(colours, 1)[:, slot]
    tables = np.array([[m.shine, m.sharp, m.mirror, m.grain, m.weave] for m in materials], np.float32).T
    shine, sharp, mirror, grain, weave = tables[:, slot]
    main = np.flatnonzero(slot == shapes.slots.index("main"))
    across, up, wide = (part[main] for part in on_canvas(shapes, hits))
    colour[:, main] = _printed(finish, across, up, wide, colour[:, main])
    worn = _wear(finish, across, up, wide, hits.point[0, main] + hits.point[1, main] > 0)
    colour[:, main] *= 1 - 0.5 * worn
    mirror[main] *= 1 - worn
    rough = np.flatnonzero((grain > 0) | (weave > 0))
    if len(rough):
        colour[:, rough] = colour[:, rough] * _texture(finish, shapes, hits, rough, grain[rough], weave[rough])
    glow = np.array([s == "glow" for s in shapes.slots], np.float32)[slot]
    return PaintedSurface(colour, shine, sharp, mirror, glow)


def _texture(finish: Finish, shapes: Shapes, hits: ShapeHits, at: Ints, grain: Floats, weave: Floats) -> Floats:
    """Brightness (H,) of wood grain, drawn out along the longest side of each element, and of cloth."""
    rng = stream(finish.grain_seed)
    rings, cloth = Noise(rng, 0.05, 6), Noise(rng, 0.03, 5)
    element = hits.element[at]
    scale = np.sqrt((shapes.axes * shapes.axes).sum(1))
    extent = (shapes.high - shapes.low) * scale
    squeeze = np.where(extent >= extent.max(1, keepdims=True), np.float32(0.1), np.float32(1))
    local = hits.local[:, at] * (scale * squeeze)[element].T + (element % 7) * np.float32(0.37)
    level = np.ones(len(at), np.float32)
    if grain.any():
        level += grain * 0.5 * rings(local)
    if weave.any():
        level += weave * cloth(hits.point[:, at])
    return level


def _printed(finish: Finish, across: Floats, up: Floats, wide: Floats, colour: Floats) -> Floats:
    """``colour`` (3, H) with the pattern on it; for the canvas see `zoo.world.render.shapes.on_canvas`."""
    layout, on = finish.print, np.abs(up) < 1
    if finish.pattern == "plain":
        return colour
    if finish.pattern == "emblem":
        return _emblem(finish, across, up, wide, colour)
    if finish.pattern == "checks":
        return _checks(finish, across, up, wide, colour)
    if finish.pattern == "dots":
        return _dots(finish, across, up, wide, colour)
    if finish.pattern == "stripes":
        name, count, slant = "bar", _BARS, (layout.shift["slant"][0] - 0.5) * 0.7
        place = np.mod(across / np.maximum(wide, 1.2) + 0.5 + slant * up, 1)
    else:
        name, count, place = "band", _BANDS, up + 0.5
    for k in range(count):
        if layout.choice[name][k] > 0.78:
            continue
        shift, width = layout.shift[name][k]
        middle = np.float32((k + 0.5 + (shift - 0.5) * 0.8) / count)
        half = np.float32((0.10 + 0.26 * width) / count)
        cover = step(0.012, -0.012, np.abs(place - middle) - half) * on
        shade = finish.second if layout.choice[f"{name}_colour"][k] < 0.65 else finish.third
        colour = mix(colour, shade, cover)
    return colour


def _checks(finish: Finish, across: Floats, up: Floats, wide: Floats, colour: Floats) -> Floats:
    """A chequered print with some of its fields left out and others in the third colour."""
    layout, on = finish.print, np.abs(up) < 1
    count = 3 + np.floor(layout.shift["check"][0] * 2.99)
    column = np.floor((across / wide + 0.5) * np.round(count * np.clip(wide, 0.5, 2))).astype(int)
    row = np.floor((up + 0.5) * count).astype(int)
    chance = layout.choice["cell"][row % _CELLS, column % _CELLS]
    even = (row + column) % 2 == 0
    colour = mix(colour, finish.second, (~even & (chance < 0.85) & on).astype(np.float32))
    return mix(colour, finish.third, (even & (chance < 0.12) & on).astype(np.float32))


def _dots(finish: Finish, across: Floats, up: Floats, wide: Floats, colour: Floats) -> Floats:
    """Dots, each moved about a place of its own on a lattice."""
    layout = finish.print
    columns = 5
    unit = np.minimum(np.sqrt(wide), 1.3)
    for k in range(_DOTS):
        if layout.choice["dot"][k] > 0.85:
            continue
        x, y, size = layout.shift["dot"][k]
        row, column = divmod(k, columns)
        at = ((column + 0.5 + 0.5 * (row % 2)) / columns + (x - 0.5) * 0.16 - 0.5) * wide
        high = np.float32((row + 0.5) / 3 + (y - 0.5) * 0.24 - 0.5)
        away = np.sqrt((across - at) ** 2 + (up - high) ** 2) / unit
        cover = step(0.012, -0.012, away - np.float32(0.05 + 0.06 * size))
        colour = mix(colour, finish.second if layout.choice["dot_colour"][k] < 0.65 else finish.third, cover)
    return colour


def _emblem(finish: Finish, across: Floats, up: Floats, wide: Floats, colour: Floats) -> Floats:
    """A big figure in the second colour with a small one in the third on it."""
    layout = finish.print
    x, y, size, turn = layout.shift["emblem"]
    unit = np.minimum(wide, 1) * np.float32(0.24 + 0.16 * size)
    u = (across - (x - 0.5) * 0.4 * wide) / unit
    v = (up - (y - 0.5) * 0.3) / unit
    angle = (turn - 0.5) * 0.9
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * u + s * v, c * v - s * u
    first, second = (EMBLEMS[int(q * len(EMBLEMS)) % len(EMBLEMS)] for q in layout.choice["emblem"])
    colour = mix(colour, finish.second, step(0.05, -0.05, _outline(first, u, v)))
    x, y = (layout.shift["inlay"] - 0.5) * 0.5
    inlay = step(0.1, -0.1, _outline(second, (u - x) * 2.6, (v - y) * 2.6))
    return mix(colour, finish.third, inlay)


def _outline(shape: str, u: Floats, v: Floats) -> Floats:
    """Below 0 inside one of `EMBLEMS` of about unit radius, above 0 outside: (H,)."""
    away = np.sqrt(u * u + v * v)
    match shape:
        case "disc":
            return away - 0.95
        case "ring":
            return np.abs(away - 0.75) - 0.25
        case "star":
            return away - (0.72 + 0.3 * np.cos(5 * np.arctan2(u, v)))
        case "flower":
            return away - (0.8 + 0.22 * np.cos(8 * np.arctan2(u, v)))
        case "heart":
            return np.sqrt(u * u + (v * 1.1 + 0.1 - 0.75 * np.sqrt(np.abs(u) + 0.01)) ** 2) - 0.9
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.82
        case "diamond":
            return np.abs(u) + np.abs(v) - 1.05
        case "cross":
            tall, broad = np.maximum(np.abs(u) - 0.3, np.abs(v) - 1), np.maximum(np.abs(v) - 0.3, np.abs(u) - 1)
            return np.minimum(tall, broad)
        case "triangle":
            return np.maximum(np.abs(u) * 0.87 + v * 0.5 - 0.45, -v - 0.7)
        case "moon":
            return np.maximum(away - 1, 0.8 - np.sqrt((u - 0.5) ** 2 + v * v))
        case "bars":
            return np.maximum(np.abs(np.mod(v * 1.5 + 0.5, 1) - 0.5) - 0.27, np.maximum(np.abs(u), np.abs(v)) - 1)
        case "drop":
            return np.sqrt(u * u * np.maximum(1.6 + v, 0.2) + v * v * 0.8) - 0.85
        case _:
            raise ValueError(f"Unknown emblem {shape!r}. Known: {', '.join(EMBLEMS)}.")


def _wear(finish: Finish, across: Floats, up: Floats, wide: Floats, near: Mask) -> Floats:
    """Cover (H,) of chips and stains, each on one side of the object (``near`` is true on one of them)."""
    cover = np.zeros_like(up)
    for k in range(_WEAR):
        if finish.print.choice["wear"][k] > 0.35:
            continue
        x, y, size = finish.print.shift["wear"][k]
        ragged = 0.02 * np.sin(across * 40 + k) * np.sin(up * 37)
        away = np.sqrt((across - (x - 0.5) * 0.8 * wide) ** 2 + (up - (y - 0.5) * 0.9) ** 2) + ragged
        spot = step(0.015, -0.015, away - np.float32(0.025 + 0.04 * size))
        np.maximum(cover, spot * (near == (finish.print.choice["side"][k] < 0.5)), out=cover)
    return cover
