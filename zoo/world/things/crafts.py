"""How household objects are made: one craft a category, its proportions, its shapes and its details.

The front of an object looks along +x, its left side along +y, the floor is z = 0 and the longest extent is
about 0.9. Its function turns proportions ``n`` and words ``w`` into shapes. The slots are painted by
`zoo.world.things.finish`: ``main`` bears the pattern, ``second`` and ``third`` are the object's accents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zoo.world.things.furniture import cabinet, chair, sofa, table
from zoo.world.things.gadgets import bicycle, fan, lamp, stapler
from zoo.world.things.kitchen import coffee_maker, kettle, mug, toaster
from zoo.world.things.maker import Maker, Numbers, Words

Ranges = dict[str, tuple[float, float]]
Options = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Craft:
    """A category of objects.

    Args:
        assemble: puts an object together from proportions and words.
        ranges: range of every proportion.
        shapes: words that a family shares. details: words in which its members may differ.
        colours: material -> words for the main colour that it comes in.
        patterns: what may be printed on it.
        sides: azimuths (radians) of the sides it is seen from. arc: largest deviation from them.
        rise: least and largest elevation (radians).
    """

    assemble: Callable[[Maker, Numbers, Words], None]
    ranges: Ranges
    shapes: Options
    details: Options
    colours: Options
    patterns: tuple[str, ...]
    sides: tuple[float, ...] = (0.0,)
    arc: float = np.pi
    rise: tuple[float, float] = (0.12, 0.65)


_POTTERY = ("white", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "grey", "black", "brown")
_METAL = ("grey", "brown", "yellow", "black")
_WOOD = ("brown", "orange", "black", "white")
_CLOTH = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "grey", "brown", "white")
_FLANKS = (np.pi / 2, -np.pi / 2)
_ALL = ("plain", "stripes", "bands", "dots", "checks", "emblem")

CRAFTS: dict[str, Craft] = {
    "bicycle": Craft(
        bicycle,
        {"wheel": (0.2, 0.24), "reach": (0.72, 0.84), "tyre": (0.016, 0.028), "frame": (0.24, 0.34),
         "tube": (0.018, 0.028), "post": (0.04, 0.1)},
        {"frame": ("diamond", "step", "slope"), "tyres": ("dark", "dark", "accent", "white")},
        {"bars": ("flat", "raised", "drop"), "saddle": ("long", "wide"), "leather": ("dark", "accent"),
         "spokes": ("8", "14", "22"), "guards": ("none", "guards"), "basket": ("none", "front", "back", "both")},
        {"plastic": _POTTERY}, ("plain",), sides=_FLANKS, arc=1.15, rise=(0.0, 0.35),
    ),
    "cabinet": Craft(
        cabinet,
        {"height": (0.5, 0.95), "width": (0.55, 0.95), "depth": (0.3, 0.42), "first_row": (0.2, 0.9)},
        {"plan": ("chest", "doors", "mixed"), "feet": ("plinth", "peg", "block")},
        {"pull": ("knob", "bar", "cup", "hole"), "pull_in": ("steel", "accent"), "rows": ("2", "3", "4"),
         "columns": ("2", "3"), "top": ("slab", "flush")},
        {"wood": _WOOD, "plastic": _POTTERY}, ("plain", "stripes", "checks", "dots", "emblem"),
        arc=1.25, rise=(0.08, 0.5),
    ),
    "chair": Craft(
        chair,
        {"width": (0.40, 0.52), "depth": (0.38, 0.48), "seat": (0.38, 0.46), "back": (0.38, 0.55),
         "leg": (0.018, 0.03), "lean": (0.08, 0.28)},
        {"back": ("panel", "ladder", "slats", "hoop"), "legs": ("square", "round", "splayed")},
        {"slats": ("2", "3", "4", "5"), "rungs": ("none", "sides", "front", "box"), "arms": ("none", "none", "arms"),
         "cushion": ("board", "cushion"), "frame": ("same", "accent")},
        {"wood": _WOOD, "plastic": _POTTERY, "metal": _METAL, "fabric": _CLOTH}, _ALL,
    ),
    "coffee_maker": Craft(
        coffee_maker,
        {"height": (0.68, 0.9), "width": (0.42, 0.58), "depth": (0.46, 0.58), "head": (0.18, 0.28),
         "jug": (0.78, 0.98), "level": (0.2, 0.7)},
        {"body": ("boxy", "soft"), "jug": ("round", "cone", "can"), "pot": ("glass", "glass", "steel")},
        {"grip": ("left", "right"), "lid": ("plain", "accent", "dark"), "buttons": ("0", "1", "2", "3"),
         "button": ("round", "square"), "light": ("on", "off")},
        {"plastic": _POTTERY, "metal": _METAL}, ("plain", "stripes", "bands", "dots", "emblem"),
        arc=1.3, rise=(0.08, 0.5),
    ),
    "fan": Craft(
        fan,
        {"height": (0.5, 0.78), "radius": (0.25, 0.34), "foot": (0.15, 0.2), "pole": (0.022, 0.04),
         "blade": (0.07, 0.12), "cap": (0.045, 0.08), "phase": (0.0, 1.0)},
        {"base": ("disc", "square", "cross"), "cage": ("steel", "accent")},
        {"blades": ("3", "4", "5"), "spokes": ("12", "18", "28"), "hoops": ("1", "2", "3"),
         "buttons": ("0", "2", "3"), "pole": ("steel", "same")},
        {"plastic": _POTTERY, "metal": _METAL}, ("plain", "emblem", "bands"), arc=1.35, rise=(0.05, 0.45),
    ),
    "kettle": Craft(
        kettle,
        {"height": (0.38, 0.58), "radius": (0.25, 0.34), "spout": (0.16, 0.26), "rise": (0.22, 0.32),
         "arch": (0.2, 0.34), "bar": (0.022, 0.036)},
        {"body": ("dome", "cone", "drum", "pear"), "base": ("none", "ring", "stand")},
        {"handle": ("arch", "flat", "side"), "knob": ("ball", "disc", "peg"), "spout": ("swan", "short"),
         "lid": ("plain", "accent")},
        {"metal": _METAL, "ceramic": _POTTERY, "plastic": _POTTERY}, _ALL,
    ),
    "lamp": Craft(
        lamp,
        {"height": (0.75, 0.98), "shade": (0.2, 0.32), "depth": (0.24, 0.36), "foot": (0.1, 0.15),
         "swell": (0.8, 1.2)},
        {"cover": ("cone", "drum", "bell", "dome"), "stand": ("column", "gourd", "stack", "cone")},
        {"stand_in": ("same", "steel", "wood", "dark"), "foot": ("square", "disc", "tripod"),
         "trim": ("none", "hem", "both"), "finial": ("none", "ball"), "switch": ("none", "chain")},
        {"fabric": _CLOTH, "metal": _METAL, "plastic": _POTTERY}, _ALL, rise=(-0.02, 0.45),
    ),
    "mug": Craft(
        mug,
        {"height": (0.55, 0.85), "radius": (0.27, 0.37), "handle": (0.15, 0.21), "handle_at": (0.45, 0.58),
         "bar": (0.034, 0.055)},
        {"body": ("straight", "conical", "barrel", "waisted"), "inside": ("white", "accent", "plain")},
        {"handle": ("round", "square", "ear", "low"), "rim": ("plain", "accent"), "grip": ("plain", "accent"),
         "foot": ("plain", "dipped"), "filled": ("yes", "no")},
        {"ceramic": _POTTERY, "metal": _METAL, "plastic": _POTTERY}, ("stripes", "bands", "dots", "checks", "emblem"),
    ),
    "sofa": Craft(
        sofa,
        {"width": (0.85, 1.2), "depth": (0.42, 0.52), "seat": (0.2, 0.26), "back": (0.4, 0.56), "arm": (0.05, 0.09),
         "arm_rise": (0.08, 0.2), "pillow": (0.085, 0.115)},
        {"arms": ("block", "round", "thin", "flared"), "rest": ("split", "plain")},
        {"cushions": ("1", "2", "3"), "pillows": ("none", "left", "right", "both", "middle", "three"),
         "feet": ("none", "peg", "block")},
        {"fabric": _CLOTH, "leather": ("brown", "black", "red", "white")}, ("plain", "stripes", "checks", "dots"),
        arc=1.2, rise=(0.15, 0.6),
    ),
    "stapler": Craft(
        stapler,
        {"length": (0.8, 1.0), "width": (0.16, 0.24), "arm": (0.05, 0.085), "gape": (0.1, 0.32)},
        {"body": ("flat", "round", "wedge"), "base": ("same", "dark")},
        {"pad": ("none", "short", "long"), "stripe": ("none", "stripe"), "rivets": ("0", "1", "2"),
         "heel": ("none", "heel")},
        {"plastic": _POTTERY, "metal": _METAL}, ("plain", "stripes", "dots", "checks", "emblem"),
        sides=_FLANKS, arc=1.25, rise=(0.15, 0.7),
    ),
    "table": Craft(
        table,
        {"width": (0.8, 1.15), "depth": (0.5, 0.7), "height": (0.42, 0.62), "top": (0.03, 0.06),
         "leg": (0.022, 0.04), "bowl_at": (-0.6, 0.6)},
        {"shape": ("square", "round"), "base": ("square", "round", "pedestal", "hairpin")},
        {"frame": ("same", "accent"), "feet": ("3", "4"), "apron": ("none", "apron"), "shelf": ("none", "shelf"),
         "drawer": ("none", "drawer"), "on_top": ("none", "bowl", "books", "both")},
        {"wood": _WOOD, "plastic": _POTTERY, "metal": _METAL}, _ALL, rise=(0.15, 0.65),
    ),
    "toaster": Craft(
        toaster,
        {"depth": (0.36, 0.48), "width": (0.6, 0.85), "height": (0.38, 0.52), "lever_at": (0.55, 0.8),
         "dial_at": (0.3, 0.6)},
        {"body": ("boxy", "round", "retro"), "slots": ("two", "long", "four")},
        {"band": ("none", "base", "ends"), "lever": ("left", "right"), "dials": ("0", "1", "2"),
         "badge": ("none", "bar", "plate"), "toast": ("yes", "no")},
        {"metal": _METAL, "plastic": _POTTERY}, ("plain", "stripes", "bands", "dots", "emblem"),
        arc=1.3, rise=(0.2, 0.7),
    ),
}  # fmt: skip
