"""Lamps, machines and tools, put together from proportions ``n`` and words ``w``.

The front looks along +x, the left side along +y; see `zoo.world.things.crafts` for what the words may be.
"""

import numpy as np

from zoo.world.render.geometry import Floats, turn
from zoo.world.things.maker import Maker, Numbers, Words, arch

_SIDES = (1.0, -1.0)


def fan(make: Maker, n: Numbers, w: Words) -> None:
    """Blades in a cage on a pole."""
    hub, r = n["height"], n["radius"]
    foot, thick = n["foot"], n["pole"]
    if w["base"] == "disc":
        make.shell("main", [(foot, 0), (foot, 0.025), (foot * 0.85, 0.05), (thick, 0.07)])
    elif w["base"] == "square":
        make.box("main", (0.03, 0, 0.035), (foot * 0.85, foot * 0.85, 0.035), edge=0.03)
    else:
        for k in range(4):
            c, s = np.cos(k * np.pi / 2 + 0.785), np.sin(k * np.pi / 2 + 0.785)
            make.rod("frame", [(foot * c * 1.15, foot * s * 1.15, 0.022), (0, 0, 0.05)], 0.022)
    make.rod("steel" if w["pole"] == "steel" else "frame", [(-0.04, 0, 0.03), (-0.04, 0, hub)], thick)
    for k in range(int(w["buttons"])):
        make.ball("third", (foot * 0.6, (k - 1) * 0.07, 0.07 if w["base"] == "square" else 0.045), (0.025, 0.025, 0.02))
    forward = turn(nod=np.pi / 2)  # z of a shell becomes the front
    make.shell("frame", [(0.03, -0.19), (0.07, -0.17), (0.085, -0.08), (0.06, -0.03)], (0, 0, hub), forward)
    count = int(w["blades"])
    for k in range(count):
        angle = 2 * np.pi * (k + n["phase"]) / count
        spin = turn(tilt=float(angle)) @ turn(yaw=0.35)
        middle = turn(tilt=float(angle)) @ np.array([0.02, 0.53 * r, 0]) + np.array([0, 0, hub])
        size = n["blade"] * min(1.0, 3.6 / count)
        make.ball("second", middle, (0.014, 0.43 * r, size), spin)
    cap = n["cap"]
    front = [(r, 0.03), (r * 0.93, 0.075), (r * 0.62, 0.105), (cap, 0.115)]
    back = [(0.07, -0.07), (r * 0.62, -0.06), (r * 0.93, -0.035), (r, 0.0)]
    bars = (int(w["spokes"]), int(w["hoops"]))
    make.shell("steel" if w["cage"] == "steel" else "third", front, (0, 0, hub), forward, bars, casts=False)
    make.shell("steel" if w["cage"] == "steel" else "third", back, (0, 0, hub), forward, bars)
    make.rod("frame", [(0.015, r * c, hub + r * s) for c, s in arch(25, 0, 2 * np.pi)], 0.016)
    make.shell("main", [(cap, 0.11), (cap, 0.125), (0, 0.135)], (0, 0, hub), forward)


def lamp(make: Maker, n: Numbers, w: Words) -> None:
    """A shade on a stand."""
    tall, wide, deep = n["height"], n["shade"], n["depth"]
    slot = {"same": "second", "steel": "steel", "wood": "wood", "dark": "dark"}[w["stand_in"]]
    foot = n["foot"]
    if w["foot"] == "square":
        make.box(slot, (0, 0, 0.02), (foot, foot, 0.02))
    elif w["foot"] == "disc":
        make.shell(slot, [(foot * 1.1, 0), (foot * 1.1, 0.03), (foot * 0.4, 0.05), (0, 0.06)])
    else:
        for k in range(3):
            c, s = np.cos(k * 2.094 + 0.5), np.sin(k * 2.094 + 0.5)
            make.rod(slot, [(foot * 1.4 * c, foot * 1.4 * s, 0.015), (0, 0, tall * 0.3)], 0.018)
    neck = tall - deep * 0.6
    stands: dict[str, list[tuple[float, float]]] = {
        "column": [(0.028, 0), (0.028, 1)],
        "gourd": [(0.05, 0), (0.13, 0.14), (0.155, 0.32), (0.12, 0.52), (0.05, 0.72), (0.035, 0.85), (0.03, 1)],
        "stack": [(0.03, 0), (0.09, 0.12), (0.03, 0.28), (0.08, 0.42), (0.03, 0.58), (0.07, 0.72), (0.03, 0.86),
                  (0.03, 1)],
        "cone": [(0.13, 0), (0.09, 0.4), (0.05, 0.8), (0.03, 1)],
    }  # fmt: skip
    swell = n["swell"]
    make.shell(slot, [(r * swell, 0.03 + z * (neck - 0.03)) for r, z in stands[w["stand"]]])
    top = {"cone": 0.5, "drum": 0.95, "bell": 0.35, "dome": 0.3}[w["cover"]] * wide
    bottom, z = tall - deep, tall
    heights = (0.0, 0.25, 0.5, 0.75, 1.0)
    fall = {"dome": 0.5, "bell": 1.7}.get(w["cover"], 1.0)  # above 1 the shade is hollow, below it bulges
    cover = [(top + (wide - top) * (1 - t) ** fall, bottom + deep * t) for t in heights]
    cover = cover if fall != 1.0 else [cover[0], cover[-1]]
    make.shell("main", cover)
    if w["trim"] != "none":
        make.shell("third", [(wide * 1.012, bottom - 0.005), (wide * 1.005, bottom + 0.028)], casts=False)
        if w["trim"] == "both":
            make.shell("third", [(top * 1.03 + 0.004, z - 0.028), (top * 1.01 + 0.004, z + 0.004)], casts=False)
    make.ball("glow", (0, 0, bottom + deep * 0.4), (0.05, 0.05, 0.07))
    if w["finial"] == "ball":
        make.ball("third", (0, 0, z + 0.02), (0.028, 0.028, 0.035))
    if w["switch"] == "chain":
        make.rod("steel", [(wide * 0.45, 0, bottom + 0.02), (wide * 0.45, 0, bottom - 0.13)], 0.007)
        make.ball("third", (wide * 0.45, 0, bottom - 0.14), (0.02, 0.02, 0.02))


def stapler(make: Maker, n: Numbers, w: Words) -> None:
    """An arm that opens upward from a hinge at its back, over a base."""
    long, wide, gape = n["length"] / 2, n["width"] / 2, n["gape"]
    make.box("frame" if w["base"] == "same" else "dark", (0, 0, 0.03), (long * 1.04, wide * 1.15, 0.03), edge=0.025)
    make.box("steel", (long * 0.8, 0, 0.062), (0.07, wide * 0.7, 0.008), edge=0.004)
    hinge = np.array([-long * 0.8, 0, 0.1])

    lift = turn(nod=-gape)

    def at(ahead: float, up: float) -> Floats:
        return hinge + lift @ np.array([ahead, 0, up])

    tall = n["arm"]
    make.box("dark", at(long * 0.1, -0.01), (long * 0.28, wide * 1.05, 0.075), edge=0.03)
    make.box("steel", at(long * 0.88, 0.015), (long * 0.9, wide * 0.72, 0.03), edge=0.004, axes=lift)
    make.box("steel", at(long * 1.74, 0.0), (0.045, wide * 0.8, 0.05), edge=0.008, axes=lift)
    bulge = {"flat": 0.35, "round": 0.95, "wedge": 0.5}[w["body"]]
    middle = 0.05 + tall
    make.box("main", at(long * 0.9, middle), (long * 0.95, wide, tall), edge=tall * bulge, axes=lift)
    if w["body"] == "wedge":
        make.box("main", at(long * 0.5, middle + tall * 0.7), (long * 0.5, wide * 0.95, tall * 0.7), tall * 0.5, lift)
    if w["body"] == "round":
        make.ball("main", at(long * 1.1, middle + tall * 0.5), (long * 0.7, wide * 0.96, tall * 1.1), lift)
    if w["pad"] != "none":
        reach = {"short": 0.3, "long": 0.55}[w["pad"]]
        high = middle + tall * (1.5 if w["body"] == "round" else 1.0)
        make.box("second", at(long * 1.35, high), (long * reach, wide * 0.7, 0.022), edge=0.02, axes=lift)
    if w["stripe"] == "stripe":
        make.box("third", at(long * 0.9, middle - tall * 0.6), (long * 0.955, wide * 1.02, tall * 0.18), 0.01, lift)
    for k in range(int(w["rivets"])):
        for y in _SIDES:
            beside = np.array([0, y * wide * 1.06, 0])
            make.ball("steel", at(long * (0.1 + 0.22 * k), 0.04) + beside, (0.02, 0.012, 0.02))
    if w["heel"] == "heel":
        make.ball("third", at(-long * 0.1, middle), (0.07, wide * 0.9, tall * 0.9), lift)


def _wheel(make: Maker, w: Words, x: float, r: float, tyre: float) -> None:
    """A wheel with spokes that stands at ``x``."""
    rim = [(x + r * c, 0.0, r + tyre + r * s) for c, s in arch(25, 0, 2 * np.pi)]
    make.rod({"dark": "dark", "accent": "third", "white": "white"}[w["tyres"]], rim, tyre)
    sideways = turn(tilt=np.pi / 2)
    make.shell("steel", [(0.02, 0.0), (r, 0.0)], (x, 0, r + tyre), sideways, (int(w["spokes"]), 0), casts=False)
    make.ball("steel", (x, 0, r + tyre), (0.03, 0.04, 0.03))


def bicycle(make: Maker, n: Numbers, w: Words) -> None:
    """Two wheels in a frame of tubes, with saddle, bars and perhaps a basket, a carrier and mudguards."""
    r, reach, tyre = n["wheel"], n["reach"] / 2, n["tyre"]
    axle, tube = r + tyre, n["tube"]
    for x in (reach, -reach):
        _wheel(make, w, x, r, tyre)
    pedals, seat = np.array([-0.04, 0, axle * 0.92]), np.array([-0.15, 0, axle + n["frame"]])
    head = np.array([reach - 0.12, 0, axle + n["frame"] * 1.02])
    fork = np.array([reach - 0.1, 0, axle + n["frame"] * 0.72])
    top = {"diamond": (seat, head), "step": (pedals + 0.35 * (seat - pedals), fork),
           "slope": (pedals + 0.7 * (seat - pedals), head)}[w["frame"]]  # fmt: skip
    for a, b in ((pedals, seat), (pedals, fork), top, (head, fork)):
        make.rod("main", [a, b], tube)
    for y in (0.035, -0.035):
        aside = np.array([0, y, 0])
        make.rod("main", [fork + aside, (reach, y, axle)], tube * 0.7)
        for a in (seat, pedals):
            make.rod("main", [a + aside * 0.5, (-reach, y, axle)], tube * 0.6)
    saddle = seat + np.array([-0.02, 0, n["post"]])
    make.rod("steel", [seat, saddle], tube * 0.7)
    size = {"long": (0.13, 0.05, 0.032), "wide": (0.1, 0.085, 0.032)}[w["saddle"]]
    make.ball("second" if w["leather"] == "accent" else "dark", saddle + np.array([0, 0, 0.01]), size)
    _handlebars(make, w, head, tube)
    _crank(make, pedals)
    if w["guards"] == "guards":
        wide = r + tyre * 2.2
        for x, start, end in ((reach, 0.5, 2.6), (-reach, 0.2, 2.9)):
            make.rod("second", [(x + wide * c, 0, axle + wide * s) for c, s in arch(9, start, end)], tyre * 1.1)
    if w["basket"] in ("front", "both"):
        make.box("third", (reach + 0.02, 0, float(head[2])), (0.08, 0.11, 0.075), edge=0.02)
    if w["basket"] in ("back", "both"):
        make.box("steel", (-reach, 0, axle + r + tyre + 0.06), (0.15, 0.06, 0.012), edge=0.01)


def _handlebars(make: Maker, w: Words, head: Floats, tube: float) -> None:
    """Stem, bars and grips on the frame's ``head`` (3,)."""
    stem = head + np.array([-0.01, 0, {"flat": 0.04, "raised": 0.1, "drop": 0.03}[w["bars"]]])
    make.rod("steel", [head, stem], tube * 0.8)
    bends = {
        "flat": [(0.02, 0.1, 0.0), (-0.02, 0.2, 0.0)],
        "raised": [(0.04, 0.1, 0.05), (-0.1, 0.19, 0.04)],
        "drop": [(0.1, 0.12, 0.0), (0.14, 0.14, -0.06), (0.05, 0.14, -0.12)],
    }[w["bars"]]
    for y in _SIDES:
        line = [stem, *(stem + np.array([a, y * b, c]) for a, b, c in bends)]
        make.rod("steel", line[:-1], 0.014)
        make.rod("second" if w["leather"] == "accent" else "dark", line[-2:], 0.02)


def _crank(make: Maker, at: Floats) -> None:
    """Chain wheel and pedals around ``at`` (3,)."""
    beside = at + np.array([0, -0.04, 0])
    make.shell("steel", [(0.02, 0.0), (0.075, 0.0)], beside, turn(tilt=np.pi / 2), (8, 2))
    for y in _SIDES:
        foot = at + np.array([y * 0.07, y * 0.09, -y * 0.07])
        make.rod("steel", [at, foot - np.array([0, y * 0.03, 0])], 0.012)
        make.box("dark", foot, (0.035, 0.03, 0.01))
