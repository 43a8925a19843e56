"""What a four-legged animal is made of: proportions and a pose become solids.

Lengths are in units of a cat's trunk; x is forward, y to the animal's left, z up, the ground is z = 0.
The same function builds the posed animal and the animal at rest, solid by solid, so that a point of the posed
skin can be carried back to the rest pose, where the coat is painted.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.render.geometry import Floats, turn
from zoo.world.render.solids import Solids


@dataclass(frozen=True)
class Body:
    """Proportions of one individual.

    Args:
        trunk: distance from hips to shoulders.
        girth: radius of the chest.
        leg: height of the shoulders' joint above the ground when standing.
        bone: radius of a leg.
        neck: distance from the shoulders to the middle of the head.
        head: radius of the skull.
        muzzle: length of the muzzle beyond the skull, in units of the skull's radius.
        jaw: width of the muzzle, in units of the skull's radius.
        cheek: size of the cheeks, in units of the skull's radius.
        ear: length of the ears, in units of the skull's radius.
        ear_kind: ``pointed``, ``folded``, ``long`` or ``round``.
        tail: length of the tail.
        brush: radius of the tail.
    """

    trunk: float
    girth: float
    leg: float
    bone: float
    neck: float
    head: float
    muzzle: float
    jaw: float
    cheek: float
    ear: float
    ear_kind: str
    tail: float
    brush: float


@dataclass(frozen=True)
class Pose:
    """What one view does to the body; angles in radians, 0 is at rest.

    Args:
        kind: ``standing``, ``walking``, ``sitting`` or ``lying``.
        yaw: head turned to the animal's left. nod: head lowered. tilt: head leaned to one side.
        stride: phase of the steps when walking.
        lift: tail raised. sway: tail swung to the side. curl: tail bent up along its length.
        ears: ears turned outward.
    """

    kind: str = "standing"
    yaw: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    stride: float = 0.0
    lift: float = 0.0
    sway: float = 0.0
    curl: float = 0.0
    ears: float = 0.0


@dataclass(frozen=True)
class Figure:
    """Solids of an animal with the part each belongs to, and the head's centre (3,) and axes (3, 3)."""

    solids: Solids
    parts: tuple[str, ...]
    head_centre: Floats
    head_axes: Floats

    def belongs(self, *parts: str) -> Floats:
        """1 for each solid of the named parts, else 0: (S,)."""
        return np.array([part in parts for part in self.parts], np.float32)

    def part(self, *parts: str) -> Solids:
        """The solids of the named parts."""
        of = self.belongs(*parts) > 0
        return Solids(self.solids.centre[of], self.solids.axes[of], self.solids.radii[of], self.solids.taper[of])


def _cross(a: Floats, b: Floats) -> Floats:
    """Cross product of two vectors (3,); np.cross takes ten times as long for a single pair."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class Builder:
    """Collects solids part by part."""

    def __init__(self) -> None:
        self.rows: list[tuple[Floats, Floats, tuple[float, float, float], float]] = []
        self.parts: list[str] = []

    def ball(
        self, part: str, centre: Floats, axes: Floats, radii: tuple[float, float, float], taper: float = 0.0
    ) -> None:
        """An ellipsoid with the given axes as columns."""
        self.rows.append((np.asarray(centre, np.float32), np.asarray(axes, np.float32), radii, taper))
        self.parts.append(part)

    def limb(self, part: str, start: Floats, end: Floats, radius: float, taper: float = 0.0, over: float = 0.6) -> None:
        """An elongated ellipsoid from start to end that reaches ``over`` radii beyond both."""
        along = end - start
        length = float(np.sqrt((along * along).sum())) + 1e-6
        z = along / length
        side = np.array([0, 1, 0]) - z[1] * z
        side = side / np.sqrt((side * side).sum())
        axes = np.stack([_cross(side, z), side, z], axis=1)
        self.ball(part, (start + end) / 2, axes, (radius, radius, length / 2 + over * radius), taper)

    def solids(self) -> Solids:
        centre, axes, radii, taper = zip(*self.rows, strict=True)
        return Solids(np.stack(centre), np.stack(axes), np.array(radii, np.float32), np.array(taper, np.float32))


def _leg(builder: Builder, name: str, joint: Floats, paw: Floats, length: float, bone: float, knee: float) -> None:
    """Two segments and a paw; the knee bends forward (``knee`` = 1) or backward (-1)."""
    reach = paw - joint
    distance = min(float(np.sqrt((reach * reach).sum())), length)
    bend = np.sqrt(max((length / 2) ** 2 - (distance / 2) ** 2, 0.0))
    ahead = _cross(np.array([0.0, knee, 0.0]), reach)
    ahead = -ahead / (np.sqrt((ahead * ahead).sum()) + 1e-6)
    middle = joint + reach / 2 + ahead * bend
    middle[2] = max(middle[2], bone)
    builder.limb(name, joint, middle, bone * 1.25, taper=0.15)
    builder.limb(name, middle, paw, bone, taper=0.1)
    foot = paw + np.array([bone * 0.6, 0, 0])
    foot[2] = bone * 0.75
    builder.ball(name, foot, np.eye(3), (bone * 1.55, bone * 1.15, bone * 0.8))


def _legs(builder: Builder, body: Body, pose: Pose, hips: Floats, shoulders: Floats) -> None:
    """Four legs down to the ground, and thighs."""
    seated = pose.kind in ("sitting", "lying")
    length = body.leg * 1.06
    for name, side, phase in (("left", 1.0, 0.0), ("right", -1.0, np.pi)):
        swing = 0.22 * body.leg * np.sin(pose.stride + phase) if pose.kind == "walking" else 0.0
        front = shoulders + np.array([0.02, side * body.girth * 0.62, -body.girth * 0.25])
        paw = np.array([front[0] + 0.02 + swing, front[1], body.bone])
        if pose.kind == "lying":
            paw[0] += body.leg * 0.8
        _leg(builder, f"front_{name}", front, paw, max(length - body.girth * 0.25, 0.1), body.bone, -1.0)
        rear = hips + np.array([-0.02, side * body.girth * 0.62, -body.girth * 0.15])
        paw = np.array([rear[0] - 0.03 - swing, rear[1], body.bone])
        if seated:
            paw += np.array([body.leg * 0.75, side * body.girth * 0.35, 0])
        _leg(builder, f"rear_{name}", rear, paw, length, body.bone, 1.0)
        thigh = rear + np.array([0.02, 0, -0.02]) * (1 + seated)
        radius = body.girth * (0.72 if seated else 0.62)
        builder.ball("trunk", thigh, np.eye(3), (radius * 1.05, radius * 0.55, radius))


def _ears(builder: Builder, body: Body, pose: Pose, centre: Floats, axes: Floats) -> None:
    """Two ears of the body's kind on a skull."""
    r, long = body.head, body.ear * body.head
    root: Floats
    lean: Floats
    where: Floats
    for name, side in (("ear_left", 1.0), ("ear_right", -1.0)):
        if body.ear_kind == "folded":
            root = np.array([-0.02 * r, side * 0.92 * r, 0.62 * r])
            lean = turn(yaw=side * 0.25) @ turn(tilt=np.pi + side * (0.34 + 0.35 * pose.ears), nod=0.12)
            radii, taper = (0.36 * long, 0.13 * long, 0.60 * long), -0.2
            where = root + lean @ np.array([0, 0, 0.42 * long])
        elif body.ear_kind == "long":
            root = np.array([-0.15 * r, side * 0.40 * r, 0.75 * r])
            lean = turn(nod=-0.25, tilt=-side * (0.22 + 0.5 * pose.ears))
            radii, taper = (0.10 * long, 0.19 * long, 0.62 * long), 0.1
            where = root + lean @ np.array([0, 0, 0.5 * long])
        elif body.ear_kind == "round":
            root = np.array([-0.1 * r, side * 0.68 * r, 0.70 * r])
            lean = turn(yaw=side * 0.4, tilt=-side * (0.6 + 0.3 * pose.ears))
            radii, taper = (0.16 * long, 0.50 * long, 0.50 * long), 0.0
            where = root + lean @ np.array([0, 0, 0.2 * long])
        else:
            root = np.array([-0.05 * r, side * 0.60 * r, 0.66 * r])
            lean = turn(yaw=side * 0.35, tilt=-side * (0.30 + 0.4 * pose.ears))
            radii, taper = (0.17 * long, 0.36 * long, 0.62 * long), 0.75
            where = root + lean @ np.array([0, 0, 0.35 * long])
        builder.ball(name, centre + axes @ where, axes @ lean, radii, taper)


def _head(builder: Builder, body: Body, pose: Pose, shoulders: Floats) -> tuple[Floats, Floats]:
    """Neck, skull, muzzle, cheeks, ears; returns the head's centre and axes."""
    up = {"sitting": 1.25, "lying": 0.95}.get(pose.kind, 0.95)
    lean = np.array([np.cos(up), 0, np.sin(up)]) * body.neck
    centre = shoulders + lean + np.array([0.06, 0, 0.02])
    axes = turn(pose.yaw, pose.nod, pose.tilt)
    r = body.head
    builder.limb("trunk", shoulders, centre - np.array([0.25 * r, 0, 0.2 * r]), body.girth * 0.66, over=0.2)
    builder.ball("head", centre, axes, (r * 0.98, r * 1.04, r * 0.94))
    nose = np.array([0.80 + body.muzzle / 2, 0, -0.30]) * r
    builder.ball("muzzle", centre + axes @ nose, axes, (r * (0.28 + body.muzzle / 2), r * body.jaw, r * body.jaw * 0.8))
    for side in (1.0, -1.0):
        spot = np.array([0.35, side * 0.58, -0.34]) * r
        size = r * body.cheek
        builder.ball("head", centre + axes @ spot, axes, (size, size, size * 0.85))
    _ears(builder, body, pose, centre, axes)
    return centre.astype(np.float32), axes


def _tail(builder: Builder, body: Body, pose: Pose, root: Floats) -> None:
    """A chain of four links, straight back at rest."""
    at = np.asarray(root, np.float64)
    for k in range(4):
        rise = pose.lift + pose.curl * k / 3
        swing = pose.sway * (0.4 + k / 3)
        step = np.array([-np.cos(rise) * np.cos(swing), np.cos(rise) * np.sin(swing), np.sin(rise)])
        end = at + step * body.tail / 4
        thick = body.brush * (1.0 + (0.5 - abs(k - 1.5) / 3) * (body.brush > 0.07))
        end[2] = max(end[2], thick * 0.8)
        builder.limb("tail", at, end, thick, over=0.8)
        at = end


def pose_body(body: Body, pose: Pose | None = None) -> Figure:
    """Builds the solids of ``body`` in ``pose`` (default: at rest)."""
    pose = pose or Pose()
    builder = Builder()
    pitch = {"sitting": 0.85}.get(pose.kind, 0.0)
    height = body.leg + body.girth * 0.25
    if pose.kind in ("sitting", "lying"):
        height = body.girth * 0.88
    hips = np.array([-body.trunk / 2 * np.cos(pitch), 0, height])
    shoulders = hips + body.trunk * np.array([np.cos(pitch), 0, np.sin(pitch)])
    axes = turn(nod=-pitch)
    g, length = body.girth, body.trunk
    builder.ball("trunk", shoulders, axes, (g * 1.15, g * 0.98, g * 1.05))
    builder.ball(
        "trunk",
        (hips + shoulders) / 2 - axes @ np.array([0, 0, 0.03]),
        axes,
        (length * 0.55, g * 0.92, g * 0.95),
    )
    builder.ball("trunk", hips, axes, (g * 1.12, g * 0.95, g))
    _legs(builder, body, pose, hips, shoulders)
    centre, head_axes = _head(builder, body, pose, shoulders)
    _tail(builder, body, pose, hips + axes @ np.array([-g * 0.9, 0, g * 0.35]))
    return Figure(builder.solids(), tuple(builder.parts), centre, head_axes)
