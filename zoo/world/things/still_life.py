"""A still life: the picture of one object, from any side, with highlights and mirrored surroundings."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.world.render.geometry import Camera, Floats, Mask
from zoo.world.render.scenery import LIGHTS, PROPS, Light, Prop, Surroundings, develop
from zoo.world.render.setting import Setting, shrink
from zoo.world.render.shapes import ShapeHits, Shapes, trace_shapes
from zoo.world.render.solids import Solids, shade_of
from zoo.world.render.texture import step
from zoo.world.things.finish import Finish, PaintedSurface, paint_finish

BACKGROUNDS = ("room", "tiles", "studio", "carpet", "abstract", "lawn")
_CASTERS = 4  # ellipsoids that shade the object itself


@dataclass(frozen=True)
class StillLife(Setting):
    """Everything in a picture but its object; props stand in front of it or behind."""

    RAYS: ClassVar[float] = 1.5
    MOST_HIDDEN: ClassVar[float] = 0.35

    @classmethod
    def around(cls, shapes: Shapes, azimuth: float, elevation: float, rng: np.random.Generator) -> "StillLife":
        """A random setting around ``shapes``, seen from the given angles (radians; azimuth 0 is its front)."""
        camera = frame_shapes(
            shapes, azimuth, elevation, rng.normal(0, 0.05), rng.uniform(2.6, 4.5), rng.uniform(0.74, 1.0)
        )
        aside = (np.array(camera.shift) + rng.uniform(-1, 1, 2) * 0.1).tolist()
        camera = Camera(camera.origin, camera.axes, camera.zoom, (aside[0], aside[1]))
        background, lamp = BACKGROUNDS[rng.integers(len(BACKGROUNDS))], LIGHTS[rng.integers(len(LIGHTS))]
        light, surroundings = Light.draw(lamp, azimuth, rng), Surroundings.draw(background, azimuth, rng)
        toward = np.array([np.cos(azimuth), np.sin(azimuth)])
        across = np.array([-toward[1], toward[0]])
        props = []
        for near, far in ((0.65, 0.9), (-1.0, -0.7)):
            kind, there = PROPS[rng.integers(len(PROPS))], rng.uniform() < 0.45
            place = toward * rng.uniform(near, far) + across * (rng.uniform(0.1, 0.5) * rng.choice([-1, 1]))
            prop = Prop.draw(kind, place.astype(np.float32), rng)
            if there:
                props.append((kind, prop))
        return cls(camera, background, lamp, light, surroundings, tuple(props))

    def shot(
        self, shapes: Shapes, finish: Finish, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Mask, str]:
        """Takes the picture.

        Args:
            size: height and width of the picture in pixels.
            rng: draws the sensor's faults.

        Returns:
            image (size, size, 3) uint8, mask of the visible object (size, size), and the name of the prop in front
            of it, or ``none``.
        """
        fine = (round(size * self.RAYS),) * 2
        rays = self.camera.rays(*fine)
        hits = trace_shapes(shapes, self.camera, rays)
        shone, _ = object_light(self, shapes, finish, hits)
        light, mask, in_front = self._photograph(hits, shone, shapes.proxies, rays, fine)
        return develop(light, (size, size), rng), shrink(mask, (size, size)), in_front


def object_light(setting: Setting, shapes: Shapes, finish: Finish, hits: ShapeHits) -> tuple[Floats, PaintedSurface]:
    """Light (3, H) from the object where rays hit it, and its painted surface there."""
    surface = paint_finish(finish, shapes, hits)
    light, normal = setting.light, hits.normal
    shadow = _own_shadow(shapes, hits, light)
    height = float(shapes.corners()[:, :, 2].max())
    openness = 0.6 + 0.4 * np.clip(hits.point[2] / height, 0, 1)
    lit = surface.colour * light.on(normal, shadow, openness)
    view = setting.camera.origin[:, None] - hits.point
    view /= np.sqrt((view * view).sum(0))
    facing = np.clip((view * normal).sum(0), 0, 1)
    mirrored = 2 * facing * normal - view
    toward = mirrored[0] * light.direction[0] + mirrored[1] * light.direction[1] + mirrored[2] * light.direction[2]
    glint = surface.shine * shadow * np.exp(surface.sharp * (np.minimum(toward, 1) - 1))
    mirror = surface.mirror + (1 - surface.mirror) * (surface.shine > 0) * 0.35 * (1 - facing) ** 5
    tint = np.where(surface.mirror > 0.3, surface.colour, 1)
    mirrored_light = _reflected(light, mirrored, toward)
    shone = lit * (1 - mirror) + mirrored_light * mirror * tint + light.lamp[:, None] * glint + surface.glow * 0.8
    return shone, surface


def _reflected(light: Light, direction: Floats, toward: Floats) -> Floats:
    """Light (3, H) from unit directions (3, H): a bright sky, a dark horizon, a floor, and a lamp."""
    up = direction[2]
    level = 0.45 + 0.75 * step(0.05, 0.7, up) - 0.28 * step(0.25, 0.02, np.abs(up + 0.02))
    window = step(0.80, 0.88, toward) * 0.9
    return light.sky[:, None] * level + light.lamp[:, None] * window


def _own_shadow(shapes: Shapes, hits: ShapeHits, light: Light) -> Floats:
    """How much lamplight (H,) the object's largest parts leave to the rest of it."""
    proxies = shapes.proxies
    volume = proxies.radii.prod(1)
    big = np.argsort(-volume, kind="stable")[:_CASTERS]
    solids = Solids(proxies.centre[big], proxies.axes[big], proxies.radii[big] * np.float32(0.9), proxies.taper[big])
    points = hits.point + 0.02 * hits.normal
    return 0.25 + 0.75 * shade_of(solids, points, light.direction, max(light.softness, 0.25), skip=0.25)


def frame_shapes(shapes: Shapes, azimuth: float, elevation: float, roll: float, distance: float, fill: float) -> Camera:
    """A camera at the given angles (radians) in whose picture the object takes the share ``fill`` of one side."""
    corners = shapes.corners().reshape(-1, 3)
    target = (corners.min(0) + corners.max(0)) / 2
    camera = Camera.orbit(target, azimuth, elevation, distance, roll)
    flat = camera.project(corners)
    low, high = flat.min(0), flat.max(0)
    zoom = 2 * fill / float((high - low).max())
    middle = (low + high) / 2 * zoom
    return Camera(camera.origin, camera.axes, zoom, (float(-middle[0]), float(-middle[1])))
