"""Captions and sentences about a scene: short, from a small closed vocabulary, and true of the visible pixels."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zoo.world.bodies.clothes import BOTTOMS, COLOURS, TOPS
from zoo.world.bodies.coat import COATS
from zoo.world.pets import COLLARS, SPECIES
from zoo.world.things.crafts import CRAFTS
from zoo.world.things.finish import PALETTE

_PLACES = {
    "room": "in a room", "tiles": "on a tiled floor", "lawn": "on a lawn", "beach": "on a beach", "snow": "in the snow",
    "studio": "in a studio", "carpet": "on a carpet", "abstract": "",
}  # fmt: skip
_NOUNS = {"coffee_maker": "coffee maker"}
_PLURALS = {"fox": "foxes"}
_NUMBERS = ("", "a", "two", "three", "four")
_COATS = {
    "pied": "{} and white", "tricolour": "tricolour", "striped": "striped {}", "spotted": "spotted {}",
    "saddled": "dark-backed {}", "masked": "dark-faced {}",
}  # fmt: skip
_FURS = {
    "pied": "has {} and white fur", "tricolour": "has tricolour fur", "striped": "has striped {} fur",
    "spotted": "has spotted {} fur", "saddled": "has {} fur and a dark back", "masked": "has {} fur and a dark face",
}  # fmt: skip
_POSES = {"standing": "standing", "walking": "walking", "sitting": "sitting", "lying": "lying down"}
_FACING = {
    "camera": "facing the camera", "left": "facing left", "right": "facing right", "away": "facing away",
}  # fmt: skip
_PATTERNS = {
    "stripes": "striped",
    "bands": "banded",
    "dots": "dotted",
    "checks": "checked",
    "check": "checked",
    "plain": "plain",
}
_MATERIALS = {"wood": "wooden", "fabric": "fabric", "leather": "leather", "ceramic": "ceramic", "plastic": "plastic"}
_METALS = {"grey": "steel", "brown": "copper", "yellow": "brass", "black": "black metal"}
_TOPS = {"tee": "T-shirt"}
_BAGS = {"backpack": "backpack", "shoulder_bag": "shoulder bag"}
_HATS = ("cap", "beanie")
#: what else the sentences are made of.
_FRAMES = (
    "a an another the and with is in on at to of from has wears made left right middle front back behind emblem collar"
)
_APART = 0.12  # of the picture's width: least distance of the middles of what is left and right
_LAPPED = 0.25  # of the narrower width: most overlap of what is left and right
_COVERED = 0.4  # of the narrower width: least overlap of what is in front and behind
_DEPTH = 0.35  # least difference of their distances, in units of about a pet's length


@dataclass(frozen=True)
class Observation:
    """What sentences need to know of an instance in a picture.

    Args:
        kind: species, category or ``person``.
        attributes: what the picture shows of it, by name.
        box: x, y, w, h in pixels around its visible pixels.
        distance: from the camera, along the floor, in units of about a pet's length.
    """

    kind: str
    attributes: dict[str, str]
    box: tuple[int, int, int, int]
    distance: float

    @property
    def noun(self) -> str:
        return _NOUNS.get(self.kind, self.kind)

    @property
    def middle(self) -> float:
        return self.box[0] + self.box[2] / 2

    @property
    def bottom(self) -> int:
        return self.box[1] + self.box[3]


class Sentence(NamedTuple):
    """A sentence and the numbers of the instances that it is about."""

    text: str
    about: tuple[int, ...]


# Where instances are.


def _lap(one: Observation, other: Observation) -> float:
    """Overlap of two boxes along x as a share of the narrower."""
    ends = [(instance.box[0], instance.box[0] + instance.box[2]) for instance in (one, other)]
    both = min(end for _, end in ends) - max(start for start, _ in ends)
    return both / min(one.box[2], other.box[2])


def left_of(one: Observation, other: Observation, size: int) -> bool:
    """Whether one box is clearly to the left of another in a picture ``size`` pixels wide."""
    return other.middle - one.middle >= _APART * size and _lap(one, other) <= _LAPPED


def before(one: Observation, other: Observation) -> bool:
    """Whether one stands clearly in front of another, as seen from the camera."""
    nearer = other.distance - one.distance >= _DEPTH and one.bottom >= other.bottom
    return nearer and _lap(one, other) >= _COVERED


def place(k: int, among: Sequence[Observation], size: int) -> str:
    """Where number ``k`` is among others: ``on the left``, ``in front`` and the like, or nothing where unclear."""
    one, others = among[k], [other for n, other in enumerate(among) if n != k]
    at = one.middle / size
    left, right = [left_of(one, other, size) for other in others], [left_of(other, one, size) for other in others]
    margin = 0.05 if others else -0.1  # alone it must be on that side of the picture, else of the others
    if all(left) and at < 0.5 + margin:
        return "on the left"
    if all(right) and at > 0.5 - margin:
        return "on the right"
    if len(others) == 2 and any(left) and any(right) and 0.25 < at < 0.75:
        return "in the middle"
    if not others:
        return "in the middle" if 0.45 < at < 0.55 else ""
    if all(before(one, other) for other in others):
        return "in front"
    if all(before(other, one) for other in others):
        return "at the back"
    return ""


# What instances look like.


def _traits(instance: Observation) -> dict[str, str]:
    """Name of a trait -> words for it, for each trait of an instance that the picture shows."""
    words = instance.attributes
    if instance.kind == "person":
        traits: dict[str, str] = {}
        for part in ("top", "bottom"):
            if part in words:
                pattern = _PATTERNS.get(words.get(f"{part}_pattern", ""), "")
                garment = (pattern, words.get(f"{part}_colour", ""), _TOPS.get(words[part], words[part]))
                traits[part] = " ".join(filter(None, garment))
        return traits | {part: words[part] for part in ("hat", "bag") if part in words}
    if instance.kind in SPECIES:
        traits = {"coat": _COATS[words["pattern"]].format(words["coat"])} if "pattern" in words else {}
        return traits | {part: words[part] for part in ("collar",) if part in words}
    return _finish(words)


def _finish(words: dict[str, str]) -> dict[str, str]:
    """The traits of an object's finish."""
    traits = {"pattern": _PATTERNS[words["pattern"]]} if words.get("pattern") in _PATTERNS else {}
    if words.get("pattern") == "emblem":
        traits["emblem"] = "emblem"
    if "colour" in words:
        metal = words["material"] == "metal"
        first = _METALS[words["colour"]] if metal else words["colour"]
        traits["colour"] = f"{words['accent']} and {first}" if "accent" in words and metal else first
        if "accent" in words and not metal:
            traits["colour"] = f"{first} and {words['accent']}"
        if not metal and words["category"] != "bicycle":  # its material is not visible
            traits["material"] = _MATERIALS[words["material"]]
    return traits


def phrase(instance: Observation, only: Collection[str] | None = None) -> str:
    """An instance without its article, with all of its traits or ``only`` some: ``striped grey cat``."""
    traits = {name: word for name, word in _traits(instance).items() if only is None or name in only}
    if only is None and traits.get("pattern") == "plain":
        del traits["pattern"]
    before_noun = [traits[name] for name in ("coat", "pattern", "colour", "material") if name in traits]
    worn = [_worn(name, traits[name]) for name in ("top", "bottom", "hat") if name in traits]
    after = [f"in {_and(worn)}"] if worn else []
    if "bag" in traits:
        after.append(f"with {_a(_BAGS[traits['bag']])}")
    if "collar" in traits:
        after.append(f"with a {traits['collar']} collar")
    if "emblem" in traits:
        after.append("with an emblem")
    return " ".join([*before_noun, instance.noun, *after])


def _worn(part: str, garment: str) -> str:
    plural = part == "bottom" and not garment.endswith("skirt")
    return garment if plural else _a(garment)


def _facts(instance: Observation) -> dict[str, str]:
    """Facts about an instance: trait, or ``pose`` or ``facing`` -> the rest of a sentence."""
    words, traits = instance.attributes, _traits(instance)
    facts = {}
    if "pose" in words:
        facts["pose"] = f"is {_POSES[words['pose']]}"
    if "facing" in words:
        facts["facing"] = f"is {_FACING[words['facing']]}"
    if "pattern" in traits:
        facts["pattern"] = f"is {traits['pattern']}"
    if "coat" in traits:
        facts["coat"] = _FURS[words["pattern"]].format(words["coat"])
    if "collar" in traits:
        facts["collar"] = f"wears a {traits['collar']} collar"
    if words.get("material") == "metal":
        facts["colour"] = f"is made of {_METALS[words['colour']]}"
    elif "colour" in traits:
        facts["colour"] = f"is {traits['colour']}"
    if "material" in traits:
        facts["material"] = f"is made of {words['material']}"
    if "emblem" in traits:
        facts["emblem"] = "has an emblem"
    for name in ("top", "bottom", "hat"):
        if name in traits:
            facts[name] = f"wears {_worn(name, traits[name])}"
    if "bag" in traits:
        facts["bag"] = f"has {_a(_BAGS[traits['bag']])}"
    return facts


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# Which words distinguish one from the others.

_DISTINGUISHING: tuple[tuple[str, ...], ...] = (
    (), ("coat",), ("colour",), ("top",), ("pattern",), ("material",), ("bottom",), ("collar",), ("bag",), ("emblem",),
    ("coat", "collar"), ("pattern", "colour"), ("top", "bottom"),
)  # fmt: skip
_MARKS = ("collar", "bag", "emblem", "hat")  # traits that some do not have


def _differs(one: Observation, other: Observation, trait: str) -> bool:
    mine, theirs = _traits(one).get(trait), _traits(other).get(trait)
    if mine is None or (theirs is None and trait not in _MARKS):
        return False
    if trait in ("top", "bottom"):  # garments of one colour look alike
        colours = {instance.attributes.get(f"{trait}_colour") for instance in (one, other)}
        return len(colours) == 2 and None not in colours
    if trait == "colour":  # steel is grey, too
        return not {one.attributes["colour"], one.attributes.get("accent")} & {
            other.attributes["colour"], other.attributes.get("accent"),
        } - {None}  # fmt: skip
    return mine != theirs


def by_looks(k: int, scene: Sequence[Observation]) -> tuple[str, tuple[str, ...]] | None:
    """The shortest words that fit number ``k`` alone, with the traits that they name; None where there are none."""
    others = [other for n, other in enumerate(scene) if n != k and other.noun == scene[k].noun]
    for traits in _DISTINGUISHING:
        if not set(traits) <= set(_traits(scene[k])):
            continue
        if all(any(_differs(scene[k], other, trait) for trait in traits) for other in others):
            return f"the {phrase(scene[k], traits)}", traits
    return None


def by_place(k: int, scene: Sequence[Observation], size: int) -> str | None:
    """Number ``k`` distinguished from those of its kind by its place: ``the cat on the left``; None where unclear."""
    kin = [n for n, other in enumerate(scene) if other.noun == scene[k].noun]
    where = place(kin.index(k), [scene[n] for n in kin], size) if len(kin) > 1 else ""
    return f"the {scene[k].noun} {where}" if where else None


# Captions and sentences.


def captions(scene: Sequence[Observation], background: str, size: int) -> tuple[str, ...]:
    """Captions of a whole scene whose instances are given from left to right."""
    where = f" {_PLACES[background]}" if _PLACES[background] else ""
    wholes = [phrase(instance) for instance in scene]
    named = [_a(whole) if whole not in wholes[:k] else f"another {whole}" for k, whole in enumerate(wholes)]
    texts = [_counted(scene) + where, _and(named) + where]
    if len(scene) == 1:
        words = scene[0].attributes
        doing = [table[words[name]] for name, table in (("pose", _POSES), ("facing", _FACING)) if name in words]
        texts += [f"{named[0]} {how}{where}" for how in doing]
    if len(scene) == 2:
        for k, n in ((0, 1), (1, 0)):
            other = f"another {wholes[n]}" if wholes[k] == wholes[n] else _a(wholes[n])
            pairs = [f"{_a(wholes[k])} {how} {other}" for how in _relations(k, n, scene, size)]
            texts += [*pairs, *(pair + where for pair in pairs)]
    if len(scene) > 2 and all(left_of(one, other, size) for one, other in zip(scene, scene[1:], strict=False)):
        nouns = [_a(instance.noun) for instance in scene]
        texts += [f"from left to right {_and(nouns)}", f"from left to right {_and(named)}"]
    return tuple(dict.fromkeys(texts))


def _counted(scene: Sequence[Observation]) -> str:
    """``two cats and a mug``."""
    nouns = [instance.noun for instance in scene]
    parts = []
    for noun in dict.fromkeys(nouns):
        count = nouns.count(noun)
        parts.append(_a(noun) if count == 1 else f"{_NUMBERS[count]} {_plural(noun)}")
    return _and(parts)


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


def _relations(k: int, n: int, scene: Sequence[Observation], size: int) -> Iterator[str]:
    """How number ``k`` stands to number ``n``."""
    one, other = scene[k], scene[n]
    if left_of(one, other, size):
        yield "to the left of"
    if left_of(other, one, size):
        yield "to the right of"
    if before(one, other):
        yield "in front of"
    if before(other, one):
        yield "behind"


def sentences(scene: Sequence[Observation], size: int) -> tuple[Sentence, ...]:
    """Sentences about single instances and about pairs of them; none about what no words distinguish."""
    found = []
    for k, one in enumerate(scene):
        looks, there = by_looks(k, scene), by_place(k, scene, size)
        where = place(k, scene, size)
        if where:
            found.append(Sentence(f"{where} is {_a(phrase(one))}", (k,)))
        for trait, fact in _facts(one).items():
            if there:
                found.append(Sentence(f"{there} {fact}", (k,)))
            if looks and trait not in looks[1]:
                found.append(Sentence(f"{looks[0]} {fact}", (k,)))
    for k in range(len(scene)):
        for n in range(len(scene)):
            mine, theirs = by_looks(k, scene), by_looks(n, scene)
            if k != n and mine and theirs:
                found += [Sentence(f"{mine[0]} is {how} {theirs[0]}", (k, n)) for how in _relations(k, n, scene, size)]
    return tuple(found)


def words_of(text: str) -> list[str]:
    """The words of a sentence, commas left out."""
    return text.replace(",", " ").split()


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption or sentence of a scene can have, sorted; commas come on top."""
    nouns = [_NOUNS.get(kind, kind) for kind in (*SPECIES, *CRAFTS, "person")]
    coats = [coat for coats in COATS.values() for coat in coats]
    tables = (_PLACES, _COATS, _FURS, _POSES, _FACING, _PATTERNS, _MATERIALS, _METALS, _BAGS)
    texts = [
        _FRAMES, "wood", *(text.replace("{}", "") for table in tables for text in table.values()), *nouns,
        *map(_plural, nouns), *_NUMBERS, *coats, *PALETTE, *COLOURS, *COLLARS,
        *(_TOPS.get(top, top) for top in TOPS), *BOTTOMS, *_HATS,
    ]  # fmt: skip
    return tuple(sorted({word for text in texts for word in words_of(text)}))
