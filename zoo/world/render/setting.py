"""The setting of a picture: camera, light, surroundings and props around one subject or several."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.world.render.geometry import Camera, Floats, Ints, Mask
from zoo.world.render.scenery import BACKGROUNDS, LIGHTS, PROPS, Light, Prop, Surroundings, develop, frame_solids
from zoo.world.render.solids import Hits, Solids, shade_of, trace

Sensor = Callable[[Floats, tuple[int, int], np.random.Generator], NDArray[np.uint8]]
Scalar = TypeVar("Scalar", bound=np.generic)
_SHOWN, _SMALLEST = 0.4, 0.005  # of a subject in a group: least visible share, and least share of the picture
_GROUP_FINER = 1.5  # rays per pixel's side where several share a picture and each is small


@dataclass(frozen=True)
class Spot:
    """Where a subject stands and how it is turned.

    Args:
        place: on the floor, (2,).
        turn: where its front points, in radians from +x towards +y.
        scale: length of its own unit of length.
    """

    place: tuple[float, float]
    turn: float
    scale: float

    @property
    def axes(self) -> Floats:
        """Columns are the subject's own axes, (3, 3)."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)

    def to_setting(self, points: Floats) -> Floats:
        """Points (K, 3) of the subject in the setting's frame."""
        moved = np.einsum("ij,kj->ki", self.axes, points) * np.float32(self.scale)
        return (moved + np.array([*self.place, 0])).astype(np.float32)

    def solids_to_setting(self, solids: Solids) -> Solids:
        """Solids of the subject in the setting's frame."""
        axes = np.einsum("ij,sjk->sik", self.axes, solids.axes)
        return Solids(self.to_setting(solids.centre), axes, solids.radii * np.float32(self.scale), solids.taper)

    def to_subject(self, directions: Floats) -> Floats:
        """Directions (3, ...) of the setting in the subject's own frame."""
        return np.einsum("ji,j...->i...", self.axes, directions).astype(np.float32)

    def setting_of_subject(self, setting: "Setting") -> "Setting":
        """The setting with its camera and light in the subject's own frame; its surroundings stay where they are."""
        there = setting.camera
        away = (there.origin - np.array([*self.place, 0])) / self.scale
        camera = Camera(self.to_subject(away), self.to_subject(there.axes.T).T, there.zoom, there.shift)
        light = replace(setting.light, direction=self.to_subject(setting.light.direction))
        return replace(setting, camera=camera, light=light)


class RayHits(Protocol):
    """Where rays first meet something; H of them hit."""

    @property
    def ray(self) -> Ints:
        """Index of each ray that hit, (H,)."""

    @property
    def depth(self) -> Floats:
        """Distance from the camera, (H,)."""


Met = TypeVar("Met", bound=RayHits)


class Subject(ABC, Generic[Met]):
    """A person, pet or object to be put into a setting; in its own frame it stands on z = 0 and its front is along +x.

    Args:
        azimuth: side from which the camera sees it, in radians from its front to its left.
        scale: length of its unit in a group.
        solids: ellipsoids that cast its shadow.
    """

    azimuth: float
    scale: float
    solids: Solids

    @abstractmethod
    def corners(self) -> Floats:
        """Points (K, 3) whose convex hull holds it."""

    @abstractmethod
    def meet(self, camera: Camera, rays: Floats) -> Met:
        """Where a camera's rays (3, side * side) meet it."""

    @abstractmethod
    def shine(self, met: Met, shown: Mask, setting: "Setting") -> tuple[Floats, dict[str, str]]:
        """Light (3, H) from what `meet` found, and the attributes that its pixels show where ``shown`` (H,)."""


Placed = tuple[Subject[Any], Spot]  # subjects of one picture differ in what rays meet


@dataclass(frozen=True)
class Group:
    """A picture of several subjects.

    Args:
        image: (size, size, 3) uint8.
        owner: number of the subject at each pixel, -1 for none, (size, size).
        words: attributes that the picture shows of each subject; None where too much of it is hidden: it is left out.
    """

    image: NDArray[np.uint8]
    owner: Ints
    words: tuple[dict[str, str] | None, ...]


@dataclass(frozen=True)
class Setting:
    """Everything in a picture but its subject.

    Args:
        background, lamp: one of `BACKGROUNDS` and one of `LIGHTS`.
        props: name and solids of what stands about, the one in front of the subject first.
    """

    RAYS: ClassVar[float] = 1.25  # per pixel's side
    MOST_HIDDEN: ClassVar[float] = 0.4  # a prop that would hide more of the subject than this share is taken away

    camera: Camera
    background: str
    lamp: str
    light: Light
    surroundings: Surroundings
    props: tuple[tuple[str, Prop], ...]

    @classmethod
    def draw(cls, figure: Solids, azimuth: float, rng: np.random.Generator) -> "Setting":
        """A random setting around ``figure``, seen from ``azimuth`` (radians; 0 is along +x)."""
        elevation, roll, fill = rng.uniform(0.05, 0.5), rng.normal(0, 0.06), rng.uniform(0.8, 1.02)
        camera = frame_solids(figure, azimuth, elevation, roll, fill)
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
        fine = (round(shape[0] * self.RAYS), round(shape[1] * self.RAYS))
        rays = self.camera.rays(*fine)
        hits = trace(figure, self.camera.origin, rays, blend)
        light, mask, in_front = self._photograph(hits, shine(hits), figure, rays, fine)
        return sensor(light, shape, rng), shrink(mask, shape), in_front

    def _photograph(
        self, hits: RayHits, shone: Floats, caster: Solids, rays: Floats, fine: tuple[int, int]
    ) -> tuple[Floats, Mask, str]:
        """Puts a lit subject among surroundings and props.

        Args:
            shone: light (3, H) from the subject at its hits.
            caster: ellipsoids that cast the subject's shadow.
            rays: (3, R * C) of a picture that is ``fine`` = (R, C) rays high and wide.

        Returns:
            light (3, R, C), mask of the visible subject (R, C), and the name of the prop in front of it, or ``none``.
        """
        depth = np.full(rays.shape[1], np.inf, np.float32)
        depth[hits.ray] = hits.depth
        mask = np.isfinite(depth)
        kept, casters, in_front = [], [caster], "none"
        for name, prop in self.props:
            met = trace(prop.solids, self.camera.origin, rays, 0.004)
            first = met.depth < depth[met.ray]
            hidden = int(mask[met.ray[first]].sum())
            if hidden > self.MOST_HIDDEN * len(hits.ray):
                continue
            if hidden and in_front == "none":
                in_front = name
            depth[met.ray[first]] = met.depth[first]
            mask[met.ray[first]] = False
            kept.append((prop, met, first))
            casters.append(prop.solids)
        image = self._around(rays, casters, fine)
        image[:, hits.ray] = shone
        for prop, met, first in kept:
            open_ = np.ones_like(met.depth)
            lit = prop.colour(met.point) * self.light.on(met.normal, open_, open_)
            image[:, met.ray[first]] = lit[:, first]
        return image.reshape(3, *fine), mask.reshape(fine), in_front

    def group(self, placed: Sequence[Placed], size: int, rng: np.random.Generator) -> Group:
        """Takes a picture of several subjects and no props; they shade the floor, not each other.

        Subjects of which hardly anything would show are taken away, the most hidden first.

        Args:
            size: height and width of the picture in pixels.
            rng: draws the sensor's faults.
        """
        fine = (round(size * _GROUP_FINER),) * 2
        rays = self.camera.rays(*fine)
        met = [subject.meet(spot.setting_of_subject(self).camera, spot.to_subject(rays)) for subject, spot in placed]
        depth = np.full((len(placed), rays.shape[1]), np.inf, np.float32)
        for own, (_, spot), hits in zip(depth, placed, met, strict=True):
            own[hits.ray] = hits.depth * np.float32(spot.scale)
        owner = _owners(depth)
        kept = [k for k in range(len(placed)) if (owner == k).any()]
        image = self._around(rays, [placed[k][1].solids_to_setting(placed[k][0].solids) for k in kept], fine)
        words: list[dict[str, str] | None] = [None] * len(placed)
        for k in kept:
            subject, spot = placed[k]
            shown = owner[met[k].ray] == k
            lit, words[k] = subject.shine(met[k], shown, spot.setting_of_subject(self))
            image[:, met[k].ray[shown]] = lit[:, shown]
        picture = develop(image.reshape(3, *fine), (size, size), rng)
        return Group(picture, shrink(owner.reshape(fine), (size, size)), tuple(words))

    def _around(self, rays: Floats, casters: list[Solids], fine: tuple[int, int]) -> Floats:
        """Light (3, N) from the surroundings at ``fine`` (height, width) rays, with the casters' shadows.

        Shadows are soft, so they are worked out for every third ray each way and spread from there.
        """
        colour, points, on_floor = self.surroundings.trace(self.camera.origin, rays)
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


def _owners(depth: Floats) -> Ints:
    """Number of the nearest subject at each ray, -1 for none: (N,), from the depths of all of them (I, N).

    Those of which hardly anything would show are left out; one is always kept.
    """
    depth = depth.copy()
    whole = np.isfinite(depth).sum(1)
    while True:
        owner = np.where(np.isfinite(depth).any(0), depth.argmin(0), -1)
        left = np.flatnonzero(np.isfinite(depth).any(1))
        visible = np.array([(owner == k).sum() for k in left])
        share = np.where(visible < _SMALLEST * len(owner), 0, visible / whole[left])
        if len(left) <= 1 or share.min() >= _SHOWN:
            return owner
        depth[left[share.argmin()]] = np.inf


def _spread(coarse: Floats, shape: tuple[int, int]) -> Floats:
    """Enlarges an image to ``shape`` (height, width) and flattens it: (height * width,)."""
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BILINEAR)).ravel()


def shrink(mask: NDArray[Scalar], shape: tuple[int, int]) -> NDArray[Scalar]:
    """A mask, or a map of numbers, at another ``shape`` (height, width), nearest pixel by nearest pixel."""
    down, across = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(shape, mask.shape, strict=True))
    return mask[down[:, None], across[None, :]]
