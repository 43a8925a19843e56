"""A stage: camera, light, surroundings and props for one picture of anything made of solids."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.world.scenery import BACKGROUNDS, LIGHTS, PROPS, Light, Prop, Surroundings, develop, frame
from zoo.world.trace import Camera, Floats, Hits, Mask, Solids, shade_of, trace

Sensor = Callable[[Floats, tuple[int, int], np.random.Generator], NDArray[np.uint8]]
_FINER = 1.25  # rays per pixel's side
_HIDDEN = 0.4  # a prop that would hide more of the figure than this share is taken away


@dataclass(frozen=True)
class Stage:
    """Everything in a picture but its subject.

    Args:
        background, lamp: one of `BACKGROUNDS` and one of `LIGHTS`.
        props: name and solids of what stands about, the one in front of the subject first.
    """

    camera: Camera
    background: str
    lamp: str
    light: Light
    surroundings: Surroundings
    props: tuple[tuple[str, Prop], ...]

    @classmethod
    def draw(cls, figure: Solids, azimuth: float, rng: np.random.Generator) -> "Stage":
        """A random stage around ``figure``, seen from ``azimuth`` (radians; 0 is along +x)."""
        elevation, roll, fill = rng.uniform(0.05, 0.5), rng.normal(0, 0.06), rng.uniform(0.8, 1.02)
        camera = frame(figure, azimuth, elevation, roll, fill)
        background, lamp = BACKGROUNDS[rng.integers(len(BACKGROUNDS))], LIGHTS[rng.integers(len(LIGHTS))]
        light, surroundings = Light.draw(lamp, azimuth, rng), Surroundings.draw(background, azimuth, rng)
        toward = np.array([np.cos(azimuth), np.sin(azimuth)])
        across = np.array([-toward[1], toward[0]])
        props = []
        for near, far in ((0.8, 1.1), (-0.9, -0.6)):
            kind, there = PROPS[rng.integers(len(PROPS))], rng.uniform() < 0.45
            aside = across * (rng.uniform(0.1, 0.55) * rng.choice([-1, 1]))
            prop = Prop.draw(kind, (toward * rng.uniform(near, far) + aside).astype(np.float32), rng)
            if there:
                props.append((kind, prop))
        return cls(camera, background, lamp, light, surroundings, tuple(props))

    def picture(
        self,
        figure: Solids,
        blend: float,
        shine: Callable[[Hits], Floats],
        size: int | tuple[int, int],
        rng: np.random.Generator,
        sensor: Sensor = develop,
    ) -> tuple[NDArray[np.uint8], Mask, str]:
        """Takes the picture.

        Args:
            figure: the subject's solids. blend: radius over which they melt together.
            shine: light (3, H) from the subject's surface at its hits, see `Light.on`.
            size: height and width of the picture in pixels; one number for a square.
            rng: draws the sensor's faults.
            sensor: makes the picture from linear light (3, R, C), see `develop`.

        Returns:
            image (height, width, 3) uint8, mask of the visible subject (height, width), and the name of the prop
            in front of it, or ``none``.
        """
        shape = (size, size) if isinstance(size, int) else size
        fine = (round(shape[0] * _FINER), round(shape[1] * _FINER))
        rays = self.camera.rays(*fine)
        hits = trace(figure, self.camera.origin, rays, blend)
        depth = np.full(rays.shape[1], np.inf, np.float32)
        depth[hits.ray] = hits.depth
        mask = np.isfinite(depth)
        kept, casters, in_front = [], [figure], "none"
        for name, prop in self.props:
            met = trace(prop.solids, self.camera.origin, rays, 0.004)
            first = met.depth < depth[met.ray]
            if mask[met.ray[first]].sum() > _HIDDEN * len(hits.ray):
                continue
            if mask[met.ray[first]].any() and in_front == "none":
                in_front = name
            depth[met.ray[first]] = met.depth[first]
            mask[met.ray[first]] = False
            kept.append((prop, met, first))
            casters.append(prop.solids)
        image = self._around(rays, casters, fine)
        image[:, hits.ray] = shine(hits)
        for prop, met, first in kept:
            open_ = np.ones_like(met.depth)
            lit = prop.colour(met.point) * self.light.on(met.normal, open_, open_)
            image[:, met.ray[first]] = lit[:, first]
        picture = sensor(image.reshape(3, *fine), shape, rng)
        return picture, _shrink(mask.reshape(fine), shape), in_front

    def _around(self, rays: Floats, casters: list[Solids], fine: tuple[int, int]) -> Floats:
        """Light (3, N) from the surroundings at ``fine`` (height, width) rays, with the casters' shadows.

        Shadows are soft, so they are worked out for every third ray each way and spread from there.
        """
        colour, points, on_floor = self.surroundings.look(self.camera.origin, rays)
        coarse = points.reshape(3, *fine)[:, 1::3, 1::3]
        floor = on_floor.reshape(fine)[1::3, 1::3] & ((coarse * coarse).sum(0) < 9)
        shadow, openness = np.ones(floor.shape, np.float32), np.ones(floor.shape, np.float32)
        up = np.array([0, 0, 1], np.float32)
        for solids in casters:
            shadow[floor] *= shade_of(solids, coarse[:, floor], self.light.direction, self.light.softness)
            openness[floor] *= 0.35 + 0.65 * shade_of(solids, coarse[:, floor], up, 0.9)
        upward = np.zeros_like(points)
        upward[2] = 1
        return colour * self.light.on(upward, _spread(shadow, fine), _spread(openness, fine))


def _spread(coarse: Floats, shape: tuple[int, int]) -> Floats:
    """Enlarges an image to ``shape`` (height, width) and flattens it: (height * width,)."""
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BILINEAR)).ravel()


def _shrink(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask at another ``shape`` (height, width), nearest pixel by nearest pixel."""
    down, across = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(shape, mask.shape, strict=True))
    return mask[down[:, None], across[None, :]]
