"""The coat: where an individual's patches, stripes, spots and marks lie, and how they are painted.

A `Layout` holds numbers in [0, 1]; every one of them means the same in every animal, so two layouts can be
mixed, and that is how look-alikes are made. `paint` reads them at points of the resting animal.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.anatomy import Body, Figure
from zoo.world.render.geometry import Floats
from zoo.world.render.solids import Hits
from zoo.world.render.texture import Noise, linear, mix, step, stream
from zoo.world.render.traits import Traits

PATTERNS = ("pied", "tricolour", "striped", "spotted", "saddled", "masked")

# Pattern -> coat name -> base colour, mark colour, third colour (display colours).
_WHITE, _CREAM = (238, 233, 224), (226, 203, 165)
_BLACK, _GREY, _BROWN, _GINGER = (42, 39, 40), (122, 124, 130), (104, 68, 44), (204, 122, 52)
COATS: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "pied": {
        "black": (_WHITE, _BLACK, _BLACK),
        "grey": (_WHITE, _GREY, _GREY),
        "brown": (_WHITE, _BROWN, _BROWN),
        "ginger": (_WHITE, _GINGER, _GINGER),
    },
    "tricolour": {
        "ginger": (_WHITE, _GINGER, _BLACK),
        "brown": (_WHITE, _BROWN, (186, 140, 92)),
        "cream": (_CREAM, (150, 92, 52), (60, 52, 52)),
    },
    "striped": {
        "grey": ((158, 156, 152), (54, 54, 58), _WHITE),
        "ginger": ((226, 160, 88), (164, 78, 26), _WHITE),
        "brown": ((164, 124, 84), (62, 42, 32), _WHITE),
        "cream": ((230, 210, 178), (158, 116, 78), _WHITE),
    },
    "spotted": {
        "cream": ((228, 202, 152), (72, 48, 34), _WHITE),
        "white": (_WHITE, _BLACK, _BLACK),
        "grey": ((176, 178, 182), (62, 64, 72), _WHITE),
        "ginger": ((220, 148, 76), (92, 44, 22), _WHITE),
    },
    "saddled": {
        "ginger": ((206, 138, 72), (48, 42, 42), _WHITE),
        "cream": ((230, 206, 166), (112, 78, 52), _WHITE),
        "grey": ((182, 182, 184), (66, 68, 76), _WHITE),
    },
    "masked": {
        "cream": ((232, 218, 194), (78, 58, 50), _WHITE),
        "grey": ((190, 194, 200), (70, 76, 92), _WHITE),
        "ginger": ((232, 184, 128), (150, 70, 34), _WHITE),
    },
}
_EYES = ((196, 160, 50), (120, 168, 80), (90, 150, 200), (150, 92, 40), (70, 44, 28))
_PATCHES, _BARS, _SPOTS = 8, 8, 30


class Layout(Traits):
    """Where the marks of a coat lie."""

    SHIFTS = {
        "patch_at": (_PATCHES, 3), "patch_size": (_PATCHES,), "face_at": (4, 2), "face_size": (4,),
        "bar": (_BARS, 5), "brow": (4, 3), "spot_at": (_SPOTS, 3), "spot_size": (_SPOTS,),
        "saddle": (4,), "mask": (3,), "sock": (4,), "blaze": (3,), "bib": (2,), "tip": (1,),
        "eye_patch": (2, 2), "tint": (6,), "warp": (6,),
    }  # fmt: skip
    CHOICES = {
        "patch": (_PATCHES,), "patch_colour": (_PATCHES,), "patch_side": (_PATCHES,), "face": (4,),
        "face_colour": (4,), "bar": (_BARS,), "brow": (4,), "spot": (_SPOTS,), "sock": (4,),
        "blaze": (1,), "bib": (1,), "chin": (1,), "tip": (1,), "ear": (2,), "eye_patch": (2,),
    }  # fmt: skip


@dataclass(frozen=True)
class Coat:
    """A pattern, its colours (each (3,), linear light), a layout, and the seed of its ragged edges."""

    pattern: str
    base: Floats
    mark: Floats
    third: Floats
    eye: Floats
    slit: bool
    nose: Floats
    layout: Layout
    edge_seed: int

    @classmethod
    def of(cls, pattern: str, name: str, layout: Layout, eye: int, slit: bool, edge_seed: int) -> "Coat":
        """The coat called ``name`` in ``pattern``, its shades moved a little by the layout's tint."""
        tint = np.exp((layout.shift["tint"] - 0.5) * 0.35)
        base, mark, third = (linear(*rgb) for rgb in COATS[pattern][name])
        base = np.minimum(base * tint[0] * (1 + (tint[1] - 1) * np.array([0.3, 0, -0.3], np.float32)), 0.9)
        mark = np.minimum(mark * tint[2] * (1 + (tint[3] - 1) * np.array([0.3, 0, -0.3], np.float32)), 0.9)
        nose = linear(214, 130, 124) if base.mean() > 0.45 else linear(46, 36, 38)
        return cls(pattern, base, mark, third, linear(*_EYES[eye]), slit, nose, layout, edge_seed)


@dataclass(frozen=True)
class Skin:
    """Points of the resting animal in the coat's own coordinates, each (N,) or (3, N).

    Args:
        trunk: along (0 hips, 1 shoulders), across (left is +) and up, in girths.
        face: forward, left, up from the middle of the head, in skull radii.
        low: height above the ground in leg lengths.
        head, ears, legs, tail: share of the part at each point; ears (2, N) left and right.
        along_tail: 0 at the root, 1 at the tip.
        tail_length: length of the tail in lengths of a cat's trunk.
    """

    trunk: Floats
    face: Floats
    low: Floats
    head: Floats
    ears: Floats
    legs: Floats
    tail: Floats
    along_tail: Floats
    tail_length: float

    @classmethod
    def under(cls, hits: Hits, rest: Figure, body: Body) -> "Skin":
        """The skin under the hits of a posed figure's solids."""
        x, y, z = hits.carried_to(rest.solids)
        height = body.leg + body.girth * 0.25
        trunk = np.stack([x / body.trunk + 0.5, y / body.girth, (z - height) / body.girth])
        face = (np.stack([x, y, z]) - rest.head_centre[:, None]) / body.head
        share = {
            name: hits.blend(rest.belongs(*parts))
            for name, parts in {
                "head": ("head", "muzzle", "ear_left", "ear_right"),
                "left": ("ear_left",),
                "right": ("ear_right",),
                "legs": ("front_left", "front_right", "rear_left", "rear_right"),
                "tail": ("tail",),
            }.items()
        }
        root = -body.trunk / 2 - body.girth * 0.9
        ears = np.stack([share["left"], share["right"]])
        along = (root - x) / body.tail
        return cls(trunk, face, z / body.leg, share["head"], ears, share["legs"], share["tail"], along, body.tail)


def _blobs(points: Floats, centre: Floats, size: Floats, ragged: Floats) -> Floats:
    """Cover (N,) of the union of soft balls at ``centre`` (3,) x B with ragged edges."""
    cover = np.zeros(points.shape[1], np.float32)
    for at, radius in zip(centre.astype(np.float32), size.astype(np.float32), strict=True):
        x, y, z = points[0] - at[0], points[1] - at[1], points[2] - at[2]
        reach = 1.0 - np.sqrt(x * x + y * y + z * z) * np.float32(1 / radius)
        np.maximum(cover, step(-0.06, 0.06, reach + ragged), out=cover)
    return cover


def _on_skull(turned: Floats, raised: Floats) -> Floats:
    """Points (B, 3) on a unit skull at angles (B,) to the left and up."""
    flat = np.cos(raised)
    return np.stack([flat * np.cos(turned), flat * np.sin(turned), np.sin(raised)], -1).astype(np.float32)


def _patches(coat: Coat, skin: Skin, ragged: Floats) -> list[tuple[Floats, Floats]]:
    """Big patches on trunk, tail and face: pairs of colour (3,) and cover (N,)."""
    shift, choice = coat.layout.shift, coat.layout.choice
    spread = (np.arange(_PATCHES) * 3 % _PATCHES + 0.5) / _PATCHES
    along = (spread + (shift["patch_at"][:, 0] - 0.5) * 0.5) * 1.9 - 0.45
    across = (shift["patch_at"][:, 1] - 0.5) * 2.2
    up = shift["patch_at"][:, 2] * 1.7 - 0.8
    size = 0.45 + 0.55 * shift["patch_size"]
    there, both = choice["patch"] < 0.72, choice["patch_side"] < 0.6
    second = (choice["patch_colour"] < 0.5) | (coat.pattern == "pied")
    stretched = np.stack([skin.trunk[0] * 2.2, skin.trunk[1], skin.trunk[2]])
    folded = np.stack([stretched[0], np.abs(stretched[1]), stretched[2]])
    covers: list[tuple[Floats, Floats]] = []
    for colour, which in ((coat.mark, second), (coat.third, ~second)):
        cover = np.zeros(skin.low.shape, np.float32)
        for points, mirrored in ((folded, True), (stretched, False)):
            pick = there & which & (both == mirrored)
            side = np.abs(across) if mirrored else across
            np.maximum(
                cover,
                _blobs(points, np.stack([along * 2.2, side, up], 1)[pick], size[pick], ragged),
                out=cover,
            )
        covers.append((colour, cover * (1 - skin.head)))
    turned = (np.array([0.9, -0.9, 0.45, -0.45]) + (shift["face_at"][:, 0] - 0.5) * 1.2).astype(np.float32)
    raised = (np.array([0.5, 0.5, 0.15, 0.15]) + (shift["face_at"][:, 1] - 0.5) * 1.0).astype(np.float32)
    size = 0.42 + 0.4 * shift["face_size"]
    second = (choice["face_colour"] < 0.5) | (coat.pattern == "pied")
    for colour, which in ((coat.mark, second), (coat.third, ~second)):
        pick = (choice["face"] < 0.6) & which
        cover = _blobs(skin.face, _on_skull(turned, raised)[pick], size[pick], ragged)
        covers.append((colour, cover * skin.head))
    return covers


def _stripes(coat: Coat, skin: Skin, ragged: Floats) -> Floats:
    """Bars across the back, rings on legs and tail, and bars on the brow: cover (N,)."""
    shift, choice = coat.layout.shift, coat.layout.choice
    along, across, up = skin.trunk
    cover = np.zeros(along.shape, np.float32)
    for k in range(_BARS):
        place, width, slant, reach, side = shift["bar"][k]
        if choice["bar"][k] > 0.82:
            continue
        middle = np.float32((k + 0.5 + (place - 0.5) * 0.9) / _BARS * 1.7 - 0.4)
        off = np.abs(along - middle + (slant - 0.5) * 0.5 * up + ragged * 0.25)
        half = (0.035 + 0.055 * width) * step(-1.3, 0.2, up + 0.8 * (reach - 0.4) + (side - 0.5) * across * 0.5)
        np.maximum(cover, step(0.02, -0.02, off - half) * (half > 0.008), out=cover)
    cover *= 1 - np.maximum(skin.head, skin.legs * 0.8)
    rings = np.sin(skin.along_tail * 2 * np.pi * (3 + 4 * shift["tip"][0]) * skin.tail_length)
    cover = np.maximum(cover, skin.tail * step(0.1, 0.5, rings))
    cover = np.maximum(cover, skin.legs * step(0.2, 0.6, np.sin(skin.low * 2 * np.pi * 3.2 + ragged)) * 0.7)
    front, left, high = skin.face
    for k in range(4):
        place, width, slant = shift["brow"][k]
        if choice["brow"][k] > 0.75:
            continue
        off = np.abs(left - (k - 1.5) * 0.36 - (place - 0.5) * 0.35 + (slant - 0.5) * 0.6 * (high - 0.6))
        brow = step(0.05, -0.05, off - 0.06 - 0.08 * width) * step(0.28, 0.42, high) * (front > -0.9)
        np.maximum(cover, brow * skin.head, out=cover)
    cheek = np.abs(high + 0.12 + 0.25 * (np.abs(left) - 0.7) + (shift["brow"][0, 0] - 0.5) * 0.3)
    cheek = step(0.09, 0.03, cheek) * step(0.62, 0.72, np.abs(left)) * (choice["brow"][3] < 0.6)
    return np.maximum(cover, cheek * skin.head)


def _spots(coat: Coat, skin: Skin, ragged: Floats) -> Floats:
    """Round spots all over: cover (N,)."""
    shift, choice = coat.layout.shift, coat.layout.choice
    body = np.stack([skin.trunk[0] * 2.2, np.abs(skin.trunk[1]), skin.trunk[2]])
    on_body = np.arange(_SPOTS) < 21
    size = 0.15 + 0.30 * shift["spot_size"] ** 1.5
    there = choice["spot"] < 0.85
    spread = (np.arange(_SPOTS) * 8 % 21 + 0.5) / 21
    along = ((spread + (shift["spot_at"][:, 0] - 0.5) * 0.35) * 1.75 - 0.35) * 2.2
    angle = shift["spot_at"][:, 1] * 2.3 - 0.55
    centre = np.stack([along, np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    pick = on_body & there
    cover = _blobs(body, centre[pick], size[pick], ragged * 0.5) * (1 - skin.head)
    pick = ~on_body & there
    turned, raised = (shift["spot_at"][:, 0] - 0.5) * 3.0, shift["spot_at"][:, 1] * 1.5 - 0.25
    face = _blobs(skin.face, _on_skull(turned, raised)[pick], size[pick] * 0.8, ragged * 0.5) * skin.head
    return np.maximum(cover, face)


def _saddle(coat: Coat, skin: Skin, ragged: Floats) -> Floats:
    """A dark blanket over the back and the top of the head: cover (N,)."""
    front, back, hang, cap = coat.layout.shift["saddle"]
    along, across, up = skin.trunk
    edge = up - (0.75 - 1.5 * hang) + ragged * 0.6
    inside = step(0.55 + 0.7 * front + 0.1, 0.55 + 0.7 * front - 0.1, along + ragged * 0.3)
    inside *= step(-0.5 + 0.8 * back - 0.1, -0.5 + 0.8 * back + 0.1, along + ragged * 0.3)
    cover = step(-0.12, 0.12, edge) * inside * (1 - skin.head)
    top = step(-0.1, 0.1, skin.face[2] - 0.75 + 0.6 * cap + 0.5 * np.abs(skin.face[1]) * (cap - 0.5) + ragged * 0.4)
    return np.maximum(cover, top * skin.head * (skin.face[0] < 1.1))


def _mask(coat: Coat, skin: Skin, ragged: Floats) -> Floats:
    """Dark face, ears, feet and tail that fade into the body: cover (N,)."""
    wide, high, feet = coat.layout.shift["mask"]
    front, left, up = skin.face
    off = np.sqrt((left / (0.45 + 0.55 * wide)) ** 2 + ((up + 0.25) / (0.5 + 0.6 * high)) ** 2)
    cover = skin.head * step(1.15, 0.8, off + ragged * 0.5) * (front > 0.2)
    cover = np.maximum(cover, skin.ears.sum(0))
    cover = np.maximum(cover, step(0.25 + 0.6 * feet, 0.1 + 0.5 * feet, skin.low) * skin.legs)
    return np.maximum(cover, skin.tail)


def _marks(coat: Coat, skin: Skin, colour: Floats, ragged: Floats) -> Floats:
    """Socks, bib, blaze, chin, tail tip, ears and eye patches over ``colour`` (3, N)."""
    shift, choice = coat.layout.shift, coat.layout.choice
    light = coat.pattern in ("pied", "tricolour") or (coat.pattern == "spotted" and coat.base.min() > 0.6)
    accent = coat.mark if light else linear(*_WHITE)
    front, left, up = skin.face
    along, across, low = skin.trunk[0], skin.trunk[1], skin.low
    for k, (is_front, is_left) in enumerate(((1, 1), (1, 0), (0, 1), (0, 0))):
        if choice["sock"][k] < 0.45:
            here = ((along > 0.5) == is_front) & ((across > 0) == is_left)
            top = 0.25 + 0.5 * shift["sock"][k]
            colour = mix(colour, accent, step(top + 0.04, top - 0.04, low + ragged * 0.1) * here * skin.legs)
    if choice["bib"][0] < 0.5 and not light:
        off = np.sqrt((across / (0.5 + 0.5 * shift["bib"][0])) ** 2 + ((along - 1.35) / 0.5) ** 2)
        fade = step(1.15, 0.95, off + ragged * 0.4) * (1 - skin.head) * step(0.9, 0.7, skin.trunk[2])
        colour = mix(colour, accent, fade * (along > 1.0))
    for k, side in enumerate((1.0, -1.0)):
        if choice["ear"][k] < 0.45:
            colour = mix(colour, coat.mark if not light or k == 0 else coat.third, skin.ears[k])
        if choice["eye_patch"][k] < 0.3:
            wide, high = 0.3 + 0.25 * shift["eye_patch"][k]
            spot = _on_skull(np.array([0.52 * side], np.float32), np.array([0.15], np.float32))[0]
            off = np.sqrt(((left - spot[1]) / wide) ** 2 + ((up - spot[2]) / high) ** 2)
            patch = step(1.1, 0.9, off + ragged * 0.5) * (front > 0.3) * skin.head
            colour = mix(colour, coat.mark if light else accent, patch)
    if choice["blaze"][0] < 0.5:
        middle, wide, top = (
            (shift["blaze"][0] - 0.5) * 0.3,
            0.10 + 0.20 * shift["blaze"][1],
            shift["blaze"][2],
        )
        off = np.abs(left - middle) - wide * (1.2 - 0.5 * step(-0.3, 0.9, up))
        blaze = step(0.05, -0.05, off + ragged * 0.2) * step(0.3 + 0.7 * top, 0.1 + 0.7 * top, up) * (front > 0)
        colour = mix(colour, linear(*_WHITE), blaze * skin.head)
    if choice["chin"][0] < 0.5:
        chin = step(-0.12, -0.28, up + ragged * 0.2) * (front > 0.3) * skin.head
        colour = mix(colour, linear(*_WHITE), chin)
    if choice["tip"][0] < 0.5:
        start = 0.85 - 0.55 * shift["tip"][0]
        tip = skin.tail * step(start - 0.05, start + 0.05, skin.along_tail + ragged * 0.1)
        colour = mix(colour, coat.mark if light else accent, tip)
    return colour


def _features(coat: Coat, skin: Skin, body: Body, colour: Floats) -> tuple[Floats, Floats]:
    """Eyes, nose, mouth and the inside of the ears; also how glossy each point is (N,)."""
    front, left, up = skin.face
    gloss = np.zeros(front.shape, np.float32)
    for side in (1.0, -1.0):
        spot = _on_skull(np.array([0.50 * side], np.float32), np.array([0.16], np.float32))[0] * np.array(
            [0.98, 1.04, 0.94], np.float32
        )
        x, y, z = front - spot[0], (left - spot[1]) * side, up - spot[2]
        off = np.sqrt(x * x * 0.3 + y * y + z * z) / 0.235
        near = step(1.12, 0.98, off) * (front > 0.2)
        eye = mix(np.repeat(coat.eye[:, None], len(off), 1), linear(16, 12, 12), step(0.72, 0.95, off))
        pupil = np.sqrt((y * (2.0 if coat.slit else 1.0)) ** 2 + z * z) / 0.235
        eye = mix(eye, linear(10, 8, 10), step(0.66, 0.54, pupil))
        glint = np.sqrt((y * side + 0.06) ** 2 + (z - 0.085) ** 2) / 0.235
        eye = mix(eye, np.array([1.6, 1.6, 1.6], np.float32), step(0.36, 0.24, glint))
        colour = mix(colour, eye, near)
        gloss = np.maximum(gloss, near)
    tip = np.array([1.06 + body.muzzle, 0, -0.30 + body.jaw * 0.38], np.float32)
    width = 0.13 + 0.10 * body.muzzle
    off = np.sqrt(((front - tip[0]) * 0.6) ** 2 + (left * 0.85) ** 2 + ((up - tip[2]) * 1.15) ** 2) / width
    nose = step(1.1, 0.9, off)
    colour = mix(colour, coat.nose, nose)
    drop = tip[2] - up
    line = step(0.05, 0.02, np.abs(left)) * step(0.02, 0.08, drop) * step(0.34, 0.28, drop)
    smile = step(0.05, 0.02, np.abs(drop - 0.34 + 0.9 * (np.abs(left) - 0.12) ** 2)) * (np.abs(left) < 0.30)
    mouth = np.maximum(line, smile) * (front > 0.7 + 0.5 * body.muzzle) * skin.head
    colour = mix(colour, linear(60, 36, 36), mouth * 0.75)
    return colour, np.maximum(gloss, nose * 0.6)


def paint_coat(coat: Coat, skin: Skin, body: Body) -> tuple[Floats, Floats]:
    """Colour (3, N) in linear light and gloss (N,) of the coat on ``skin``."""
    noise = Noise(stream(coat.edge_seed), 0.55, waves=6)
    moved = (coat.layout.shift["warp"] - 0.5) * 1.5
    where = np.where(skin.head > 0.5, skin.face * 0.8 + moved[:3, None], skin.trunk + moved[3:, None])
    ragged = 0.22 * noise(where.astype(np.float32))
    colour = np.repeat(coat.base[:, None], len(skin.low), 1)
    if coat.pattern in ("pied", "tricolour"):
        for shade, cover in _patches(coat, skin, ragged):
            colour = mix(colour, shade, cover)
    else:
        pattern = {"striped": _stripes, "spotted": _spots, "saddled": _saddle, "masked": _mask}[coat.pattern]
        belly = step(-0.35, -1.1, skin.trunk[2] + ragged) * (1 - skin.head) * (1 - skin.legs)
        colour = mix(colour, np.minimum(coat.base * 1.5, 0.85), belly * 0.6)
        colour = mix(colour, coat.mark, pattern(coat, skin, ragged))
    colour = _marks(coat, skin, colour, ragged)
    return _features(coat, skin, body, colour)
