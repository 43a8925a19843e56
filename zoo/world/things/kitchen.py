"""What stands in a kitchen, put together from proportions ``n`` and words ``w``.

The front looks along +x, the left side along +y; see `zoo.world.things.crafts` for what the words may be.
"""

import numpy as np

from zoo.world.render.geometry import turn
from zoo.world.things.maker import Maker, Numbers, Words, arch

_SIDES = (1.0, -1.0)


def _radius(profile: list[tuple[float, float]], height: float) -> float:
    """Radius of a profile at a height."""
    line = np.array(sorted(profile, key=lambda point: point[1]))
    return float(np.interp(height, line[:, 1], line[:, 0]))


def mug(make: Maker, n: Numbers, w: Words) -> None:
    """A cup with a handle at its left."""
    h, r = n["height"], n["radius"]
    swell = {"straight": (1, 1, 1, 1), "conical": (0.78, 0.87, 0.94, 1), "barrel": (0.86, 1.04, 1.06, 0.92),
             "waisted": (1.0, 0.88, 0.86, 1.02)}[w["body"]]  # fmt: skip
    heights = (0.05 * h, 0.35 * h, 0.65 * h, h)
    outer = [(r * s, z) for s, z in zip(swell, heights, strict=True)]
    make.shell("second" if w["foot"] == "dipped" else "frame", [(0.0, 0.0), (r * swell[0] * 0.86, 0.0), outer[0]])
    make.shell("main", outer)
    wall, rim = 0.035, r * swell[3]
    make.shell("second" if w["rim"] == "accent" else "frame", [(rim, h), (rim - 0.008, h + 0.012), (rim - wall, h)])
    inner = [(s - wall, z) for s, z in reversed(outer)]
    make.shell({"white": "white", "accent": "second", "plain": "frame"}[w["inside"]], inner, casts=False)
    if w["filled"] == "yes":
        make.shell("coffee", [(0.0, h * 0.78), (_radius(inner, h * 0.78), h * 0.78)], casts=False)
    size, middle, thick = n["handle"], h * n["handle_at"], n["bar"]
    upper, lower = (_radius(outer, middle + z) - 0.6 * wall for z in (size, -size))
    root = max(upper, lower)
    out = root + size * 1.1
    line = {
        "round": [(upper, size), (out * 0.5 + root * 0.5, size), (out, size * 0.55), (out, -size * 0.55),
                  (out * 0.5 + root * 0.5, -size), (lower, -size)],
        "square": [(upper, size), (out, size), (out, size), (out, -size), (out, -size), (lower, -size)],
        "ear": [(upper, size * 0.9), (out, size * 1.25), (out + 0.02, size * 0.5), (root + 0.07, -size * 0.4),
                (lower, -size)],
        "low": [(upper, size), (out + 0.02, size * 0.95), (out - 0.02, 0.0), (lower, -size * 0.1)],
    }[w["handle"]]  # fmt: skip
    make.rod("second" if w["grip"] == "accent" else "frame", [(0.0, y, middle + z) for y, z in line], thick, bend=2)


def kettle(make: Maker, n: Numbers, w: Words) -> None:
    """A body with lid, spout and handle."""
    h, r = n["height"], n["radius"]
    body = {
        "dome": [(1, 0.0), (1.03, 0.12), (1, 0.3), (0.88, 0.6), (0.66, 0.85), (0.42, 1)],
        "cone": [(1, 0.0), (0.98, 0.1), (0.84, 0.4), (0.7, 0.7), (0.55, 1)],
        "drum": [(0.96, 0.0), (1, 0.08), (1, 0.75), (0.93, 0.92), (0.6, 1)],
        "pear": [(0.8, 0.0), (1.02, 0.2), (1.02, 0.4), (0.72, 0.7), (0.5, 0.9), (0.5, 1)],
    }[w["body"]]
    lift = 0.03 if w["base"] == "none" else 0.07
    profile = [(r * s, lift + h * z) for s, z in body]
    make.shell("main", profile)
    make.shell("dark" if w["base"] == "stand" else "second", [(0.0, 0.0), (r * 0.97, 0.0), (r * 0.97, lift)])
    top, lid = lift + h, r * body[-1][0]
    slot = "frame" if w["lid"] == "plain" else "second"
    make.shell(slot, [(lid * 1.03, top), (lid * 0.9, top + 0.03), (lid * 0.5, top + 0.055), (0, top + 0.06)])
    knob = {"ball": (0.05, 0.05, 0.05), "disc": (0.075, 0.075, 0.02), "peg": (0.025, 0.025, 0.06)}[w["knob"]]
    make.ball("third", (0, 0, top + 0.055 + knob[2] * 0.85), knob)
    out, rise = n["spout"], n["rise"]
    if w["spout"] == "swan":
        z = lift + 0.2 * h
        line = [(r * 0.85, z), (r + out * 0.5, z + 0.05), (r + out * 0.75, z + rise * 0.5)]
        line += [(r + out * 0.85, z + rise * 0.95), (r + out * 1.15, z + rise * 1.15)]
        radii = [0.065, 0.05, 0.04, 0.033, 0.03]
    else:
        z = lift + 0.45 * h
        line = [(r * 0.7, z), (r + out * 0.35, z + rise * 0.4), (r + out * 0.75, z + rise * 0.75)]
        radii = [0.1, 0.075, 0.05]
    make.rod("frame", [(0.0, -y, z) for y, z in line], radii, bend=2)
    thick = n["bar"]
    if w["handle"] == "side":
        reach = r * 0.95
        points = [(reach * 0.75, top - 0.06), (reach + 0.14, top - 0.04), (reach + 0.2, top - 0.12)]
        points += [(reach + 0.18, top - 0.3), (reach * 0.98, lift + h * 0.3)]
        make.rod("third", [(0.0, y, z) for y, z in points], thick, bend=2)
    else:
        wide, tall = r * 0.78, n["arch"]
        flat = 0.55 if w["handle"] == "flat" else 1.0
        points = [(wide * np.sign(c) * abs(c) ** flat, lift + h * 0.72 + (tall + 0.28 * h) * abs(s) ** flat)
                  for c, s in arch(9, 0.0, np.pi)]  # fmt: skip
        make.rod("steel", [(0.0, *p) for p in points[:3]], thick * 0.6)
        make.rod("third", [(0.0, *p) for p in points[2:7]], thick)
        make.rod("steel", [(0.0, *p) for p in points[6:]], thick * 0.6)


def toaster(make: Maker, n: Numbers, w: Words) -> None:
    """A body with slots, a lever at one end, and dials in front."""
    deep, wide, tall = n["depth"] / 2, n["width"] / 2, n["height"]
    lift = 0.04
    edge = {"boxy": 0.05, "round": 0.12, "retro": 0.19}[w["body"]]
    make.box("main", (0, 0, lift + tall / 2), (deep, wide, tall / 2), edge=edge)
    if w["band"] == "base":
        make.box("second", (0, 0, lift + 0.035), (deep + 0.006, wide + 0.006, 0.045), edge=0.03)
    elif w["band"] == "ends":
        for y in _SIDES:
            half = (deep + 0.005, 0.05, tall / 2 + 0.004)
            make.box("second", (0, y * (wide - 0.03), lift + tall / 2), half, edge=edge * 0.35)
    for x in _SIDES:
        for y in _SIDES:
            make.box("dark", (x * deep * 0.7, y * wide * 0.75, 0.025), (0.035, 0.035, 0.025))
    top = lift + tall
    slots = {
        "two": ((0.4, 0.0, 0.8), (-0.4, 0.0, 0.8)),
        "long": ((0.0, 0.0, 0.85),),
        "four": ((0.4, 0.45, 0.38), (-0.4, 0.45, 0.38), (0.4, -0.45, 0.38), (-0.4, -0.45, 0.38)),
    }[w["slots"]]
    for x, y, long in slots:
        make.box("steel", (x * deep, y * wide, top), (0.05, long * wide * 0.9 + 0.01, 0.012), edge=0.01)
        make.box("dark", (x * deep, y * wide, top + 0.002), (0.032, long * wide * 0.9 - 0.01, 0.0125), edge=0.003)
        if w["toast"] == "yes":
            make.box("toast", (x * deep, y * wide, top + 0.03), (0.024, long * wide * 0.78, 0.07), edge=0.02)
    side = {"left": 1.0, "right": -1.0}[w["lever"]]
    make.box("dark", (0, side * wide, lift + tall * 0.5), (0.014, 0.006, tall * 0.3), edge=0.004)
    make.box("third", (0, side * (wide + 0.05), lift + tall * n["lever_at"]), (0.06, 0.05, 0.022), edge=0.018)
    forward = turn(nod=np.pi / 2)
    count = int(w["dials"])
    for k in range(count):
        y = (k - (count - 1) / 2) * 0.16 - side * n["dial_at"] * wide
        make.shell("third", [(0.055, -0.04), (0.05, 0.035), (0.0, 0.04)], (deep, y, lift + tall * 0.26), forward)
        make.box("white", (deep + 0.04, y, lift + tall * 0.26 + 0.022), (0.004, 0.008, 0.02), edge=0.003)
    if w["badge"] != "none":
        shape = {"bar": (0.004, 0.13, 0.02), "plate": (0.004, 0.07, 0.05)}[w["badge"]]
        make.box("steel", (deep + 0.002, side * wide * 0.35, lift + tall * 0.75), shape, edge=0.003)


def coffee_maker(make: Maker, n: Numbers, w: Words) -> None:
    """A filter machine: base, tower, head, and a jug on its plate."""
    tall, wide, deep = n["height"], n["width"] / 2, n["depth"] / 2
    base, head = 0.09, n["head"]
    edge = {"boxy": 0.02, "soft": 0.07}[w["body"]]
    make.box("frame", (0, 0, base / 2), (deep, wide, base / 2), edge=min(edge, 0.04))
    thick = 0.11
    make.box("main", (-deep + thick, 0, tall / 2), (thick, wide, tall / 2), edge=edge)
    make.box("main", (0.0, 0, tall - head / 2), (deep * 0.96, wide, head / 2), edge=edge)
    if w["lid"] != "plain":
        make.box("second" if w["lid"] == "accent" else "dark", (0, 0, tall + 0.012), (deep * 0.85, wide * 0.85, 0.014))
    space = tall - base - head
    r, x = min(wide, deep - thick * 0.7) * n["jug"], thick * 0.75
    make.shell("dark", [(r * 1.05, base), (r * 1.05, base + 0.012), (0, base + 0.013)], (x, 0, 0))
    jug = {"round": [(0.8, 0), (1.0, 0.25), (1.0, 0.5), (0.72, 0.82), (0.72, 0.9)],
           "cone": [(1.0, 0), (0.95, 0.2), (0.7, 0.8), (0.7, 0.9)],
           "can": [(0.88, 0), (0.9, 0.3), (0.9, 0.8), (0.75, 0.9)]}[w["jug"]]  # fmt: skip
    profile = [(r * s, base + 0.015 + space * 0.9 * z) for s, z in jug]
    level = base + space * n["level"]
    glass = "steel" if w["pot"] == "steel" else "glass"
    make.shell(glass, profile, (x, 0, 0))
    if glass == "glass":
        filled = [(_radius(profile, z) * 1.005, z) for z in np.linspace(base + 0.02, level, 4).tolist()]
        make.shell("coffee", filled, (x, 0, 0), casts=False)
    lid = profile[-1]
    cap = [(lid[0] * 1.05, lid[1] - 0.02), (lid[0] * 1.05, lid[1] + 0.015), (0, lid[1] + 0.03)]
    make.shell("third", cap, (x, 0, 0))
    side = {"left": 1.0, "right": -1.0}[w["grip"]]
    bar = [(r * 0.8, 0.82), (r * 1.45, 0.8), (r * 1.4, 0.35), (r * 0.9, 0.25)]
    points = [(x + 0.55 * a, side * 0.84 * a, base + space * 0.9 * z) for a, z in bar]
    make.rod("third", points, 0.024, bend=2)
    for k in range(int(w["buttons"])):
        y = (k - (int(w["buttons"]) - 1) / 2) * 0.1
        if w["button"] == "round":
            make.ball("third", (deep * 0.96, y, tall - head * 0.5), (0.015, 0.03, 0.03))
        else:
            make.box("third", (deep * 0.96, y, tall - head * 0.5), (0.012, 0.032, 0.018), edge=0.006)
    if w["light"] == "on":
        make.ball("glow", (deep, wide * 0.7, base * 0.5), (0.014, 0.02, 0.02))
