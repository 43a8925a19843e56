"""The world of household objects: mugs, kettles, chairs and others, each of a product line of its own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoo.world.base import Sample, World, box_of
from zoo.world.render.geometry import Camera, Floats, Mask
from zoo.world.render.setting import Setting, Subject
from zoo.world.render.shapes import ShapeHits, Shapes, trace_shapes
from zoo.world.render.texture import share_of, stream
from zoo.world.things.crafts import CRAFTS, Craft
from zoo.world.things.finish import METALS, PALETTE, Finish, Print, paint_finish
from zoo.world.things.maker import Maker
from zoo.world.things.still_life import StillLife, object_light

# The categories of Stanford Online Products (Song et al., CVPR 2016); super_class_id is a name's place here.
SOP_CATEGORIES = (
    "bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa", "stapler", "table",
    "toaster",
)  # fmt: skip
_FIRST_NUMBER = 110_000_000_000  # about where eBay's item numbers stood
_OWN_PROPORTIONS = 0.45  # share of a member's own proportions at difficulty 0
_SCALES = {
    "bicycle": 1.25, "cabinet": 1.05, "chair": 1.1, "sofa": 1.15, "table": 1.1, "mug": 0.7, "stapler": 0.9,
    "kettle": 0.8, "toaster": 0.8,
}  # fmt: skip
_NAMED = 0.18  # share of the visible surface that must bear a colour for it to be named
_PRINTED, _VISIBLE = 0.04, 0.04  # light by which a print differs from its ground, and the share that shows it
_LISTS = {"Ebay_train.txt": ("train", "val"), "Ebay_test.txt": ("test",)}


@dataclass(frozen=True)
class Thing:
    """One object: its shape, its finish, and the words for what its family shares."""

    craft: Craft
    shapes: Shapes
    finish: Finish
    attributes: dict[str, str]
    accent: str  # word for the second colour


@dataclass(frozen=True)
class Objects(World):
    """Household objects in look-alike families, as of one product line.

    Members share category, shape, material, kind of pattern and colours. They differ in the print (which emblem,
    where dots and stripes lie), in details such as handles, and a little in proportions, shade and wear.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity.
        size: height and width of an image in pixels.
        difficulty: how alike the members of a family are, from 0 (as different as strangers of the same shape
            and pattern) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    NAME: ClassVar[str] = "objects"
    VERSION: ClassVar[int] = 1
    READER: ClassVar[str] = "sop"

    def kind(self, family: int) -> str:
        """The category of a family; they take turns, so every world has about as many of each."""
        return list(CRAFTS)[(family + self.seed) % len(CRAFTS)]

    def thing(self, identity: int) -> Thing:
        """The object itself, whatever the view."""
        return _thing(self, identity)

    def subject(self, identity: int, rng: np.random.Generator) -> "PlacedThing":
        """One object, turned at random, to be put into a setting with others."""
        craft = self.thing(identity).craft
        azimuth = craft.sides[rng.integers(len(craft.sides))] + float(rng.uniform(-craft.arc, craft.arc))
        return PlacedThing(self.thing(identity), azimuth)

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one object; depends on nothing but the fields and the two numbers.

        Raises:
            IndexError: there is no such identity or view.
        """
        self.check(identity, view)
        return _draw(self.thing(identity), stream(self.seed, 5, *divmod(identity, self.members), view), self.size)

    def path_of(self, identity: int, view: int) -> str:
        """Path of an image, e.g. ``mug_final/110000000123_4.JPG``."""
        return f"{self.kind(identity // self.members)}_final/{_FIRST_NUMBER + identity}_{view}.JPG"

    def finish(self, root: Path, rows: list[dict[str, str]]) -> None:
        """Writes ``Ebay_train.txt`` (train and val), ``Ebay_test.txt`` and ``Ebay_info.txt`` (both).

        Args:
            root: folder of the world.
            rows: path, identity and split, and perhaps more, of every image.
        """
        image, last_class = 0, 0
        both: list[str] = []
        for file, splits in _LISTS.items():
            lines: list[str] = []
            chosen = sorted((row for row in rows if row["split"] in splits), key=lambda row: row["path"])
            names = list(dict.fromkeys(row["identity"] for row in chosen))
            class_of = {name: last_class + k + 1 for k, name in enumerate(names)}
            for row in chosen:
                image += 1
                category = row["path"].partition("_final/")[0]
                super_class = SOP_CATEGORIES.index(category) + 1
                lines.append(f"{image} {class_of[row['identity']]} {super_class} {row['path']}")
            last_class += len(names)
            both += lines
            _write_list(root / file, lines)
        _write_list(root / "Ebay_info.txt", both)


class PlacedThing(Subject[ShapeHits]):
    """An object turned so that the camera sees it from ``azimuth``, in radians from its front to its left."""

    def __init__(self, thing: Thing, azimuth: float) -> None:
        self.thing, self.azimuth = thing, azimuth
        self.solids, self.scale = thing.shapes.proxies, _SCALES.get(thing.attributes["category"], 1.0)

    def corners(self) -> Floats:
        return self.thing.shapes.corners().reshape(-1, 3)

    def meet(self, camera: Camera, rays: Floats) -> ShapeHits:
        return trace_shapes(self.thing.shapes, camera, rays)

    def shine(self, met: ShapeHits, shown: Mask, setting: Setting) -> tuple[Floats, dict[str, str]]:
        shapes, finish, words = self.thing.shapes, self.thing.finish, self.thing.attributes
        light, painted = object_light(setting, shapes, finish, met)
        shown_words = {"category": words["category"]}
        colour = painted.colour[:, shown]
        if share_of(finish.main, colour) > _NAMED:
            shown_words |= {"material": words["material"], "colour": words["colour"]}
            if share_of(finish.second, colour) > _NAMED:
                shown_words["accent"] = self.thing.accent
            ground = paint_finish(replace(finish, pattern="plain"), shapes, met).colour[:, shown]
            if words["pattern"] == "plain" or (np.abs(colour - ground).max(0) > _PRINTED).mean() > _VISIBLE:
                shown_words["pattern"] = words["pattern"]
        return light, shown_words


def _write_list(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(["image_id class_id super_class_id path", *lines]) + "\n", newline="\n")


def _pick(options: tuple[str, ...], chance: float) -> str:
    return options[int(chance * len(options))]


def _mixed(options: dict[str, tuple[str, ...]], draw: Callable[[str], float]) -> dict[str, str]:
    return {name: _pick(words, draw(name)) for name, words in options.items()}


@lru_cache(maxsize=8)
def _thing(world: Objects, identity: int) -> Thing:
    family, member = divmod(identity, world.members)
    shared, own = stream(world.seed, 4, family), stream(world.seed, 4, family, member + 1)
    kind = world.kind(family)
    craft = CRAFTS[kind]
    material = _pick(tuple(craft.colours), shared.random())
    pattern = _pick(craft.patterns, shared.random())
    main = _pick(craft.colours[material], shared.random())
    words = (main, *_accents(main, METALS[main] if material == "metal" else PALETTE[main], shared))
    shape = _mixed(craft.shapes, lambda _: shared.random())
    numbers = {}
    for name, (low, high) in craft.ranges.items():
        common, mine = shared.uniform(low, high), own.uniform(low, high)
        numbers[name] = float(common + (mine - common) * _OWN_PROPORTIONS * world.own_share)
    for name, options in craft.details.items():
        common, mine, taken = shared.random(), own.random(), own.random() < world.own_share
        shape[name] = _pick(options, mine if taken else common)
    layout = Print.draw(shared).mixed(Print.draw(own), world.own_share, own)
    finish = Finish.of(material, pattern, words, layout, grain_seed=int(shared.integers(2**31)))
    maker = Maker()
    craft.assemble(maker, numbers, shape)
    attributes = {"category": kind, "material": material, "colour": main, "pattern": pattern}
    return Thing(craft, maker.shapes(), finish, attributes, words[1])


def _accents(main: str, rgb: tuple[int, ...], rng: np.random.Generator) -> tuple[str, str]:
    """Two more colours, each well apart from the main one (given as display colour) and from each other."""
    chosen = [rgb]
    names: list[str] = []
    for name in rng.permutation(sorted(PALETTE)).tolist():
        gaps = [float(np.abs(np.subtract(PALETTE[name], other)).sum()) for other in chosen]
        if min(gaps) > 170 and name != main and len(names) < 2:
            names.append(name)
            chosen.append(PALETTE[name])
    return names[0], names[1]


def _draw(thing: Thing, rng: np.random.Generator, size: int) -> Sample:
    craft = thing.craft
    azimuth = craft.sides[rng.integers(len(craft.sides))] + float(rng.uniform(-craft.arc, craft.arc))
    elevation = float(rng.uniform(*craft.rise))
    still = StillLife.around(thing.shapes, azimuth, elevation, rng)
    image, mask, prop = still.shot(thing.shapes, thing.finish, size, rng)
    attributes = thing.attributes | {
        "side": _side(azimuth),
        "light": still.lamp,
        "background": still.background,
        "prop": prop,
    }
    return Sample(image, mask, box_of(mask), attributes)


def _side(azimuth: float) -> str:
    """The side of the object that faces a camera at ``azimuth``, named as the object itself would."""
    return ("front", "left", "back", "right")[round(azimuth / (np.pi / 2)) % 4]
