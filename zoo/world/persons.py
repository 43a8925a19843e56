"""The wing of the persons: whole people in two outfits each, seen by six surveillance cameras."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeVar

import numpy as np

from zoo.world.anatomy import Figure
from zoo.world.base import Sample, World, box_of
from zoo.world.clothes import (
    BAGS,
    BOTTOMS,
    COLOURS,
    HAIR_COLOURS,
    HAIRS,
    HATS,
    PRINTS,
    SKINS,
    TOPS,
    Looks,
    Outfit,
    paint,
    shape_of,
)
from zoo.world.human import Build, Gait, pose_human
from zoo.world.lookout import OBSTACLES, PLACES, Lookout, obstacle
from zoo.world.scenery import Light, Prop
from zoo.world.stage import Stage, Subject
from zoo.world.texture import Noise, linear, share_of, stream
from zoo.world.trace import Camera, Floats, Hits, Mask, shade_of, trace

Word = TypeVar("Word")
_BLEND = 0.018  # metres over which the parts of a figure melt together

# Build class -> ranges of height, girth, shoulders, legs and hips.
BUILDS: dict[str, tuple[tuple[float, float], ...]] = {
    "slim": ((1.58, 1.78), (0.82, 0.94), (0.88, 0.98), (0.515, 0.535), (0.92, 1.00)),
    "tall": ((1.80, 1.96), (0.92, 1.06), (1.00, 1.12), (0.520, 0.540), (0.92, 1.02)),
    "broad": ((1.60, 1.80), (1.22, 1.42), (1.02, 1.14), (0.495, 0.515), (1.10, 1.22)),
    "short": ((1.50, 1.66), (0.94, 1.10), (0.88, 0.96), (0.500, 0.520), (1.12, 1.24)),
}
# Upper garment -> its patterns, thickness, sleeves and hem in units of the height.
_TOPS: dict[str, tuple[tuple[str, ...], float, tuple[float, float], tuple[float, float]]] = {
    "tee": (("plain", "stripes", "block", "print"), 0.004, (0.10, 0.15), (0.485, 0.515)),
    "shirt": (("plain", "stripes", "check"), 0.006, (0.29, 0.32), (0.475, 0.505)),
    "hoodie": (("plain", "block", "print"), 0.013, (0.30, 0.33), (0.480, 0.500)),
    "jacket": (("plain", "stripes", "block"), 0.015, (0.31, 0.33), (0.490, 0.525)),
    "coat": (("plain", "check", "block"), 0.018, (0.31, 0.33), (0.30, 0.42)),
}
# Lower garment -> height of its lower edge in units of the height.
_CUFFS = {"trousers": (0.03, 0.07), "shorts": (0.28, 0.36), "skirt": (0.22, 0.36)}
_BOTTOM_ODDS = {
    "black": 0.16, "white": 0.06, "grey": 0.12, "red": 0.05, "orange": 0.03, "yellow": 0.03, "green": 0.07,
    "blue": 0.14, "navy": 0.12, "purple": 0.03, "pink": 0.04, "brown": 0.07, "beige": 0.08,
}  # fmt: skip
_SHOES = ("black", "white", "brown", "red", "grey", "navy")
CLOTHES = ("same", "changed")  # words for the first and the second outfit
_SCALE = 0.68  # of a metre, in a group with pets and objects
_STILL = 0.1  # swing of the legs, in radians, below which somebody stands
_WHOLE = 0.7  # share of somebody that must be seen for the pose to be told
_PARTS = {
    "top": ("torso", "arm_left", "arm_right"), "bottom": ("leg_left", "leg_right", "skirt"), "hat": ("hat",),
    "bag": ("bag",),
}  # fmt: skip
_SEEN = 0.04  # share of the visible figure from which on a garment, a hat or a bag is told
_QUERIES = {2: 0, 3: 1}  # views of a test identity, modulo 4, that are queries, and the outfit worn in them


@dataclass(frozen=True)
class Person:
    """One individual: looks, two outfits, and the figure at rest in each."""

    looks: Looks
    outfits: tuple[Outfit, Outfit]
    rests: tuple[Figure, Figure]


class _Traits:
    """Draws the traits of one member: shared ones from the family, others mixed from the family's and its own.

    Args:
        share: of the member's own, in [0, 1].
    """

    def __init__(self, shared: np.random.Generator, own: np.random.Generator, share: float) -> None:
        self.shared, self.own, self.share = shared, own, share

    def of_family(self, words: tuple[Word, ...], odds: tuple[float, ...] | None = None) -> Word:
        """A word that all members share."""
        return words[int(self.shared.choice(len(words), p=odds))]

    def pick(self, words: tuple[Word, ...], odds: tuple[float, ...] | None = None) -> Word:
        """The family's word or the member's own."""
        common, other = (words[int(rng.choice(len(words), p=odds))] for rng in (self.shared, self.own))
        return other if self.own.uniform() < self.share else common

    def between(self, low: float, high: float) -> float:
        """A number of the family, moved towards the member's own."""
        common, other = self.shared.uniform(low, high), self.own.uniform(low, high)
        return float(common + (other - common) * self.share)

    def shade(self, rgb: tuple[int, int, int], spread: float) -> Floats:
        """A colour in linear light, a little lighter, darker, warmer or colder than ``rgb``."""
        level, tone = self.between(-spread, spread), self.between(-spread, spread)
        return np.minimum(linear(*rgb) * np.exp([level + tone / 3, level, level - tone / 3]), 0.9).astype(np.float32)


def _looks(kind: str, traits: _Traits) -> Looks:
    """Build, head and bag of a person of one of `BUILDS`."""
    numbers = [traits.between(low, high) for low, high in BUILDS[kind]]
    hair_word = traits.pick(tuple(HAIR_COLOURS), (0.28, 0.28, 0.2, 0.1, 0.14))
    hair = traits.pick(HAIRS, (0.34, 0.18, 0.14, 0.12, 0.14, 0.08))
    return Looks(
        build=Build(*numbers),
        skin=traits.shade(traits.pick(SKINS), 0.12),
        hair=hair,
        hair_word=hair_word,
        hair_colour=traits.shade(HAIR_COLOURS[hair_word], 0.25),
        beard=traits.pick((True, False), (0.2, 0.8)) and hair in ("short", "bald", "curly"),
        glasses=traits.pick((True, False), (0.25, 0.75)),
        hat=traits.pick(HATS, (0.74, 0.15, 0.11)),
        hat_colour=traits.shade(COLOURS[traits.pick(tuple(COLOURS))], 0.2),
        bag=traits.pick(BAGS, (0.42, 0.30, 0.28)),
        bag_colour=traits.shade(COLOURS[traits.pick(tuple(COLOURS))], 0.2),
        bag_size=traits.between(0.8, 1.25),
    )


def _outfit(top: str, traits: _Traits) -> Outfit:
    """Clothes with one of `TOPS`; garments, patterns and main colours are the family's, details a member's."""
    patterns, thickness, sleeve, hem = _TOPS[top]
    bottom = traits.of_family(BOTTOMS, (0.6, 0.2, 0.2))
    top_word = traits.of_family(tuple(COLOURS))
    bottom_word = traits.of_family(tuple(_BOTTOM_ODDS), tuple(_BOTTOM_ODDS.values()))
    other = traits.pick(tuple(word for word in COLOURS if word != top_word))
    shoe = COLOURS[traits.pick(_SHOES)]
    return Outfit(
        top=top,
        bottom=bottom,
        pattern=traits.of_family(patterns),
        top_word=top_word,
        bottom_word=bottom_word,
        top_colour=traits.shade(COLOURS[top_word], 0.22),
        second=traits.shade(COLOURS[other], 0.2),
        inner=traits.shade(COLOURS[traits.pick(tuple(COLOURS))], 0.2),
        bottom_colour=traits.shade(COLOURS[bottom_word], 0.22),
        shoes=traits.shade(shoe, 0.2),
        sole=linear(*traits.pick((COLOURS["white"], shoe, (60, 54, 50)))),
        sleeve=traits.between(*sleeve),
        hem=traits.between(*hem),
        cuff=traits.between(*_CUFFS[bottom]),
        boot=traits.pick((0.045, 0.075, 0.14), (0.5, 0.3, 0.2)),
        scale=traits.between(9, 26),
        edge=traits.between(0, 1),
        mark=traits.pick(tuple(range(PRINTS))),
        mark_size=traits.between(0, 1),
        mark_up=traits.between(0, 1),
        open_=traits.between(0, 1),
        piping=traits.pick((True, False), (0.25, 0.75)) and bottom == "trousers",
        thickness=thickness * traits.between(0.8, 1.25),
        slack=traits.between(0.004, 0.014),
    )


@lru_cache(maxsize=8)
def _person(world: "Persons", identity: int) -> Person:
    family, member = divmod(identity, world.members)
    streams = (stream(world.seed, 2, family), stream(world.seed, 2, family, member + 1))
    traits = _Traits(*streams, world.own_share)
    looks = _looks(world.kind(family), traits)
    first = traits.of_family(TOPS)
    second = traits.of_family(tuple(top for top in TOPS if top != first))
    outfits = (_outfit(first, traits), _outfit(second, traits))
    one, other = (pose_human(looks.build, shape_of(looks, outfit)) for outfit in outfits)
    return Person(looks, outfits, (one, other))


@lru_cache(maxsize=8)
def _lookouts(seed: int) -> tuple[Lookout, ...]:
    """The six cameras of a world, each at another kind of place."""
    order = stream(seed, 4).permutation(len(PLACES)).tolist()
    return tuple(Lookout.draw(k + 1, PLACES[place], stream(seed, 4, k + 1)) for k, place in enumerate(order))


def _gait(rng: np.random.Generator) -> Gait:
    """Somebody who walks, or at times stands, and perhaps holds a phone."""
    walking = rng.uniform() < 0.8
    elbows, raised = rng.uniform(0.05, 0.5, 2), rng.normal(0, 0.08, 2)
    if rng.uniform() < 0.15:
        busy = int(rng.integers(2))
        elbows[busy], raised[busy] = rng.uniform(1.6, 2.3), rng.uniform(0.1, 0.4)
    return Gait(
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(rng.uniform(0.25, 0.5) if walking else rng.uniform(0, 0.08)),
        swing=float(rng.uniform(0.15, 0.55) if walking else 0.05),
        elbows=(float(elbows[0]), float(elbows[1])),
        raised=(float(raised[0]), float(raised[1])),
        spread=float(rng.uniform(0, 0.14)),
        lean=float(rng.normal(0.03, 0.03)),
        yaw=float(rng.normal(0, 0.3)),
        nod=float(rng.normal(0.05, 0.12)),
    )


def _side(azimuth: float) -> str:
    """Which side of somebody a camera at ``azimuth`` in (-pi, pi] sees; left and right also as seen in the image."""
    if abs(azimuth) < np.pi / 4:
        return "front"
    if abs(azimuth) > 3 * np.pi / 4:
        return "back"
    return "left" if azimuth > 0 else "right"


def _draw(person: Person, worn: int, lookout: Lookout, rng: np.random.Generator, shape: tuple[int, int]) -> Sample:
    """One picture of a person in outfit number ``worn``."""
    outfit = person.outfits[worn]
    # People pass a camera one way or the other, most of them the usual ways.
    heading = lookout.heading + np.pi * rng.integers(2) + rng.normal(0, 0.9)
    azimuth = float(np.mod(heading + np.pi, 2 * np.pi) - np.pi)
    figure = pose_human(person.looks.build, shape_of(person.looks, outfit), _gait(rng))
    lamp = lookout.lamps[rng.integers(len(lookout.lamps))]
    stage = Stage(
        camera=lookout.frame(figure.solids, azimuth, rng),
        background=lookout.place.kind,
        lamp=lamp,
        light=Light.draw(lamp, azimuth, rng),
        surroundings=lookout.place_for(azimuth, rng),
        props=_obstacles(azimuth, rng),
    )
    folds = Noise(rng, 0.09, 5)

    def shine(hits: Hits) -> Floats:
        return _shine(paint(person.looks, outfit, hits, person.rests[worn], folds), figure, hits, stage)

    image, mask, _ = stage.picture(figure.solids, _BLEND, shine, shape, rng, lookout.develop)
    return Sample(image, mask, box_of(mask), _words(person, worn, lookout, azimuth))


def _words(person: Person, worn: int, lookout: Lookout, azimuth: float) -> dict[str, str]:
    """The attributes of a picture."""
    looks, outfit = person.looks, person.outfits[worn]
    return {
        "clothes": CLOTHES[worn],
        "top": outfit.top,
        "top_colour": outfit.top_word,
        "top_pattern": outfit.pattern,
        "bottom": outfit.bottom,
        "bottom_colour": outfit.bottom_word,
        "hair": looks.hair,
        "hair_colour": looks.hair_word if looks.hair != "bald" else "none",
        "hat": looks.hat,
        "bag": looks.bag,
        "side": _side(azimuth),
        "camera": str(lookout.number),
        "background": lookout.place.kind,
    }


def _obstacles(azimuth: float, rng: np.random.Generator) -> tuple[tuple[str, Prop], ...]:
    """Perhaps something in front of the person and something behind."""
    toward = np.array([np.cos(azimuth), np.sin(azimuth)])
    across = np.array([-toward[1], toward[0]])
    props = []
    for near, far, odds in ((0.6, 1.2, 0.25), (-2.5, -0.7, 0.35)):
        kind, there = OBSTACLES[rng.integers(len(OBSTACLES))], rng.uniform() < odds
        aside = across * (rng.uniform(0.15, 0.55) * rng.choice([-1, 1]))
        prop = obstacle(kind, (toward * rng.uniform(near, far) + aside).astype(np.float32), rng)
        if there:
            props.append((kind, prop))
    return tuple(props)


def _shine(colour: Floats, figure: Figure, hits: Hits, stage: Stage) -> Floats:
    """Light (3, H) from the person's surface of ``colour`` (3, H)."""
    casters = figure.part("torso", "head", "bag", "skirt", "hat")
    place = hits.point + 0.03 * hits.normal
    shadow = shade_of(casters, place, stage.light.direction, stage.light.softness, skip=0.3)
    openness = 0.6 + 0.4 * np.clip(hits.point[2], 0, 1)
    return colour * stage.light.on(hits.normal, shadow, openness)


class Passer(Subject):
    """A person in outfit number ``worn``, on the way, to be seen from the side ``azimuth``."""

    def __init__(self, person: Person, worn: int, azimuth: float, rng: np.random.Generator) -> None:
        self.person, self.worn, self.azimuth, self.scale = person, worn, azimuth, _SCALE
        looks, outfit = person.looks, person.outfits[worn]
        self.gait = _gait(rng)
        self.figure = pose_human(looks.build, shape_of(looks, outfit), self.gait)
        self.solids, self.folds = self.figure.solids, Noise(rng, 0.09, 5)

    def corners(self) -> Floats:
        return self.solids.corners()

    def meet(self, camera: Camera, rays: Floats) -> Hits:
        return trace(self.solids, camera.origin, rays, _BLEND)

    def shine(self, met: Hits, shown: Mask, stage: Stage) -> tuple[Floats, dict[str, str]]:
        looks, outfit = self.person.looks, self.person.outfits[self.worn]
        colour = paint(looks, outfit, met, self.person.rests[self.worn], self.folds)
        words = {"species": "person"}
        if shown.mean() > _WHOLE:
            side = _side(self.azimuth)
            words["facing"] = {"front": "camera", "back": "away"}.get(side, side)
            if self.gait.stride < _STILL or abs(np.sin(self.gait.phase)) > 0.5:  # else the legs pass each other
                words["pose"] = "standing" if self.gait.stride < _STILL else "walking"
        on = {part: shown & (met.blend(self.figure.belongs(*own)) > 0.5) for part, own in _PARTS.items()}
        seen = {part: bool(at.sum() > _SEEN * shown.sum()) for part, at in on.items()}
        if seen["top"]:
            words |= {"top": outfit.top}
            if share_of(outfit.top_colour, colour[:, on["top"]]) > 0.4:
                words["top_colour"] = outfit.top_word
            if outfit.pattern in ("stripes", "check") and share_of(outfit.second, colour[:, on["top"]]) > 0.15:
                words["top_pattern"] = outfit.pattern
        if seen["bottom"] and outfit.top != "coat":
            words |= {"bottom": outfit.bottom}
            if share_of(outfit.bottom_colour, colour[:, on["bottom"]]) > 0.2:
                words["bottom_colour"] = outfit.bottom_word
        worn = {"hat": looks.hat, "bag": looks.bag}
        words |= {name: word for name, word in worn.items() if word != "none" and seen[name]}
        return _shine(colour, self.figure, met, stage), words


@dataclass(frozen=True)
class Persons(World):
    """Persons in look-alike families: members share build, garments, main colours and kind of pattern.

    They differ in shades, second colours, stripes, prints, hair, skin, bag, hat and shoes, and a little in build.
    Everybody has two outfits. Six cameras, each with a place, a colour cast and noise of its own, see everybody.

    Written in the layout of Market-1501. The gallery wears the first outfit; of every four views of a test
    identity, two go to the gallery, one is a query in the first outfit, and one a query in the second, as in PRCC
    (Yang et al., TPAMI 2021); the attribute ``clothes`` tells them apart.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity, at least 4.
        size: height of an image in pixels, its width is half of it.
        difficulty: how alike the members of a family are, from 0 (as different as strangers in garments of the same
            kinds and main colours) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    size: int = 128

    NAME: ClassVar[str] = "persons"
    VERSION: ClassVar[int] = 1
    READER: ClassVar[str] = "market1501"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 4:
            raise ValueError(
                f"views must be at least 4, got {self.views}: two for the gallery, a query in the same clothes and one "
                "in changed clothes. Give a larger whole number."
            )

    def kind(self, family: int) -> str:
        """The build of a family, of `BUILDS`; they take turns, so every world has about as many of each."""
        return list(BUILDS)[(family + self.seed) % len(BUILDS)]

    @property
    def own_share(self) -> float:
        """Share of an individual's looks that is its own and not its family's."""
        return 1.0 - 0.85 * self.difficulty

    def person(self, identity: int) -> Person:
        """The individual itself, whatever the view."""
        return _person(self, identity)

    def cast(self, identity: int, rng: np.random.Generator) -> Passer:
        """One person in one of the outfits, to be put on a stage with others."""
        worn, azimuth = int(rng.integers(2)), float(rng.uniform(-np.pi, np.pi))
        return Passer(self.person(identity), worn, azimuth, rng)

    def camera_of(self, identity: int, view: int) -> int:
        """Number of the camera, from 1; the views of an identity take turns over the cameras."""
        return (identity + view) % len(PLACES) + 1

    def worn(self, identity: int, view: int) -> int:
        """0 for the first outfit, 1 for the second; identities of training wear either before every camera."""
        if self.split_of(identity) == "test":
            return _QUERIES.get(view % 4, 0)
        return (view + view // len(PLACES)) % 2

    def path_of(self, identity: int, view: int) -> str:
        """Path in the layout of Market-1501; persons are numbered from 1, as 0 and -1 stand for nobody there."""
        folder = "bounding_box_train"
        if self.split_of(identity) == "test":
            folder = "query" if view % 4 in _QUERIES else "bounding_box_test"
        return f"{folder}/{identity + 1:04d}_c{self.camera_of(identity, view)}s1_{view:06d}_01.jpg"

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one person; depends on nothing but the fields and the two numbers.

        Raises:
            IndexError: there is no such identity or view.
        """
        self.check(identity, view)
        lookout = _lookouts(self.seed)[self.camera_of(identity, view) - 1]
        rng = stream(self.seed, 3, *divmod(identity, self.members), view)
        return _draw(self.person(identity), self.worn(identity, view), lookout, rng, (self.size, self.size // 2))
