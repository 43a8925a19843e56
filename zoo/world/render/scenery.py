"""Light, surroundings, props and the camera's sensor: whatever in a picture does not depend on its subject."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from zoo.world.render.geometry import Camera, Floats, Mask
from zoo.world.render.solids import Solids
from zoo.world.render.texture import Noise, linear, mix, step

BACKGROUNDS = ("room", "tiles", "lawn", "beach", "snow", "studio", "carpet", "abstract")
LIGHTS = ("noon", "lamp", "shade", "evening", "backlit")


@dataclass(frozen=True)
class Light:
    """One distant lamp and the light of the sky; colours (3,) in linear light.

    Args:
        direction: unit vector towards the lamp, (3,).
        softness: width of the shadows' edges in units of what casts them.
    """

    direction: Floats
    lamp: Floats
    sky: Floats
    softness: float

    @classmethod
    def draw(cls, kind: str, azimuth: float, rng: np.random.Generator) -> "Light":
        """A light of one of `LIGHTS`, placed relative to a camera at ``azimuth``."""
        lamp, sky, strength, height, softness = {
            "noon": (linear(255, 248, 238), linear(200, 214, 236), 1.0, (0.7, 1.3), 0.15),
            "lamp": (linear(255, 228, 192), linear(214, 196, 180), 0.85, (0.5, 1.1), 0.35),
            "shade": (linear(222, 230, 246), linear(218, 226, 240), 0.5, (0.6, 1.2), 0.7),
            "evening": (linear(255, 212, 160), linear(190, 196, 220), 0.95, (0.25, 0.5), 0.2),
            "backlit": (linear(255, 244, 226), linear(214, 220, 232), 1.0, (0.45, 0.8), 0.25),
        }[kind]
        around = azimuth + (rng.uniform(2.2, 4.1) if kind == "backlit" else rng.uniform(-1.5, 1.5))
        up = rng.uniform(*height)
        toward = np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)], np.float32)
        tint = np.exp(rng.normal(0, 0.07, 3)).astype(np.float32)
        level = np.float32(strength * rng.uniform(0.75, 1.25))
        ambient = np.float32(rng.uniform(0.5, 0.75))
        return cls(toward, lamp * tint * level, sky * ambient, softness)

    def on(self, normal: Floats, shadow: Floats, openness: Floats) -> Floats:
        """Light (3, N) that reaches surfaces with unit normals (3, N).

        Args:
            shadow: 0 in full shadow to 1 in the open, (N,).
            openness: how much of the sky is visible, in [0, 1], (N,).
        """
        facing = normal[0] * self.direction[0] + normal[1] * self.direction[1] + normal[2] * self.direction[2]
        direct = np.clip(facing * 0.85 + 0.15, 0, None) * shadow
        dome = (0.62 + 0.38 * normal[2]) * openness
        return self.lamp[:, None] * direct + self.sky[:, None] * dome


def _colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.8) -> Floats:
    """A random, mostly muted colour in linear light (3,)."""
    hue, vivid, value = rng.uniform(), rng.uniform(0.1, 0.75), rng.uniform(low, high)
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3])))
    return ((value * (1 - vivid + vivid * wheel)) ** 1.6).astype(np.float32)


@dataclass(frozen=True)
class Surroundings:
    """A floor at z = 0 and a wall, or a horizon, behind the origin; patterns are drawn from ``rng`` once.

    Args:
        kind: one of `BACKGROUNDS`.
        facing: azimuth that the wall faces.
        far: distance of the wall.
    """

    kind: str
    facing: float
    far: float
    colours: tuple[Floats, ...]
    numbers: Floats
    noise: Noise
    grain: Noise

    @classmethod
    def draw(cls, kind: str, azimuth: float, rng: np.random.Generator) -> "Surroundings":
        """Surroundings of one of `BACKGROUNDS` for a camera at ``azimuth``."""
        colours = tuple(_colour(rng) for _ in range(5))
        facing, far = azimuth + rng.uniform(-0.6, 0.6), rng.uniform(0.8, 2.2)
        numbers = rng.random(12).astype(np.float32)
        return cls(kind, facing, far, colours, numbers, Noise(rng, 0.7, 5), Noise(rng, 0.09, 5))

    def trace(self, origin: Floats, rays: Floats) -> tuple[Floats, Floats, Mask]:
        """What rays (3, N) meet: colour (3, N), hit points (3, N) and a mask of those on the floor (N,)."""
        down = np.minimum(rays[2], -1e-4)
        floor_depth = -origin[2] / down
        normal = np.array([np.cos(self.facing), np.sin(self.facing), 0], np.float32)
        toward = np.minimum(normal[0] * rays[0] + normal[1] * rays[1], -1e-4)
        wall_depth = (-self.far - normal[0] * origin[0] - normal[1] * origin[1]) / toward
        open_air = self.kind in ("lawn", "beach", "snow", "studio")
        on_floor = (rays[2] < -1e-3) & ((floor_depth < wall_depth) | open_air)
        depth = np.where(on_floor, np.minimum(floor_depth, 40), np.minimum(wall_depth, 40))
        points = origin[:, None] + depth * rays
        turned = np.stack(
            [normal[0] * points[0] + normal[1] * points[1], normal[0] * points[1] - normal[1] * points[0]]
        )
        floor, wall = np.flatnonzero(on_floor), np.flatnonzero(~on_floor)
        colour = np.empty_like(points)
        colour[:, floor] = self._floor(turned[:, floor])
        if open_air:
            colour[:, wall] = self._sky(rays[:, wall], turned[1, wall])
        else:
            colour[:, wall] = self._wall(turned[1, wall], points[2, wall])
        return colour, points, on_floor

    def _floor(self, at: Floats) -> Floats:
        """Colour (3, N) of the floor at (2, N)."""
        n, wave = self.numbers, self.noise(at)
        first, second = self.colours[0], self.colours[1]
        base = np.repeat(first[:, None], at.shape[1], 1)
        if self.kind == "tiles":
            size = 0.22 + 0.5 * n[0]
            u, v = at[0] / size + n[1], at[1] / size + n[2]
            colour = mix(base, second, ((np.floor(u) + np.floor(v)) % 2).astype(np.float32))
            joint = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) < 0.03
            colour = mix(colour, linear(190, 186, 180), joint * np.float32(0.7))
        elif self.kind == "room":
            width = 0.14 + 0.16 * n[0]
            plank = np.floor(at[1] / width)
            shade = np.sin(plank * 12.9 + n[1] * 50) * 0.16 + 0.08 * self.grain(np.stack([at[0] * 0.2, at[1]]))
            wood = linear(150 + 60 * n[2], 100 + 40 * n[2], 60 + 40 * n[3])
            colour = wood[:, None] * (1 + shade)
            seam = np.abs(at[1] / width - np.round(at[1] / width)) < 0.04
            colour = mix(colour, wood * 0.4, seam * np.float32(0.8))
            if n[4] < 0.5:
                colour = self._rug(at, colour)
        elif self.kind == "carpet":
            stripes = np.sin((at[0] * np.cos(n[0] * 3) + at[1] * np.sin(n[0] * 3)) * (8 + 25 * n[1]))
            colour = mix(base, second, step(-0.2, 0.2, stripes + (n[2] - 0.5) * 1.5))
            colour = colour * (1 + 0.12 * self.grain(at * 1.5))
        elif self.kind == "abstract":
            colour = mix(base, second, step(-0.1, 0.1, wave))
            colour = mix(colour, self.colours[2], step(0.05, 0.15, self.noise(at * 1.7 + 9)))
        else:
            ground = {
                "lawn": (linear(86, 130, 48), linear(128, 160, 70)),
                "beach": (linear(214, 190, 148), linear(184, 156, 116)),
                "snow": (linear(232, 238, 246), linear(196, 208, 228)),
            }.get(self.kind, (first, first))
            colour = mix(np.repeat(ground[0][:, None], at.shape[1], 1), ground[1], 0.5 + 0.5 * wave)
            if self.kind != "studio":
                colour = colour * (1 + (0.35 if self.kind == "lawn" else 0.08) * self.grain(at))
        return colour

    def _rug(self, at: Floats, colour: Floats) -> Floats:
        """A round rug with rings over ``colour`` (3, N)."""
        n = self.numbers
        away = np.sqrt((at[0] - n[5] * 0.4 + 0.2) ** 2 + (at[1] - n[6] * 0.6 + 0.3) ** 2) / (0.6 + 0.6 * n[7])
        ring = step(-0.2, 0.2, np.sin(away * (8 + 14 * n[8])))
        rug = mix(np.repeat(self.colours[2][:, None], len(away), 1), self.colours[3], ring)
        return mix(colour, rug, step(1.01, 0.99, away))

    def _wall(self, along: Floats, height: Floats) -> Floats:
        """Colour (3, N) of the wall at a place along it and a height."""
        n = self.numbers
        paper, print_ = self.colours[3], self.colours[4]
        colour = np.repeat(paper[:, None], len(along), 1)
        if self.kind == "abstract":
            return mix(colour, print_, step(-0.1, 0.1, self.noise(np.stack([along, height]))))
        scale = 5 + 14 * n[9]
        if n[10] < 0.3:
            colour = mix(colour, print_, step(-0.15, 0.15, np.sin(along * scale)))
        elif n[10] < 0.5:
            dots = np.sin(along * scale) * np.sin(height * scale)
            colour = mix(colour, print_, step(0.35, 0.5, np.abs(dots)))
        elif n[10] < 0.65:
            colour = mix(colour, print_, step(0.45, 0.43, height))
        if n[11] < 0.4:  # a picture or a window
            inside = (np.abs(along - (n[5] - 0.5) * 1.6) < 0.25 + 0.2 * n[6]) & (np.abs(height - 0.95) < 0.35)
            colour = mix(colour, self.colours[2] * 1.2, inside.astype(np.float32))
        return mix(colour, linear(228, 224, 216), (height < 0.09).astype(np.float32))

    def _sky(self, rays: Floats, along: Floats) -> Floats:
        """Colour (3, N) above the horizon."""
        n = self.numbers
        if self.kind == "studio":
            return mix(
                np.repeat(self.colours[0][:, None], len(along), 1),
                self.colours[1],
                step(-0.05, 0.45, rays[2]),
            )
        low, high = linear(222, 232, 240), linear(120 + 60 * n[0], 170 + 30 * n[1], 226)
        colour = mix(np.repeat(low[:, None], len(along), 1), high, step(0.0, 0.5, rays[2]))
        bearing = np.arctan2(rays[1], rays[0])
        ridge = 0.06 + 0.10 * n[2] + 0.05 * np.sin(bearing * (5 + 9 * n[3])) + 0.03 * np.sin(bearing * 31 + n[4] * 6)
        hedge = {"lawn": linear(52, 88, 44), "beach": linear(70, 140, 170)}.get(self.kind, linear(120, 136, 140))
        flat = np.float32(0.05) if self.kind == "beach" else ridge
        return mix(colour, hedge, step(0.015, -0.015, rays[2] - flat))


PROPS = ("ball", "post", "cushion")


@dataclass(frozen=True)
class Prop:
    """Something that stands about: its solids and two colours (3,)."""

    solids: Solids
    first: Floats
    second: Floats
    stripes: float

    @classmethod
    def draw(cls, kind: str, place: Floats, rng: np.random.Generator) -> "Prop":
        """A ``ball``, ``post`` or ``cushion`` on the floor at ``place`` (2,)."""
        size = float(rng.uniform(0.8, 1.25))
        radii, height = {
            "ball": ((0.14, 0.14, 0.14), 0.14),
            "post": ((0.055, 0.055, 1.6), 0.6),
            "cushion": ((0.30, 0.30, 0.12), 0.11),
        }[kind]
        scaled = np.array([radii], np.float32) * np.float32(size)
        centre = np.array([[place[0], place[1], height * size]], np.float32)
        solids = Solids(centre, np.eye(3, dtype=np.float32)[None], scaled, np.zeros(1, np.float32))
        return cls(solids, _colour(rng), _colour(rng), float(rng.uniform(0, 30)))

    def colour(self, points: Floats) -> Floats:
        """Colour (3, N) at points (3, N)."""
        band = np.sin((points[0] + points[2] * 0.7 - points[1] * 0.5) * np.float32(self.stripes))
        return mix(np.repeat(self.first[:, None], points.shape[1], 1), self.second, step(-0.1, 0.1, band))


def develop(light: Floats, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposes linear light (3, R, C) on a sensor of ``shape`` (height, width) pixels: (height, width, 3) uint8.

    Exposure, white balance, lens blur or shake, vignetting and noise are the sensor's own.
    """
    exposure = np.float32(np.exp(rng.normal(0.14, 0.22)))
    balance = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    picture = expose(light, shape, balance * exposure, float(rng.uniform(0, 0.22)))
    blur = rng.uniform(0, 1)
    if blur > 0.7:
        picture = picture.filter(ImageFilter.GaussianBlur(float((blur - 0.7) * 3.0)))
    noise = rng.standard_normal((*shape, 3), np.float32) * np.float32(rng.uniform(0.5, 6.0))
    return (np.asarray(picture, np.float32) + noise + 0.5).clip(0, 255).astype(np.uint8)


def expose(light: Floats, shape: tuple[int, int], gain: Floats, vignette: float) -> Image.Image:
    """A picture of ``shape`` (height, width) pixels from linear light (3, R, C), with a soft shoulder.

    Args:
        gain: factor of each colour, (3,).
        vignette: share of the light that is missing in the corners.
    """
    down, across = (np.linspace(-1, 1, count, dtype=np.float32) for count in light.shape[1:])
    falloff = 1 - np.float32(vignette) * (down[:, None] ** 2 + across[None, :] ** 2) * 0.5
    exposed = light * gain[:, None, None] * falloff
    exposed = exposed * (1 + exposed * 0.12) / (1 + exposed * 0.45)
    root = np.sqrt(np.clip(exposed, 0, 1))
    shown = root * 0.78 + np.sqrt(root) * 0.22  # near the usual gamma of 1 / 2.2, and quicker
    picture = Image.fromarray((shown.transpose(1, 2, 0) * 255 + 0.5).clip(0, 255).astype(np.uint8))
    return picture.resize((shape[1], shape[0]), Image.Resampling.HAMMING)


def frame_solids(figure: Solids, azimuth: float, elevation: float, roll: float, fill: float) -> Camera:
    """A camera at the given angles (radians) in which the figure fills the share ``fill`` of the image."""
    low, high = (figure.centre - figure.radii.min(1, keepdims=True)).min(0), figure.centre.max(0)
    camera = Camera.orbit((low + high) / 2, azimuth, elevation, 4.5, roll)
    reach = figure.radii.max(1) * 0.8
    flat = camera.project(figure.centre)
    margin = (reach / 4.5)[:, None]
    low2, high2 = (flat - margin).min(0), (flat + margin).max(0)
    zoom = 2 * fill / float((high2 - low2).max())
    middle = (low2 + high2) / 2 * zoom
    return Camera(camera.origin, camera.axes, zoom, (float(-middle[0]), float(-middle[1])))
