"""A still life: a made object on a stage, seen from around it, lit, mirrored and photographed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.world.scenery import Light, Prop, Surroundings, develop
from zoo.world.shapes import Figure
from zoo.world.sight import Seen, look
from zoo.world.stage import Stage
from zoo.world.surface import Finish, Paint, paint
from zoo.world.texture import step
from zoo.world.trace import Camera, Floats, Mask, Solids, shade_of, trace

BACKGROUNDS = ("room", "tiles", "studio", "carpet", "abstract", "lawn")
LIGHTS = ("noon", "lamp", "shade", "evening", "backlit")
PROPS = ("ball", "post", "cushion")
_FINER = 1.5  # rays per pixel's side
_HIDDEN = 0.35  # a prop that would hide more of the object than this share is taken away
_CASTERS = 4  # ellipsoids that shade the object itself


@dataclass(frozen=True)
class Still(Stage):
    """Everything in a picture but its object; props stand in front of it or behind."""

    @classmethod
    def around(cls, figure: Figure, azimuth: float, elevation: float, rng: np.random.Generator) -> "Still":
        """A random stage around ``figure``, seen from the given angles (radians; azimuth 0 is its front)."""
        camera = framed(figure, azimuth, elevation, rng.normal(0, 0.05), rng.uniform(2.6, 4.5), rng.uniform(0.74, 1.0))
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
        self, figure: Figure, finish: Finish, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Mask, str]:
        """Takes the picture.

        Args:
            size: height and width of the picture in pixels.
            rng: draws the sensor's faults.

        Returns:
            image (size, size, 3) uint8, mask of the visible object (size, size), and the name of the prop in front
            of it, or ``none``.
        """
        side = round(size * _FINER)
        rays = self.camera.rays(side)
        seen = look(figure, self.camera, rays)
        depth = np.full(rays.shape[1], np.inf, np.float32)
        depth[seen.ray] = seen.depth
        mask = np.isfinite(depth)
        kept, casters, in_front = [], [figure.proxies], "none"
        for name, prop in self.props:
            met = trace(prop.solids, self.camera.origin, rays, 0.004)
            first = met.depth < depth[met.ray]
            hidden = int(mask[met.ray[first]].sum())
            if hidden > _HIDDEN * len(seen.ray):
                continue
            if hidden and in_front == "none":
                in_front = name
            depth[met.ray[first]] = met.depth[first]
            mask[met.ray[first]] = False
            kept.append((prop, met, first))
            casters.append(prop.solids)
        image = self._around(rays, casters, (side, side))
        image[:, seen.ray] = self.shine(figure, finish, seen)[0]
        for prop, met, first in kept:
            open_ = np.ones_like(met.depth)
            lit = prop.colour(met.point) * self.light.on(met.normal, open_, open_)
            image[:, met.ray[first]] = lit[:, first]
        picture = develop(image.reshape(3, side, side), (size, size), rng)
        nearest = ((np.arange(size) + 0.5) * (side / size)).astype(int)
        return picture, mask.reshape(side, side)[nearest[:, None], nearest[None, :]], in_front

    def shine(self, figure: Figure, finish: Finish, seen: Seen) -> tuple[Floats, Paint]:
        """Light (3, H) from what is seen of the object, and what it is painted with there."""
        skin = paint(finish, figure, seen)
        light, normal = self.light, seen.normal
        shadow = _own_shadow(figure, seen, light)
        height = float(figure.corners()[:, :, 2].max())
        openness = 0.6 + 0.4 * np.clip(seen.point[2] / height, 0, 1)
        lit = skin.colour * light.on(normal, shadow, openness)
        view = self.camera.origin[:, None] - seen.point
        view /= np.sqrt((view * view).sum(0))
        facing = np.clip((view * normal).sum(0), 0, 1)
        mirrored = 2 * facing * normal - view
        toward = mirrored[0] * light.direction[0] + mirrored[1] * light.direction[1] + mirrored[2] * light.direction[2]
        glint = skin.shine * shadow * np.exp(skin.sharp * (np.minimum(toward, 1) - 1))
        mirror = skin.mirror + (1 - skin.mirror) * (skin.shine > 0) * 0.35 * (1 - facing) ** 5
        tint = np.where(skin.mirror > 0.3, skin.colour, 1)
        room = self._reflected(mirrored, toward)
        shone = lit * (1 - mirror) + room * mirror * tint + light.lamp[:, None] * glint + skin.glow * 0.8
        return shone, skin

    def _reflected(self, direction: Floats, toward: Floats) -> Floats:
        """Light (3, H) of the room in unit directions (3, H): a bright sky, a dark horizon, a floor, and a lamp."""
        up = direction[2]
        level = 0.45 + 0.75 * step(0.05, 0.7, up) - 0.28 * step(0.25, 0.02, np.abs(up + 0.02))
        window = step(0.80, 0.88, toward) * 0.9
        return self.light.sky[:, None] * level + self.light.lamp[:, None] * window


def _own_shadow(figure: Figure, seen: Seen, light: Light) -> Floats:
    """How much lamplight (H,) the object's largest parts leave to the rest of it."""
    proxies = figure.proxies
    volume = proxies.radii.prod(1)
    big = np.argsort(-volume, kind="stable")[:_CASTERS]
    solids = Solids(proxies.centre[big], proxies.axes[big], proxies.radii[big] * np.float32(0.9), proxies.taper[big])
    points = seen.point + 0.02 * seen.normal
    return 0.25 + 0.75 * shade_of(solids, points, light.direction, max(light.softness, 0.25), skip=0.25)


def framed(figure: Figure, azimuth: float, elevation: float, roll: float, distance: float, fill: float) -> Camera:
    """A camera at the given angles (radians) in whose picture the object takes the share ``fill`` of one side."""
    corners = figure.corners().reshape(-1, 3)
    target = (corners.min(0) + corners.max(0)) / 2
    camera = Camera.orbit(target, azimuth, elevation, distance, roll)
    flat = camera.project(corners)
    low, high = flat.min(0), flat.max(0)
    zoom = 2 * fill / float((high - low).max())
    middle = (low + high) / 2 * zoom
    return Camera(camera.origin, camera.axes, zoom, (float(-middle[0]), float(-middle[1])))
