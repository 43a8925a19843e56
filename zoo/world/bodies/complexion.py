"""The complexion: skin, hair, eyes, brows, mouth and marks, painted in the head's own coordinates (see `head`).

`Marks` holds numbers in [0, 1]; every one of them means the same on every face, so two can be mixed, and that is
how look-alikes are made.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.head import Head, Mood
from zoo.world.render.geometry import Floats
from zoo.world.render.texture import Noise, linear, mix, step, stream
from zoo.world.render.traits import Traits

SKINS = {
    "pale": (246, 214, 196), "fair": (236, 188, 158), "olive": (206, 162, 118), "tan": (186, 128, 88),
    "brown": (134, 86, 58), "dark": (88, 56, 42),
}  # fmt: skip
HAIR_COLOURS = {
    "black": (34, 30, 32), "brown": (88, 54, 34), "ginger": (186, 88, 36), "blond": (226, 186, 106),
    "grey": (150, 150, 154), "white": (230, 226, 220),
}  # fmt: skip
EYES = {
    "brown": (84, 48, 26), "amber": (176, 116, 40), "green": (84, 138, 76), "blue": (70, 128, 190),
    "grey": (134, 144, 152),
}  # fmt: skip
_MOLES, _FRECKLES = 5, 26
_INK, _WHITE, _MOUTH = linear(30, 20, 20), linear(240, 236, 228), linear(70, 18, 20)


class Marks(Traits):
    """What the skin bears."""

    SHIFTS = {"mole": (_MOLES, 3), "freckle": (_FRECKLES, 3), "scar": (4,), "patch": (4,), "tint": (6,)}
    CHOICES = {"mole": (_MOLES,), "freckles": (1,), "freckle": (_FRECKLES,), "scar": (1,), "patch": (1,)}


@dataclass(frozen=True)
class Complexion:
    """The colours (each (3,), linear light) and marks of one individual."""

    skin: Floats
    hair: Floats
    iris: Floats
    lips: Floats
    marks: Marks

    @classmethod
    def of(cls, skin: str, hair: str, eyes: str, marks: Marks) -> "Complexion":
        """The colours of these names, their shades moved a little by the marks' tint."""
        tint = np.exp((marks.shift["tint"] - 0.5) * np.float32(0.3))
        warm = np.array([0.4, 0, -0.4], np.float32)
        tone = np.minimum(linear(*SKINS[skin]) * tint[0] * (1 + (tint[1] - 1) * warm), 0.9)
        hue = np.minimum(linear(*HAIR_COLOURS[hair]) * tint[2] * (1 + (tint[3] - 1) * warm), 0.9)
        red = tone * np.array([0.92, 0.50, 0.52], np.float32) * tint[5]
        return cls(tone, hue, linear(*EYES[eyes]) * tint[4], red, marks)

    @property
    def brow(self) -> Floats:
        """The hair's colour, darker, and darker than the skin too, so that brows are seen."""
        return self.hair * np.float32(min(0.75, 0.6 * self.skin.mean() / self.hair.mean()))


@dataclass(frozen=True)
class Makeup:
    """What a view does to the face's paint.

    Args:
        stubble: beard that shows through the skin, 0 to 1. creases: depth of the folds, 0 to 1. blush: of the
            cheeks, 0 to 1. parting: where the hair parts, -1 (right) to 1 (left). rims: colour of clear glasses'
            rims (3,), None without.
    """

    stubble: float = 0.0
    creases: float = 0.0
    blush: float = 0.0
    parting: float = 0.0
    rims: Floats | None = None


def hair_on_skull(head: Head, style: str, at: Floats, ragged: Floats, parting: float) -> Floats:
    """Cover (N,) of the hair that grows at points (3, N) of the skull."""
    if style == "bald":
        return np.zeros(at.shape[1], np.float32)
    x, y, z = at
    if style == "mohawk":
        return step(0.24, 0.18, np.abs(y) + ragged * 0.06) * step(0.55, 0.75, z + 0.4 * (x < 0))
    off = np.abs(y) / head.width
    low = 0.35 if style in ("bob", "long") else 0.0
    top = head.hair_line - head.temples * off * off * off
    top = top - head.hair_peak * np.exp(y * y * -40) + 0.10 * parting * y
    above = step(-0.03, 0.03, z - top + ragged * 0.035)
    behind = step(0.03, -0.03, x - 0.22 + 0.25 * step(0.0, -0.35, z) - ragged * 0.035)
    nape = step(-0.60 - low, -0.52 - low, z + ragged * 0.08)
    return np.maximum(above, behind) * nape


def _tile(colour: Floats, count: int) -> Floats:
    return np.repeat(colour[:, None], count, 1)


def _eyes(
    skin: Complexion, head: Head, mood: Mood, makeup: Makeup, at: Floats, colour: Floats
) -> tuple[Floats, Floats]:
    """Eyes and brows over ``colour`` (3, N); also gloss (N,)."""
    _, y, z = at
    side = np.sign(y)
    cos, sin = np.float32(np.cos(head.eye_slant)), np.float32(np.sin(head.eye_slant))
    out, up = np.abs(y) - np.float32(head.eye_gap), z
    u, v = (out * cos + up * sin) / head.eye_width, (up * cos - out * sin)
    arch = 1 - u * u
    lid = head.eye_height * (0.08 + 0.92 * mood.lids)
    upper, lower = arch * (2 * lid - head.eye_height), arch * -head.eye_height
    inside = step(-0.02, 0.02, np.minimum(upper - v, v - lower)) * (arch > 0)
    r = head.iris * (0.55 * head.eye_height + 0.075)
    du = out * side - mood.gaze[0] * head.eye_width * 0.5
    away = np.sqrt(du * du + (v - mood.gaze[1] * head.eye_height * 0.5) ** 2) / np.float32(r)
    ball = mix(_tile(_WHITE, len(y)), skin.iris, step(1.08, 0.94, away))
    ball = mix(ball, skin.iris * 0.35, step(0.16, 0.04, np.abs(away - 1)) * np.float32(0.8))
    ball = mix(ball, _INK * 0.4, step(0.60, 0.46, away))
    glint = np.sqrt((du + 0.35 * r) ** 2 + (v - 0.4 * r) ** 2) / np.float32(r)
    ball = mix(ball, np.full(3, 1.4, np.float32), step(0.36, 0.2, glint))
    shade = mix(colour, skin.skin * 0.72, step(0.10, 0.0, v - upper) * step(1.35, 1.0, np.abs(u)) * (v > lower) * 0.6)
    colour = mix(shade, ball, inside)
    lash = step(0.045, 0.018, np.abs(v - np.maximum(upper, lower))) * step(1.12, 1.0, np.abs(u))
    colour = mix(colour, _INK, lash * np.float32(0.9))
    middle = head.brow_height + 0.09 * mood.brows
    across = (out - 0.02) / head.brow_length
    slant = head.brow_slant + 0.35 * min(mood.brows, 0)
    bow = middle - slant * (out + 0.1) * np.float32(-1 if mood.brows < -0.2 else 1) - 0.07 * across * across
    thick = head.brow_thick * (1.15 - 0.35 * across)
    brow = step(0.025, -0.015, np.abs(z - bow) - thick) * step(1.08, 0.98, np.abs(across))
    colour = mix(colour, skin.brow, brow)
    if makeup.rims is not None:
        ring = np.sqrt(out * out + (z * 1.12) ** 2)
        rim = step(0.045, 0.025, np.abs(ring - 0.30))
        bridge = step(0.04, 0.02, np.abs(z - 0.04)) * (out < -0.28)
        colour = mix(colour, makeup.rims, np.maximum(rim, bridge))
    return colour, inside * np.float32(0.3)


def _mouth(skin: Complexion, head: Head, mood: Mood, at: Floats, colour: Floats) -> Floats:
    """Lips, teeth and the line between them over ``colour`` (3, N)."""
    _, y, z = at
    half = head.mouth_width * (1 + 0.22 * max(mood.smile, 0) - 0.18 * mood.open)
    across = y / np.float32(half)
    arch = np.maximum(1 - across * across, 0)
    curve = (head.mouth_curve + 0.13 * mood.smile) * across * across
    gap = 0.24 * mood.open * arch
    line = head.mouth + curve - 0.10 * max(mood.smile, 0) * 0.5
    top, bottom = line + 0.25 * gap, line - 0.75 * gap
    bow = 1 - 0.35 * np.exp(across * across * -18)
    upper = step(-0.015, 0.02, top + head.upper_lip * np.sqrt(arch) * bow - z) * (z >= top - 0.01)
    lower = step(-0.015, 0.02, z - bottom + head.lower_lip * arch) * (z <= bottom + 0.01)
    lips = np.maximum(upper, lower) * (np.abs(across) < 1)
    colour = mix(colour, skin.lips, lips)
    colour = mix(colour, skin.skin * 0.7, step(0.05, 0.0, np.abs(z - bottom + head.lower_lip + 0.06)) * arch * 0.3)
    inner = step(-0.01, 0.01, np.minimum(top - z, z - bottom)) * (np.abs(across) < 1) * (gap > 0.01)
    colour = mix(colour, _MOUTH, inner)
    teeth = inner * step(-0.01, 0.01, z - top + 0.09) * step(1.0, 0.85, np.abs(across))
    colour = mix(colour, _WHITE, teeth)
    seam = step(0.03, 0.01, np.abs(z - line)) * step(1.1, 1.0, np.abs(across)) * (gap < 0.03)
    return mix(colour, skin.lips * 0.25, seam * np.float32(0.85))


def _nose(skin: Complexion, head: Head, at: Floats, colour: Floats) -> Floats:
    """Nostrils and the folds around the nose over ``colour`` (3, N)."""
    x, y, z = at
    off, down = np.abs(y), z + np.float32(head.nose_length)
    nostril = np.sqrt((off - head.nose_width) ** 2 + (down - 0.05) ** 2)
    fold = step(0.06, 0.0, np.abs(nostril - 0.15)) * step(-0.02, 0.03, off - head.nose_width) * (np.abs(down) < 0.2)
    beside = step(0.09, 0.0, np.abs(off - head.bridge - 0.10)) * step(0.05, -0.1, z) * step(0.0, 0.15, down)
    colour = mix(colour, skin.skin * 0.55, np.maximum(fold * 0.55, beside * 0.35).astype(np.float32))
    hole = np.sqrt(((off - 0.62 * head.nose_width) / 0.055) ** 2 + ((down + 0.02 - 0.3 * head.nose_lift) / 0.035) ** 2)
    return mix(colour, skin.skin * 0.15, step(1.25, 0.75, hole) * (x > 0.6))


def _blemishes(skin: Complexion, head: Head, at: Floats, colour: Floats) -> Floats:
    """Freckles, moles, a scar and a birthmark over ``colour`` (3, N)."""
    shift, choice = skin.marks.shift, skin.marks.choice
    _, y, z = at
    tan = skin.skin * np.array([0.62, 0.46, 0.36], np.float32)
    if choice["patch"][0] < 0.3:
        py, pz, size, shape = shift["patch"]
        v, w = y - (py - 0.5) * 1.4 * head.width, z - 0.55 + pz * 1.3
        off = np.sqrt(v * v * (0.6 + shape) + w * w + 0.3 * v * w) / (0.14 + 0.22 * size)
        patch = step(1.1, 0.9, off + 0.12 * np.sin(y * 17 + z * 11))
        colour = mix(colour, skin.skin * np.array([0.72, 0.38, 0.38], np.float32), patch * np.float32(0.8))
    if choice["freckles"][0] < 0.4:
        cover = np.zeros(len(y), np.float32)
        for (py, pz, size), there in zip(shift["freckle"], choice["freckle"], strict=True):
            if there < 0.75:
                v, w = y - (py - 0.5) * 1.5 * head.width, z + 0.12 + pz * 0.5
                np.maximum(cover, step(1.3, 0.7, np.sqrt(v * v + w * w) / (0.028 + 0.028 * size)), out=cover)
        colour = mix(colour, tan, cover * np.float32(0.7))
    for (py, pz, size), there in zip(shift["mole"], choice["mole"], strict=True):
        if there < 0.32:
            v, w = y - (py - 0.5) * 1.5 * head.width, z - 0.65 + pz * (0.6 + head.length)
            mole = step(1.2, 0.8, np.sqrt(v * v + w * w) / (0.035 + 0.045 * size))
            colour = mix(colour, np.minimum(tan * 0.4, 0.1), mole)
    if choice["scar"][0] < 0.3:
        py, pz, angle, length = shift["scar"]
        v, w = y - (py - 0.5) * 1.3 * head.width, z - 0.5 + pz * 1.3
        cos, sin = np.cos(angle * np.float32(np.pi)), np.sin(angle * np.float32(np.pi))
        along, off = v * cos + w * sin, w * cos - v * sin
        scar = step(0.055, 0.03, np.abs(off)) * step(0.02, -0.02, np.abs(along) - 0.14 - 0.18 * length)
        pale = np.minimum(skin.skin * 1.35 + 0.12, 0.95)
        colour = mix(colour, pale * np.array([1.0, 0.78, 0.76], np.float32), scar)
    return colour


def _beard(head: Head, beard: str, at: Floats, ragged: Floats) -> Floats:
    """Cover (N,) of a beard that is painted on the skin."""
    x, y, z = at
    mouth, off = head.mouth, np.abs(y)
    above = z - mouth - head.upper_lip - 0.07 + 0.35 * (off / head.mouth_width) ** 2 * 0.16
    moustache = step(0.075, 0.045, np.abs(above)) * step(1.15, 0.95, off / (head.mouth_width * 1.05))
    if beard == "moustache":
        return moustache
    chin = step(0.0, 0.06, mouth - head.lower_lip - 0.07 - z + ragged * 0.03)
    if beard == "goatee":
        return np.maximum(moustache, chin * step(0.30, 0.24, off + ragged * 0.03))
    edge = mouth + 0.06 + 0.75 * np.maximum(off - head.mouth_width, 0) + 0.35 * step(0.3, 0.0, x)
    side = step(-0.03, 0.03, edge - z + ragged * 0.02) * step(0.0, 0.06, off - head.mouth_width * 1.02)
    return np.maximum(np.maximum(moustache, chin), side * step(0.05, -0.1, z))


def paint_front(
    skin: Complexion, head: Head, mood: Mood, makeup: Makeup, beard: str, at: Floats, ragged: Floats
) -> tuple[Floats, Floats]:
    """Colour (3, N) and gloss (N,) of the front of the face at points (3, N)."""
    x, y, z = at
    colour = _tile(skin.skin, len(y))
    rosy = skin.skin * np.array([1.0, 0.66, 0.62], np.float32)
    cheeks = (np.abs(y) - 0.5 * head.width) ** 2 + (z - head.cheek_height) ** 2
    nose = y * y + (z + head.nose_length) ** 2 + (x < 0.9)
    glow = 0.25 * np.exp(nose * -30) + (0.2 + 0.5 * makeup.blush) * np.exp(cheeks * -16)
    colour = mix(colour, rosy, glow)
    if makeup.creases > 0.3:
        start = 0.10 + head.nose_width
        fold = np.abs(np.abs(y) - start - (-z - head.nose_length) * 0.55)
        fold = step(0.04, 0.0, fold) * step(-head.nose_length + 0.05, -head.nose_length - 0.05, z) * (z > head.mouth)
        lines = step(0.5, 1.0, np.sin((z - 0.5) * 42 + 0.4 * np.cos(y * 6))) * step(0.48, 0.56, z) * (np.abs(y) < 0.45)
        colour = mix(colour, skin.skin * 0.55, np.maximum(fold, lines * 0.7) * np.float32(makeup.creases * 0.7))
    colour = _blemishes(skin, head, at, _nose(skin, head, at, colour))
    if beard == "none" and makeup.stubble > 0:
        shade = _beard(head, "full", at, ragged)
        colour = mix(colour, np.minimum(skin.skin * 0.6, skin.hair * 0.5 + skin.skin * 0.3), shade * makeup.stubble)
    colour = _mouth(skin, head, mood, at, colour)
    if beard != "none":
        bare = step(0.0, 0.02, np.maximum(np.abs(z - head.mouth) - head.lower_lip, np.abs(y) - head.mouth_width))
        colour = mix(colour, skin.hair * 0.9, _beard(head, beard, at, ragged) * bare)
    return _eyes(skin, head, mood, makeup, at, colour)


def strands(hair: Floats, seed: int, at: Floats, style: str) -> Floats:
    """Colour (3, N) of hair at points (3, N): strands run from the crown down, curls all ways."""
    grain = Noise(stream(seed), 0.30, waves=4)
    stretched = at if style in ("curly", "afro", "buzz") else np.stack([at[0] * 1.3, at[1] * 2.4, at[2] * 0.5])
    return hair[:, None] * (1 + np.float32(0.38) * grain(stretched))
