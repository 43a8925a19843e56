"""What a person is made of: a build, a pose and loose clothes become solids.

Lengths are in metres; x is forward, y to the person's left, z up, the ground is z = 0. As with the pets, one
function builds the posed person and the person at rest (upright, arms and legs hanging straight down), solid by
solid, so that clothes are painted on the person at rest, where heights are all that hems and sleeves need.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.anatomy import Builder, Figure
from zoo.world.render.geometry import Floats, turn

# Heights of joints in units of the person's height; legs move that of the hips.
_SHOULDER, _HEAD, _KNEE, _ANKLE = 0.805, 0.925, 0.52, 0.045
_UPPER_ARM, _FOREARM = 0.165, 0.150


@dataclass(frozen=True)
class Build:
    """Proportions of one person.

    Args:
        height: from the sole to the crown, in metres.
        girth: thickness of trunk and limbs, 1 is average.
        shoulders: width of the shoulders, 1 is average.
        legs: height of the hip joints in units of the height.
        hips: width of the hips, 1 is average.
    """

    height: float
    girth: float
    shoulders: float
    legs: float
    hips: float


@dataclass(frozen=True)
class Shape:
    """What someone wears or carries, as far as it changes the outline.

    Args:
        top: thickness of the upper garment in units of the height.
        leg: thickness of the trousers' legs in units of the height, 0 for bare legs.
        flare: 0, or width at the lower edge of a skirt or coat around the hips, 1 is average.
        hem: height of that lower edge in units of the height.
        hood: whether a hood lies on the back of the neck.
        hair: ``bald``, ``short``, ``curly``, ``tied``, ``bob`` or ``long``.
        hat: ``none``, ``cap`` or ``beanie``.
        bag: ``none``, ``backpack`` or ``shoulder_bag``.
        bag_size: 1 is average.
    """

    top: float = 0.005
    leg: float = 0.0
    flare: float = 0.0
    hem: float = 0.3
    hood: bool = False
    hair: str = "short"
    hat: str = "none"
    bag: str = "none"
    bag_size: float = 1.0


@dataclass(frozen=True)
class Gait:
    """What one view does to the body; angles in radians, 0 is at rest.

    Args:
        phase: of the steps. stride: swing of the legs, 0 when standing.
        swing: swing of the arms against the legs.
        elbows: bend of the left and the right elbow.
        raised: left and right upper arm forward.
        spread: both arms away from the body.
        lean: trunk forward.
        yaw: head turned to the left. nod: head lowered.
    """

    phase: float = 0.0
    stride: float = 0.0
    swing: float = 0.0
    elbows: tuple[float, float] = (0.0, 0.0)
    raised: tuple[float, float] = (0.0, 0.0)
    spread: float = 0.0
    lean: float = 0.0
    yaw: float = 0.0
    nod: float = 0.0


def _down(angle: float, side: float = 0.0) -> Floats:
    """Direction (3,) of a hanging limb swung forward by ``angle`` and to the left by ``side``."""
    return np.array([np.sin(angle) * np.cos(side), np.sin(side), -np.cos(angle) * np.cos(side)])


@dataclass(frozen=True)
class _Leg:
    """Points (3,) of one leg below the hip joint, which is the origin, and the pitch of its foot."""

    hip: Floats
    knee: Floats
    ankle: Floats
    pitch: float


def _step(build: Build, gait: Gait, side: float) -> _Leg:
    """A leg at its moment of the step; the knee bends while the leg swings forward."""
    phase = gait.phase + (0.0 if side > 0 else np.pi)
    thigh = gait.stride * np.sin(phase) + 0.12 * gait.stride
    bend = gait.stride * (0.25 + 1.9 * max(0.0, float(np.cos(phase))) ** 2)
    length = (build.legs - _ANKLE) * build.height
    hip = np.array([0.0, side * 0.052 * build.height * build.hips, 0.0])
    knee = hip + _down(thigh) * (length * (1 - _KNEE))
    ankle = knee + _down(thigh - bend) * (length * _KNEE)
    return _Leg(hip, knee, ankle, 0.75 * max(0.0, bend - thigh))


def _legs(body: Builder, build: Build, shape: Shape, gait: Gait) -> Floats:
    """Both legs and shoes down to the ground; returns the middle of the hips (3,)."""
    tall, thick = build.height, build.height * (0.35 + 0.65 * build.girth)
    steps = {name: _step(build, gait, side) for name, side in (("left", 1.0), ("right", -1.0))}
    hips = np.array([0.0, 0.0, _ANKLE * tall - min(leg.ankle[2] for leg in steps.values())])
    for name, leg in steps.items():
        part = f"leg_{name}"
        thigh, shin = 0.047 * thick + 0.6 * shape.leg * tall, 0.031 * thick + shape.leg * tall
        body.limb(part, hips + leg.hip, hips + leg.knee, thigh, taper=-0.22, over=0.9)
        body.limb(part, hips + leg.knee, hips + leg.ankle, shin, taper=-0.12, over=1.2)
        toes = turn(nod=leg.pitch)
        sole = hips + leg.ankle + toes @ np.array([0.034, 0.0, -0.020]) * tall
        body.ball(f"foot_{name}", sole, toes, (0.074 * tall, 0.029 * tall, 0.026 * tall))
    return hips


def _arms(body: Builder, build: Build, shape: Shape, gait: Gait, shoulders: Floats, lean: Floats) -> None:
    """Shoulders, arms and hands."""
    tall, thick = build.height, build.height * (0.4 + 0.6 * build.girth)
    for k, (name, side) in enumerate((("left", 1.0), ("right", -1.0))):
        part = f"arm_{name}"
        joint = shoulders + lean @ np.array([0.0, side * 0.100 * build.shoulders * tall, 0.0])
        swing = gait.raised[k] - gait.swing * np.sin(gait.phase + (0.0 if side > 0 else np.pi))
        elbow = joint + _down(swing, side * (0.10 + gait.spread)) * (_UPPER_ARM * tall)
        wrist = elbow + _down(swing + gait.elbows[k], side * (0.03 + 0.4 * gait.spread)) * (_FOREARM * tall)
        end = wrist + (wrist - elbow) * 0.24
        upper, fore = 0.027 * thick + shape.top * tall, 0.021 * thick + 0.8 * shape.top * tall
        body.ball("torso", joint - np.array([0, side * 0.01 * tall, 0.012 * tall]), lean, (upper * 1.15,) * 3)
        body.limb(part, joint, elbow, upper, taper=-0.1, over=0.9)
        body.limb(part, elbow, wrist, fore, taper=-0.1, over=0.9)
        body.limb(f"hand_{name}", wrist, end, 0.021 * tall, over=0.3)


def _hair(body: Builder, shape: Shape, centre: Floats, axes: Floats, r: float) -> None:
    """Hair and hat on a head of half height ``r``."""
    at = {
        "short": [((-0.12, 0, 0.22), (0.86, 0.78, 0.88))],
        "curly": [((-0.16, 0, 0.30), (1.08, 1.06, 1.02))],
        "tied": [((-0.12, 0, 0.18), (0.84, 0.77, 0.90)), ((-0.98, 0, 0.12), (0.34, 0.30, 0.36))],
        "bob": [((-0.18, 0, 0.10), (0.86, 0.88, 1.00)), ((-0.34, 0, -0.52), (0.56, 0.84, 0.56))],
        "long": [
            ((-0.14, 0, 0.16), (0.87, 0.84, 0.94)),
            ((-0.42, 0, -0.75), (0.50, 0.82, 0.85)),
            ((-0.62, 0, -1.70), (0.36, 0.82, 0.95)),
        ],
        "bald": [],
    }[shape.hair]  # fmt: skip
    for place, radii in at:
        body.ball("hair", centre + axes @ (np.array(place) * r), axes, (radii[0] * r, radii[1] * r, radii[2] * r))
    if shape.hat != "none":
        body.ball("hat", centre + axes @ np.array([-0.06, 0, 0.46]) * r, axes, (0.94 * r, 0.86 * r, 0.70 * r))
    if shape.hat == "cap":
        brim = axes @ turn(nod=0.12)
        body.ball("hat", centre + axes @ np.array([0.92, 0, 0.34]) * r, brim, (0.56 * r, 0.62 * r, 0.12 * r))


def _bag(body: Builder, build: Build, shape: Shape, hips: Floats, shoulders: Floats, lean: Floats) -> None:
    """A bag on the back or at the right hip."""
    tall, size = build.height, build.height * shape.bag_size
    depth = (0.078 * build.girth + shape.top) * tall
    if shape.bag == "backpack":
        middle = shoulders + lean @ np.array([-depth - 0.03 * size, 0, -0.115 * tall])
        for up, left in ((0.035, 0.03), (0.035, -0.03), (-0.04, 0.03), (-0.04, -0.03)):  # four make a box
            place = middle + lean @ np.array([0, left, up]) * size
            body.ball("bag", place, lean, (0.054 * size, 0.055 * size, 0.062 * size))
    elif shape.bag == "shoulder_bag":
        side = (0.105 * build.hips * (0.5 + 0.5 * build.girth) + 0.03) * tall
        middle = hips + np.array([-0.01 * tall, -side, -0.01 * tall])
        for ahead, up in ((0.028, 0.018), (0.028, -0.018), (-0.028, 0.018), (-0.028, -0.018)):
            place = middle + np.array([ahead, 0, up]) * size
            body.ball("bag", place, np.eye(3), (0.050 * size, 0.032 * size, 0.040 * size))


def pose_human(build: Build, shape: Shape, gait: Gait | None = None) -> Figure:
    """Builds the solids of a person in ``gait`` (default: at rest)."""
    gait = gait or Gait()
    body = Builder()
    tall, g, top = build.height, build.girth * build.height, shape.top * build.height
    hips = _legs(body, build, shape, gait)
    lean = turn(nod=gait.lean)
    rise = (_SHOULDER - build.legs) * tall
    shoulders = hips + lean @ np.array([0.0, 0.0, rise])
    wide, hip = build.shoulders * (0.45 * tall + 0.55 * g), build.hips * (0.4 * tall + 0.6 * g)
    trunk = (
        (0.68, (0.066 * g + top, 0.096 * wide + top, 0.115 * tall)),  # chest
        (0.30, (0.064 * g + top, 0.082 * hip + top, 0.110 * tall)),  # belly
        (0.02, (0.068 * g + top * 0.5, 0.090 * hip + top * 0.5, 0.075 * tall)),  # pelvis
    )
    for share, radii in trunk:
        body.ball("torso", hips + (shoulders - hips) * share, lean, radii)
    _arms(body, build, shape, gait, shoulders, lean)
    crown = shoulders + lean @ np.array([0.012, 0, _HEAD - _SHOULDER]) * tall
    body.limb("neck", shoulders - lean @ np.array([0, 0, 0.005]) * tall, crown, 0.030 * tall, over=0.1)
    axes, r = lean @ turn(gait.yaw, gait.nod), 0.072 * tall
    body.ball("head", crown, axes, (0.78 * r, 0.70 * r, r))
    body.ball("head", crown + axes @ np.array([0.24, 0, -0.38]) * r, axes, (0.52 * r, 0.54 * r, 0.56 * r))
    _hair(body, shape, crown, axes, r)
    if shape.hood:
        body.ball(
            "hood",
            shoulders + lean @ np.array([-0.045, 0, 0.035]) * tall,
            lean,
            (0.04 * tall, 0.062 * tall, 0.034 * tall),
        )
    if shape.flare:
        half = (build.legs + 0.07 - shape.hem) * tall / 2
        stretch = 0.10 * tall * gait.stride * abs(float(np.sin(gait.phase)))
        deep, across = 0.066 * shape.flare * g, 0.086 * shape.flare * hip
        down = np.array([0.0, 0.0, shape.hem * tall - build.legs * tall])
        body.ball(
            "skirt", hips + down + np.array([0, 0, half]), np.eye(3), (deep + stretch / 2, across, half), taper=0.3
        )
        edge = np.array([0.0, 0.0, 0.024 * tall])  # a disc, as the egg above it ends round
        body.ball("skirt", hips + down + edge, np.eye(3), (deep * 1.04 + stretch, across * 1.04, 0.024 * tall))
    _bag(body, build, shape, hips, shoulders, lean)
    return Figure(body.solids(), tuple(body.parts), crown.astype(np.float32), axes)
