"""Surveillance cameras: each hangs at a site of its own and has an optics, a sensor and faults of its own."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter

from zoo.world.render.geometry import Camera, Floats
from zoo.world.render.scenery import Surroundings, expose
from zoo.world.render.solids import Solids
from zoo.world.render.texture import Noise, linear, mix, step

SITES = ("street", "plaza", "park", "hall", "platform", "shop")
_OUTDOOR = ("street", "plaza", "park")
_LUMA = np.array([0.25, 0.65, 0.10], np.float32)


@dataclass(frozen=True)
class Site(Surroundings):
    """Ground and what is behind it, of one of `SITES`; people stand at ``spot`` (2,): off the wall and along it."""

    spot: Floats

    @classmethod
    def of(cls, kind: str, rng: np.random.Generator) -> "Site":
        """A site with its own colours and proportions."""
        colours = tuple(
            (rng.uniform(0.25, 0.75) * np.exp(rng.normal(0, 0.22, 3))).astype(np.float32) ** 1.8 for _ in range(5)
        )
        numbers = rng.random(12).astype(np.float32)
        return cls(kind, 0.0, 3.0, colours, numbers, Noise(rng, 1.4, 5), Noise(rng, 0.12, 5), np.zeros(2, np.float32))

    def _floor(self, at: Floats) -> Floats:
        """Colour (3, N) of the ground at (2, N)."""
        n, off, along = self.numbers, at[0] + self.spot[0], at[1] + self.spot[1]
        here = np.stack([off, along])
        worn = 1 + 0.10 * self.noise(here) + 0.06 * self.grain(here)
        if self.kind == "street":
            colour = np.repeat(linear(104, 104, 108)[:, None], len(off), 1)
            paving = mix(colour, linear(150, 146, 140), _joints(off, along, 0.4 + 0.3 * n[0], 0.03))
            colour = mix(colour, paving * 1.25, (off < 1.0 + n[1]).astype(np.float32))
            line = (np.abs(off - 3.0 - n[1]) < 0.08) & (np.mod(along, 3.0) < 1.8)
            colour = mix(colour, linear(222, 220, 210), line.astype(np.float32))
        elif self.kind == "plaza":
            base = self.colours[0] * 0.6 + linear(170, 164, 154) * 0.5
            odd = np.mod(np.floor(off / 0.6) + np.floor(along / 0.6), 2).astype(np.float32)
            colour = mix(np.repeat(base[:, None], len(off), 1), base * (0.7 + 0.2 * n[0]), odd)
            colour = mix(colour, base * 0.45, _joints(off, along, 0.6, 0.02))
        elif self.kind == "park":
            grass = mix(
                np.repeat(linear(84, 122, 52)[:, None], len(off), 1), linear(120, 142, 70), 0.5 + 0.5 * self.noise(here)
            )
            path = step(0.1, -0.1, np.abs(off - 2.5 - 0.3 * np.sin(along)) - 1.2 - 0.5 * n[0])
            colour = mix(grass, linear(186, 172, 144), path)
        elif self.kind == "hall":
            base = self.colours[0] * 0.3 + linear(188, 186, 180) * 0.75
            colour = mix(np.repeat(base[:, None], len(off), 1), base * 0.7, _joints(off, along, 0.9, 0.015))
            worn = 1 + 0.25 * step(0.2, 0.9, np.sin(along * (1.2 + n[0])))  # lamps mirrored in the floor
        elif self.kind == "platform":
            colour = np.repeat(linear(142, 142, 140)[:, None], len(off), 1)
            strip = (np.abs(off - 1.2 - n[0]) < 0.2).astype(np.float32)
            colour = mix(colour, linear(226, 188, 56), strip)
        else:
            plank = np.floor(off / 0.18)
            wood = linear(168 + 40 * n[0], 128 + 30 * n[0], 88 + 30 * n[1])
            colour = wood[:, None] * (1 + 0.15 * np.sin(plank * 12.9))
        return colour * worn

    def _wall(self, along: Floats, height: Floats) -> Floats:
        """Colour (3, N) of what closes the view."""
        n, along = self.numbers, along + self.spot[1]
        colour = np.repeat(self.colours[1][:, None], len(along), 1)
        if self.kind == "park":
            leaves = self.grain(np.stack([along, height]) * 0.7)
            colour = mix(colour * 0 + linear(44, 74, 38)[:, None], linear(92, 124, 62), 0.5 + 0.5 * leaves)
            return mix(colour, linear(150, 178, 200), step(2.2, 2.8, height + 0.4 * leaves))
        if self.kind in ("street", "hall"):  # doors and windows
            width = 1.6 + 1.2 * n[2]
            inside = (np.mod(along, width) < 0.62 * width) & (np.mod(height, 2.8) > 0.5 - 0.4 * n[3])
            glass = linear(62, 78, 92) if self.kind == "street" else linear(170, 196, 210)
            return mix(colour, glass, inside.astype(np.float32) * (1 - 0.2 * n[4]))
        if self.kind == "plaza":
            return mix(colour, self.colours[1] * 0.6, _joints(height, along, 0.5, 0.04))
        if self.kind == "platform":  # a train
            band = (np.abs(height - 0.55) < 0.12 + 0.1 * n[2]).astype(np.float32)
            window = ((np.abs(height - 1.5) < 0.45) & (np.mod(along, 1.8) < 1.4)).astype(np.float32)
            return mix(mix(colour * 0.6 + 0.3, self.colours[2], band), linear(40, 46, 54), window)
        column, row = np.floor(along / (0.16 + 0.1 * n[2])), np.floor(height / 0.42)
        goods = np.stack([0.3 + 0.25 * np.sin(column * a + row * b) for a, b in ((7.1, 3.3), (5.3, 8.7), (9.7, 1.9))])
        board = np.mod(height, 0.42) < 0.08
        return mix(goods.astype(np.float32), linear(190, 184, 172), board.astype(np.float32))


def _joints(u: Floats, v: Floats, size: float, width: float) -> Floats:
    """1 on the lines (N,) of a square grid."""
    u, v = u / np.float32(size), v / np.float32(size)
    return (np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) < width / size).astype(np.float32)


@dataclass(frozen=True)
class SurveillanceCamera:
    """A camera that hangs at a site; colours (3,).

    Args:
        number: from 1.
        lamps: kinds of light there, of `zoo.world.render.scenery.LIGHTS`.
        elevation: how far it looks down, in radians. distance: to the people, in metres.
        wall: azimuth that the wall behind them faces, seen from the camera. roll: how crooked it hangs.
        heading: azimuth of the camera for somebody who takes the usual way past it.
        gain: exposure and colour cast. vividness: 0 is grey, 1 true. blur: in pixels of an image 128 high.
        noise: standard deviation in grey levels. vignette: light missing in the corners.
    """

    number: int
    site: Site
    lamps: tuple[str, ...]
    elevation: float
    distance: float
    wall: float
    roll: float
    heading: float
    gain: Floats
    vividness: float
    blur: float
    noise: float
    vignette: float

    @classmethod
    def draw(cls, number: int, kind: str, rng: np.random.Generator) -> "SurveillanceCamera":
        """A camera at a site of one of `SITES`."""
        site = Site.of(kind, rng)
        cast, exposure = np.exp(rng.normal(0, 0.11, 3)), np.exp(rng.normal(0.12, 0.2))
        return cls(
            number=number,
            site=site,
            lamps=("noon", "shade", "evening") if kind in _OUTDOOR else ("lamp", "shade"),
            elevation=float(rng.uniform(0.06, 0.42)),
            distance=float(rng.uniform(5, 11)),
            wall=float(rng.uniform(-0.5, 0.5)),
            roll=float(rng.normal(0, 0.025)),
            heading=float(rng.uniform(-np.pi, np.pi)),
            gain=(cast * exposure).astype(np.float32),
            vividness=float(rng.uniform(0.65, 1.1)),
            blur=float(rng.uniform(0.2, 0.9)),
            noise=float(rng.uniform(1.0, 6.0)),
            vignette=float(rng.uniform(0, 0.25)),
        )

    def site_behind(self, azimuth: float, rng: np.random.Generator) -> Site:
        """The site behind a person who stands somewhere in it and whom the camera sees at ``azimuth``."""
        spot = np.array([rng.uniform(1.0, 4.0), rng.uniform(-8, 8)], np.float32)
        return replace(self.site, facing=azimuth + self.wall, far=float(spot[0]), spot=spot)

    def frame(self, figure: Solids, azimuth: float, rng: np.random.Generator) -> Camera:
        """The view in a detector's box around a figure: a bit loose, off its centre, at times cutting it."""
        middle = np.array([0, 0, figure.centre[:, 2].mean()], np.float32)
        elevation = self.elevation + rng.normal(0, 0.03)
        camera = Camera.orbit(middle, azimuth, elevation, self.distance, self.roll)
        local = np.einsum("nk,ak->na", figure.centre - camera.origin, camera.axes)
        reach = np.einsum("snk,an->sak", figure.axes, camera.axes[:2]) * figure.radii[:, None, :]
        reach = np.sqrt((reach * reach).sum(2)) / local[:, 2:]
        flat = local[:, :2] / local[:, 2:]
        low, high = (flat - reach).min(0), (flat + reach).max(0)
        wide, tall = (high - low).tolist()
        loose = rng.uniform(0.95, 1.0) if rng.uniform() < 0.12 else rng.uniform(1.02, 1.16)
        box = max(tall * loose, 1.7 * wide)
        centre = (low + high) / 2 + rng.normal(0, 0.016, 2).clip(-0.035, 0.035) * box
        zoom = 2 / box
        return Camera(camera.origin, camera.axes, zoom, (float(-centre[0] * zoom), float(-centre[1] * zoom)))

    def develop(self, light: Floats, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """A picture of ``shape`` (height, width) pixels from linear light (3, R, C), as `develop` of the scenery."""
        grey = _LUMA[0] * light[0] + _LUMA[1] * light[1] + _LUMA[2] * light[2]
        light = np.maximum(grey + (light - grey) * np.float32(self.vividness), 0)
        drift = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.03, 3)).astype(np.float32)
        picture = expose(light, shape, self.gain * drift, self.vignette)
        blur = self.blur * rng.uniform(0.6, 1.3) * shape[0] / 128
        if blur > 0.25:
            picture = picture.filter(ImageFilter.GaussianBlur(float(blur)))
        noise = rng.standard_normal((*shape, 3), np.float32) * np.float32(self.noise * rng.uniform(0.7, 1.3))
        return (np.asarray(picture, np.float32) + noise + 0.5).clip(0, 255).astype(np.uint8)
