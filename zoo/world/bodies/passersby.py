"""What stands before or behind a person in the view of a surveillance camera: poles, bollards, bushes, passers-by."""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.human import Build, Gait, Shape, pose_human
from zoo.world.render.geometry import Floats, turn
from zoo.world.render.scenery import Prop
from zoo.world.render.solids import Solids
from zoo.world.render.texture import linear, mix


@dataclass(frozen=True)
class Passerby(Prop):
    """Somebody else, coloured by height alone.

    Args:
        tall: height. bottom, skin, hair: colours (3,); the first colour is that of the top.
    """

    tall: float
    bottom: Floats
    skin: Floats
    hair: Floats

    def colour(self, points: Floats) -> Floats:
        """Colour (3, N) at points (3, N)."""
        up = points[2] / np.float32(self.tall)
        colour = np.repeat(self.first[:, None], len(up), 1)
        for worn, low, high in (
            (self.bottom, 0, 0.5),
            (self.second, 0, 0.04),
            (self.skin, 0.83, 1),
            (self.hair, 0.94, 1),
        ):
            colour = mix(colour, worn, ((up >= low) & (up < high)).astype(np.float32))
        return colour


OBSTACLES = ("pole", "bollard", "bush", "passerby")


def obstacle(kind: str, place: Floats, rng: np.random.Generator) -> Prop:
    """A prop of one of `OBSTACLES` that stands on the ground at ``place`` (2,)."""
    size, level = float(rng.uniform(0.85, 1.2)), float(rng.uniform(40, 170))
    if kind == "passerby":
        return _passerby(place, rng)
    if kind == "bush":
        places, radii = rng.uniform([-0.25, -0.25, 0.1], [0.25, 0.25, 0.45], (6, 3)), np.full((6, 3), 0.17)
        first = linear(level * 0.5, level * 0.5 + 40, level * 0.2 + 20)
    else:
        tall, wide, middle = {"pole": (4.0, 0.05, 1.5), "bollard": (0.75, 0.08, 0.1)}[kind]
        places, radii = np.array([[0.0, 0.0, middle]]), np.array([[wide, wide, tall]])
        first = linear(*(level + rng.normal(0, 14, 3)).clip(20, 220))
    centre = (places * size + [*place, 0.0]).astype(np.float32)
    count = len(centre)
    axes = np.repeat(np.eye(3, dtype=np.float32)[None], count, 0)
    solids = Solids(centre, axes, (radii * size).astype(np.float32), np.zeros(count, np.float32))
    return Prop(solids, first, first * np.float32(rng.uniform(0.6, 1.5)), float(rng.uniform(0, 12)))


def _passerby(place: Floats, rng: np.random.Generator) -> Passerby:
    """Somebody who walks by at ``place`` (2,)."""
    tall, way = float(rng.uniform(1.55, 1.9)), turn(yaw=float(rng.uniform(0, 2 * np.pi)))
    build = Build(tall, float(rng.uniform(0.85, 1.3)), 1.0, 0.52, 1.0)
    gait = Gait(phase=float(rng.uniform(0, 2 * np.pi)), stride=0.35, swing=0.3, elbows=(0.2, 0.2))
    solids = pose_human(build, Shape(top=0.008, leg=0.008), gait).solids
    centre = np.einsum("ij,sj->si", way, solids.centre) + np.array([*place, 0.0], np.float32)
    axes = np.einsum("ij,sjk->sik", way, solids.axes)
    top, bottom, shoes, hair = (linear(*(rng.uniform(30, 190) + rng.normal(0, 16, 3)).clip(15, 220)) for _ in range(4))
    skin = linear(*(np.array((226, 180, 146)) * rng.uniform(0.4, 1.05)))
    return Passerby(Solids(centre, axes, solids.radii, solids.taper), top, shoes, 0.0, tall, bottom, skin, hair * 0.4)
