"""Who wears what: the build, the looks and two outfits of a member of a look-alike family."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from zoo.world.bodies.anatomy import Figure
from zoo.world.bodies.clothes import (
    BAGS,
    BOTTOMS,
    COLOURS,
    HAIR_COLOURS,
    HAIRS,
    HATS,
    PRINTS,
    SKINS,
    TOPS,
    Outfit,
    Wearer,
    shape_of,
)
from zoo.world.bodies.human import Build, pose_human
from zoo.world.render.geometry import Floats
from zoo.world.render.texture import linear

Word = TypeVar("Word")

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


@dataclass(frozen=True)
class Person:
    """One individual: who wears the clothes, two outfits, and the figure at rest in each."""

    wearer: Wearer
    outfits: tuple[Outfit, Outfit]
    rests: tuple[Figure, Figure]


class MemberDraws:
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


def _wearer(kind: str, draws: MemberDraws) -> Wearer:
    """Build, head and bag of a person of one of `BUILDS`."""
    numbers = [draws.between(low, high) for low, high in BUILDS[kind]]
    hair_word = draws.pick(tuple(HAIR_COLOURS), (0.28, 0.28, 0.2, 0.1, 0.14))
    hair = draws.pick(HAIRS, (0.34, 0.18, 0.14, 0.12, 0.14, 0.08))
    return Wearer(
        build=Build(*numbers),
        skin=draws.shade(draws.pick(SKINS), 0.12),
        hair=hair,
        hair_word=hair_word,
        hair_colour=draws.shade(HAIR_COLOURS[hair_word], 0.25),
        beard=draws.pick((True, False), (0.2, 0.8)) and hair in ("short", "bald", "curly"),
        glasses=draws.pick((True, False), (0.25, 0.75)),
        hat=draws.pick(HATS, (0.74, 0.15, 0.11)),
        hat_colour=draws.shade(COLOURS[draws.pick(tuple(COLOURS))], 0.2),
        bag=draws.pick(BAGS, (0.42, 0.30, 0.28)),
        bag_colour=draws.shade(COLOURS[draws.pick(tuple(COLOURS))], 0.2),
        bag_size=draws.between(0.8, 1.25),
    )


def _outfit(top: str, draws: MemberDraws) -> Outfit:
    """Clothes with one of `TOPS`; garments, patterns and main colours are the family's, details a member's."""
    patterns, thickness, sleeve, hem = _TOPS[top]
    bottom = draws.of_family(BOTTOMS, (0.6, 0.2, 0.2))
    top_word = draws.of_family(tuple(COLOURS))
    bottom_word = draws.of_family(tuple(_BOTTOM_ODDS), tuple(_BOTTOM_ODDS.values()))
    other = draws.pick(tuple(word for word in COLOURS if word != top_word))
    shoe = COLOURS[draws.pick(_SHOES)]
    return Outfit(
        top=top,
        bottom=bottom,
        pattern=draws.of_family(patterns),
        top_word=top_word,
        bottom_word=bottom_word,
        top_colour=draws.shade(COLOURS[top_word], 0.22),
        second=draws.shade(COLOURS[other], 0.2),
        inner=draws.shade(COLOURS[draws.pick(tuple(COLOURS))], 0.2),
        bottom_colour=draws.shade(COLOURS[bottom_word], 0.22),
        shoes=draws.shade(shoe, 0.2),
        sole=linear(*draws.pick((COLOURS["white"], shoe, (60, 54, 50)))),
        sleeve=draws.between(*sleeve),
        hem=draws.between(*hem),
        cuff=draws.between(*_CUFFS[bottom]),
        boot=draws.pick((0.045, 0.075, 0.14), (0.5, 0.3, 0.2)),
        scale=draws.between(9, 26),
        edge=draws.between(0, 1),
        mark=draws.pick(tuple(range(PRINTS))),
        mark_size=draws.between(0, 1),
        mark_up=draws.between(0, 1),
        open_=draws.between(0, 1),
        piping=draws.pick((True, False), (0.25, 0.75)) and bottom == "trousers",
        thickness=thickness * draws.between(0.8, 1.25),
        slack=draws.between(0.004, 0.014),
    )


def draw_person(kind: str, draws: MemberDraws) -> Person:
    """A person of one of `BUILDS`, whose two outfits have different upper garments."""
    wearer = _wearer(kind, draws)
    first = draws.of_family(TOPS)
    second = draws.of_family(tuple(top for top in TOPS if top != first))
    outfits = (_outfit(first, draws), _outfit(second, draws))
    one, other = (pose_human(wearer.build, shape_of(wearer, outfit)) for outfit in outfits)
    return Person(wearer, outfits, (one, other))
