"""Furniture, put together from proportions ``n`` and words ``w``.

The front looks along +x, the left side along +y; see `zoo.world.things.crafts` for what the words may be.
"""

import numpy as np

from zoo.world.render.geometry import turn
from zoo.world.things.maker import Maker, Numbers, Words, arch

_SIDES = (1.0, -1.0)
_CORNERS = tuple((x, y) for x in _SIDES for y in _SIDES)
# Where pillows lean, as shares of the seat's half width.
_PILLOWS: dict[str, tuple[float, ...]] = {
    "none": (), "left": (0.62,), "right": (-0.62,), "both": (0.66, -0.66), "middle": (0.05,),
    "three": (0.7, 0.3, -0.66),
}  # fmt: skip


def cabinet(make: Maker, n: Numbers, w: Words) -> None:
    """A chest of drawers, or a cupboard with doors."""
    deep, wide, tall = n["depth"] / 2, n["width"] / 2, n["height"]
    lift = {"plinth": 0.05, "peg": 0.14, "block": 0.08}[w["feet"]]
    make.box("frame", (0, 0, lift + tall / 2), (deep, wide, tall / 2), edge=0.012)
    if w["top"] == "slab":
        make.box("second", (0.01, 0, lift + tall + 0.015), (deep + 0.02, wide + 0.025, 0.018))
    if w["feet"] == "plinth":
        make.box("dark", (-0.02, 0, 0.03), (deep * 0.92, wide * 0.94, 0.03))
    else:
        for x, y in _CORNERS:
            at = (x * (deep - 0.04), y * (wide - 0.05))
            if w["feet"] == "peg":
                make.rod("third", [(at[0] + 0.02 * x, at[1] + 0.03 * y, 0.012), (*at, lift)], 0.02)
            else:
                make.box("third", (*at, lift / 2), (0.035, 0.035, lift / 2))
    columns, rows = int(w["columns"]), int(w["rows"])
    shares = np.array([1 + (n["first_row"] - 0.5) * 1.2 * (k == 0) for k in range(rows)])
    shares = shares / shares.sum() * (tall - 0.06)
    z = lift + tall - 0.03
    face = deep + 0.008
    for k, high in enumerate(shares):
        z -= float(high)
        across = 1 if w["plan"] == "chest" or (w["plan"] == "mixed" and k == 0) else columns
        cell = (wide - 0.03) / across
        for c in range(across):
            y = (2 * c + 1 - across) * cell
            half = (0.014, cell * 0.96, float(high) * 0.47)
            make.box("main", (face, y, z + float(high) / 2), half, edge=0.01)
            door = w["plan"] == "doors" or (across > 1 and k > 0)
            side = (1 if y <= 0 else -1) if door else 0
            _pull(make, w, (face + 0.014, y, z + float(high) / 2), half, side)


def _pull(
    make: Maker, w: Words, at: tuple[float, float, float], half: tuple[float, float, float], side: int
) -> None:  # fmt: skip
    """Handle of a drawer (``side`` 0), or of a door that opens at its side 1 or -1."""
    slot = "steel" if w["pull_in"] == "steel" else "third"
    x, y, z = at
    y += side * half[1] * 0.78
    if w["pull"] == "knob":
        make.ball(slot, (x + 0.02, y, z), (0.028, 0.028, 0.028))
    elif w["pull"] == "bar":
        reach = (0.0, min(0.1, half[1] * 0.5)) if side == 0 else (min(0.1, half[2] * 0.5), 0.0)
        make.rod(slot, [(x + 0.025, y - reach[1], z - reach[0]), (x + 0.025, y + reach[1], z + reach[0])], 0.013)
    elif w["pull"] == "cup":
        make.ball(slot, (x, y, z + 0.01), (0.03, 0.06, 0.022))
    else:
        make.box("dark", (x - 0.001, y, z), (0.004, 0.03, 0.03), edge=0.003)


def chair(make: Maker, n: Numbers, w: Words) -> None:
    """A seat on four legs with a back, perhaps with arms and rungs."""
    wide, deep, seat, tall, thick = n["width"] / 2, n["depth"] / 2, n["seat"], n["back"], n["leg"]
    frame = "second" if w["frame"] == "accent" else "frame"
    splay = 0.06 if w["legs"] == "splayed" else 0.0
    slab = {"board": 0.022, "cushion": 0.05}[w["cushion"]]
    make.box("main", (0, 0, seat), (deep, wide, slab), edge=slab * 0.8)
    for x, y in _CORNERS:
        if w["legs"] == "square":
            make.box(frame, (x * (deep - thick), y * (wide - thick), seat / 2), (thick, thick, seat / 2), edge=0.006)
        else:
            foot = (x * (deep - thick + splay), y * (wide - thick + splay), thick * 0.5)
            make.rod(frame, [foot, (x * (deep - thick), y * (wide - thick), seat)], thick)
    if w["rungs"] in ("sides", "box"):
        for y in _SIDES:
            make.rod(frame, [(-deep, y * (wide - thick), seat * 0.35), (deep, y * (wide - thick), seat * 0.35)], 0.016)
    if w["rungs"] in ("front", "box"):
        for x in _SIDES if w["rungs"] == "box" else (1.0,):
            make.rod(frame, [(x * deep * 0.9, -wide, seat * 0.5), (x * deep * 0.9, wide, seat * 0.5)], 0.016)
    back = -deep + 0.03
    _backrest(make, n, w, frame, back)
    if w["arms"] == "arms":
        x, z = back - tall * 0.42 * float(np.sin(n["lean"])), seat + tall * 0.42
        for y in _SIDES:
            make.rod(frame, [(x, y * wide, z), (deep * 0.75, y * wide * 1.03, z), (deep * 0.75, y * wide, seat)], 0.023)


def _backrest(make: Maker, n: Numbers, w: Words, frame: str, back: float) -> None:
    """What rises from a seat at x = ``back``: a panel, a hoop with bars, or posts with slats."""
    wide, seat, tall, thick, count = n["width"] / 2, n["seat"], n["back"], n["leg"], int(w["slats"])
    lean = float(np.sin(n["lean"]))
    tilt = turn(nod=-n["lean"])

    def at(y: float, share: float) -> tuple[float, float, float]:
        return back - tall * share * lean, y, seat + tall * share

    if w["back"] == "panel":
        make.box("main", at(0, 0.62), (0.028, wide * 0.94, tall * 0.36), edge=0.025, axes=tilt)
        for y in _SIDES:
            make.rod(frame, [at(y * wide * 0.7, 0), at(y * wide * 0.7, 0.62)], 0.02)
    elif w["back"] == "hoop":
        make.rod(frame, [at(c * wide * 0.92, abs(s) ** 0.7) for c, s in arch(11, 0, np.pi)], 0.024)
        for k in range(count):
            y = wide * 0.92 * ((k + 1) / (count + 1) * 2 - 1)
            make.rod("main", [at(y * 0.8, 0), at(y, float(1 - (y / wide) ** 2) ** 0.4)], 0.015)
    else:
        for y in _SIDES:
            make.rod(frame, [at(y * (wide - thick), 0), at(y * (wide - thick), 1)], thick * 0.95)
        if w["back"] == "slats":
            make.box(frame, at(0, 0.94), (0.02, wide * 0.98, 0.045), axes=tilt)
        for k in range(count):
            if w["back"] == "ladder":
                half = (0.014, wide * 0.9, 0.26 * tall / count + 0.012)
                make.box("main", at(0, 1.0 - (k + 0.3) * 0.8 / count), half, axes=tilt)
            else:
                y = wide * 0.84 * ((k + 1) / (count + 1) * 2 - 1)
                make.box("main", at(y, 0.48), (0.012, 0.5 * wide / (count + 1), tall * 0.45), axes=tilt)


def sofa(make: Maker, n: Numbers, w: Words) -> None:
    """A couch with arms, cushions and pillows."""
    wide, deep, seat, tall = n["width"] / 2, n["depth"] / 2, n["seat"], n["back"]
    arm, lift = n["arm"], 0.0 if w["feet"] == "none" else 0.07
    make.box("main", (0, 0, lift + 0.07), (deep, wide, 0.07), edge=0.02)
    make.box("main", (-deep + 0.08, 0, lift + tall / 2), (0.08, wide, tall / 2), edge=0.05)
    high = seat + n["arm_rise"]
    for y in _SIDES:
        side = y * (wide - arm)
        if w["arms"] == "round":
            make.box("main", (0.0, side, lift + high / 2 - 0.03), (deep, arm * 0.8, high / 2 - 0.03), edge=0.02)
            z = lift + high - 0.06
            make.rod("main", [(-deep + 0.1, side, z), (deep - arm, side, z)], arm * 1.1)
        else:
            share, edge = {"thin": (0.5, 0.02), "block": (1.0, 0.045), "flared": (0.6, 0.04)}[w["arms"]]
            lean = turn(tilt=-0.25 * y) if w["arms"] == "flared" else None
            make.box("main", (0.0, side, lift + high / 2), (deep, arm * share, high / 2), edge=edge, axes=lean)
    count = int(w["cushions"])
    half_width = (wide - arm * 1.7) / count
    for k in range(count):
        y = (2 * k + 1 - count) * half_width
        make.box("main", (0.05, y, lift + seat - 0.03), (deep - 0.07, half_width * 0.97, 0.075), edge=0.05)
        if w["rest"] == "split":
            half = (0.06, half_width * 0.95, 0.14)
            make.box("main", (-deep + 0.19, y, lift + seat + 0.14), half, edge=0.055, axes=turn(nod=-0.15))
    for k, share in enumerate(_PILLOWS[w["pillows"]]):
        pose = turn(yaw=0.3 * share) @ turn(nod=-0.45) @ turn(tilt=0.15 + 0.5 * k)
        size = n["pillow"]
        at = (-deep + 0.31, share * (wide - arm * 2.2), lift + seat + 0.05 + size)
        make.box("third" if k == 1 else "second", at, (0.04, size, size), edge=0.04, axes=pose)
    for x, y in _CORNERS:
        if w["feet"] == "peg":
            foot, joint = (x * (deep - 0.04), y * (wide - 0.04), 0.015), (x * (deep - 0.07), y * (wide - 0.07), 0.1)
            make.rod("wood", [foot, joint], 0.02)
        elif w["feet"] == "block":
            make.box("dark", (x * (deep - 0.06), y * (wide - 0.06), 0.04), (0.045, 0.045, 0.04))


def table(make: Maker, n: Numbers, w: Words) -> None:
    """A top on legs, a pedestal or trestles, perhaps with a shelf below and something on it."""
    wide, deep, tall, thick = n["width"] / 2, n["depth"] / 2, n["height"], n["top"]
    frame = "second" if w["frame"] == "accent" else "frame"
    z = tall - thick
    if w["shape"] == "round":
        deep = wide = (wide + deep) / 2
        make.shell("main", [(0, z), (wide, z), (wide, tall), (0, tall)])
    else:
        make.box("main", (0, 0, tall - thick / 2), (deep, wide, thick / 2), edge=thick * 0.45)
    inset = 0.72 if w["shape"] == "round" else 0.93
    x, y, leg = deep * inset - 0.03, wide * inset - 0.03, n["leg"]
    if w["base"] == "pedestal":
        turnery = [(1.6, 0.05 / z), (0.9, 0.3), (1.4, 0.6), (1.0, 0.8), (2.2, 1.0)]
        make.shell(frame, [(leg * r, z * high) for r, high in turnery])
        for k in range(int(w["feet"])):
            angle = 2 * np.pi * (k + 0.5) / int(w["feet"])
            c, s = deep * float(np.cos(angle)), wide * float(np.sin(angle))
            make.rod(frame, [(0, 0, 0.12), (0.35 * c, 0.35 * s, 0.09), (0.6 * c, 0.6 * s, 0.03)], 0.028, bend=1)
    else:
        for a, b in _CORNERS:
            if w["base"] == "square":
                make.box(frame, (a * x, b * y, z / 2), (leg, leg, z / 2), edge=0.005)
            elif w["base"] == "hairpin":
                for off in (-0.05, 0.05):
                    make.rod(frame, [(a * x - off, b * y + off, z), (a * x, b * y * 1.04, 0.012)], 0.012)
            else:
                make.rod(frame, [(a * x, b * y, z), (a * x * 1.12, b * y * 1.1, leg)], [leg * 1.3, leg * 0.8])
        if w["apron"] == "apron":
            make.box(frame, (0, 0, z - 0.035), (x, y, 0.035), edge=0.004)
        if w["shelf"] == "shelf":
            make.box(frame, (0, 0, tall * 0.3), (x, y, 0.012), edge=0.004)
    if w["drawer"] == "drawer" and w["base"] != "pedestal":
        make.box("third", (x + 0.01, 0, z - 0.045), (0.012, y * 0.45, 0.04), edge=0.008)
        make.ball("steel", (x + 0.035, 0, z - 0.045), (0.018, 0.018, 0.018))
    if w["on_top"] in ("bowl", "both"):
        make.shell("third", [(0.03, 0.0), (0.08, 0.02), (0.115, 0.06), (0.125, 0.08)], (0, wide * n["bowl_at"], tall))
    if w["on_top"] in ("books", "both"):
        for k, slot in enumerate(("second", "third")):
            pose = turn(yaw=0.3 + 0.4 * k)
            make.box(slot, (0.02, -wide * n["bowl_at"], tall + 0.018 + 0.036 * k), (0.075, 0.1, 0.018), 0.004, pose)
