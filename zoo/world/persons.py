"""The world of persons: whole people in two outfits each, seen by six surveillance cameras."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from zoo.world.base import Sample, World, box_of
from zoo.world.bodies.anatomy import Figure
from zoo.world.bodies.clothes import paint_clothes, shape_of
from zoo.world.bodies.human import Gait, pose_human
from zoo.world.bodies.passersby import OBSTACLES, obstacle
from zoo.world.bodies.wardrobe import BUILDS, MemberDraws, Person, draw_person
from zoo.world.render.geometry import Camera, Floats, Mask
from zoo.world.render.scenery import Light, Prop
from zoo.world.render.setting import Setting, Subject
from zoo.world.render.solids import Hits, shade_of, trace
from zoo.world.render.surveillance import SITES, SurveillanceCamera
from zoo.world.render.texture import Noise, share_of, stream

_BLEND = 0.018  # metres over which the parts of a figure melt together

CLOTHES = ("same", "changed")  # words for the first and the second outfit
_SCALE = 0.68  # of a metre, in a group with pets and objects
_STILL = 0.1  # swing of the legs, in radians, below which somebody stands
_WHOLE = 0.7  # share of a person that must be visible for the pose to be named
_PARTS = {
    "top": ("torso", "arm_left", "arm_right"), "bottom": ("leg_left", "leg_right", "skirt"), "hat": ("hat",),
    "bag": ("bag",),
}  # fmt: skip
_VISIBLE = 0.04  # share of the visible figure from which on a garment, a hat or a bag is named
_QUERIES = {2: 0, 3: 1}  # views of a test identity, modulo 4, that are queries, and the outfit worn in them


@lru_cache(maxsize=8)
def _person(world: "Persons", identity: int) -> Person:
    family, member = divmod(identity, world.members)
    shared, own = stream(world.seed, 2, family), stream(world.seed, 2, family, member + 1)
    return draw_person(world.kind(family), MemberDraws(shared, own, world.own_share))


@lru_cache(maxsize=8)
def _cameras(seed: int) -> tuple[SurveillanceCamera, ...]:
    """The six cameras of a world, each at another kind of site."""
    order = stream(seed, 4).permutation(len(SITES)).tolist()
    return tuple(SurveillanceCamera.draw(k + 1, SITES[site], stream(seed, 4, k + 1)) for k, site in enumerate(order))


def _gait(rng: np.random.Generator) -> Gait:
    """Somebody who walks, or at times stands, and perhaps holds a phone."""
    walking = rng.uniform() < 0.8
    elbows, raised = rng.uniform(0.05, 0.5, 2), rng.normal(0, 0.08, 2)
    if rng.uniform() < 0.15:
        busy = int(rng.integers(2))
        elbows[busy], raised[busy] = rng.uniform(1.6, 2.3), rng.uniform(0.1, 0.4)
    return Gait(
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(rng.uniform(0.25, 0.5) if walking else rng.uniform(0, 0.08)),
        swing=float(rng.uniform(0.15, 0.55) if walking else 0.05),
        elbows=(float(elbows[0]), float(elbows[1])),
        raised=(float(raised[0]), float(raised[1])),
        spread=float(rng.uniform(0, 0.14)),
        lean=float(rng.normal(0.03, 0.03)),
        yaw=float(rng.normal(0, 0.3)),
        nod=float(rng.normal(0.05, 0.12)),
    )


def _side(azimuth: float) -> str:
    """Which side of somebody a camera at ``azimuth`` in (-pi, pi] sees; left and right also as seen in the image."""
    if abs(azimuth) < np.pi / 4:
        return "front"
    if abs(azimuth) > 3 * np.pi / 4:
        return "back"
    return "left" if azimuth > 0 else "right"


def _draw(
    person: Person, worn: int, camera: SurveillanceCamera, rng: np.random.Generator, shape: tuple[int, int]
) -> Sample:
    """One picture of a person in outfit number ``worn``."""
    outfit = person.outfits[worn]
    # People pass a camera one way or the other, most of them the usual ways.
    heading = camera.heading + np.pi * rng.integers(2) + rng.normal(0, 0.9)
    azimuth = float(np.mod(heading + np.pi, 2 * np.pi) - np.pi)
    figure = pose_human(person.wearer.build, shape_of(person.wearer, outfit), _gait(rng))
    lamp = camera.lamps[rng.integers(len(camera.lamps))]
    setting = Setting(
        camera=camera.frame(figure.solids, azimuth, rng),
        background=camera.site.kind,
        lamp=lamp,
        light=Light.draw(lamp, azimuth, rng),
        surroundings=camera.site_behind(azimuth, rng),
        props=_obstacles(azimuth, rng),
    )
    folds = Noise(rng, 0.09, 5)

    def shine(hits: Hits) -> Floats:
        return _shine(paint_clothes(person.wearer, outfit, hits, person.rests[worn], folds), figure, hits, setting)

    image, mask, _ = setting.picture(figure.solids, _BLEND, shine, shape, rng, camera.develop)
    return Sample(image, mask, box_of(mask), _words(person, worn, camera, azimuth))


def _words(person: Person, worn: int, camera: SurveillanceCamera, azimuth: float) -> dict[str, str]:
    """The attributes of a picture."""
    wearer, outfit = person.wearer, person.outfits[worn]
    return {
        "clothes": CLOTHES[worn],
        "top": outfit.top,
        "top_colour": outfit.top_word,
        "top_pattern": outfit.pattern,
        "bottom": outfit.bottom,
        "bottom_colour": outfit.bottom_word,
        "hair": wearer.hair,
        "hair_colour": wearer.hair_word if wearer.hair != "bald" else "none",
        "hat": wearer.hat,
        "bag": wearer.bag,
        "side": _side(azimuth),
        "camera": str(camera.number),
        "background": camera.site.kind,
    }


def _obstacles(azimuth: float, rng: np.random.Generator) -> tuple[tuple[str, Prop], ...]:
    """Perhaps something in front of the person and something behind."""
    toward = np.array([np.cos(azimuth), np.sin(azimuth)])
    across = np.array([-toward[1], toward[0]])
    props = []
    for near, far, odds in ((0.6, 1.2, 0.25), (-2.5, -0.7, 0.35)):
        kind, there = OBSTACLES[rng.integers(len(OBSTACLES))], rng.uniform() < odds
        aside = across * (rng.uniform(0.15, 0.55) * rng.choice([-1, 1]))
        prop = obstacle(kind, (toward * rng.uniform(near, far) + aside).astype(np.float32), rng)
        if there:
            props.append((kind, prop))
    return tuple(props)


def _shine(colour: Floats, figure: Figure, hits: Hits, setting: Setting) -> Floats:
    """Light (3, H) from the person's surface of ``colour`` (3, H)."""
    casters = figure.part("torso", "head", "bag", "skirt", "hat")
    place = hits.point + 0.03 * hits.normal
    shadow = shade_of(casters, place, setting.light.direction, setting.light.softness, skip=0.3)
    openness = 0.6 + 0.4 * np.clip(hits.point[2], 0, 1)
    return colour * setting.light.on(hits.normal, shadow, openness)


class PlacedPerson(Subject[Hits]):
    """A person on the way.

    Args:
        worn: number of the outfit, 0 or 1.
        azimuth: side from which the camera sees the person, in radians from the front to the left.
    """

    def __init__(self, person: Person, worn: int, azimuth: float, rng: np.random.Generator) -> None:
        self.person, self.worn, self.azimuth, self.scale = person, worn, azimuth, _SCALE
        wearer, outfit = person.wearer, person.outfits[worn]
        self.gait = _gait(rng)
        self.figure = pose_human(wearer.build, shape_of(wearer, outfit), self.gait)
        self.solids, self.folds = self.figure.solids, Noise(rng, 0.09, 5)

    def corners(self) -> Floats:
        return self.solids.corners()

    def meet(self, camera: Camera, rays: Floats) -> Hits:
        return trace(self.solids, camera.origin, rays, _BLEND)

    def shine(self, met: Hits, shown: Mask, setting: Setting) -> tuple[Floats, dict[str, str]]:
        wearer, outfit = self.person.wearer, self.person.outfits[self.worn]
        colour = paint_clothes(wearer, outfit, met, self.person.rests[self.worn], self.folds)
        words = {"species": "person"}
        if shown.mean() > _WHOLE:
            side = _side(self.azimuth)
            words["facing"] = {"front": "camera", "back": "away"}.get(side, side)
            if self.gait.stride < _STILL or abs(np.sin(self.gait.phase)) > 0.5:  # else the legs pass each other
                words["pose"] = "standing" if self.gait.stride < _STILL else "walking"
        on = {part: shown & (met.blend(self.figure.belongs(*own)) > 0.5) for part, own in _PARTS.items()}
        visible = {part: bool(at.sum() > _VISIBLE * shown.sum()) for part, at in on.items()}
        if visible["top"]:
            words |= {"top": outfit.top}
            if share_of(outfit.top_colour, colour[:, on["top"]]) > 0.4:
                words["top_colour"] = outfit.top_word
            if outfit.pattern in ("stripes", "check") and share_of(outfit.second, colour[:, on["top"]]) > 0.15:
                words["top_pattern"] = outfit.pattern
        if visible["bottom"] and outfit.top != "coat":
            words |= {"bottom": outfit.bottom}
            if share_of(outfit.bottom_colour, colour[:, on["bottom"]]) > 0.2:
                words["bottom_colour"] = outfit.bottom_word
        worn = {"hat": wearer.hat, "bag": wearer.bag}
        words |= {name: word for name, word in worn.items() if word != "none" and visible[name]}
        return _shine(colour, self.figure, met, setting), words


@dataclass(frozen=True)
class Persons(World):
    """Persons in look-alike families: members share build, garments, main colours and kind of pattern.

    They differ in shades, second colours, stripes, prints, hair, skin, bag, hat and shoes, and a little in build.
    Everybody has two outfits. Six cameras, each with a site, a colour cast and noise of its own, see everybody.

    Written in the layout of Market-1501. The gallery wears the first outfit; of every four views of a test
    identity, two go to the gallery, one is a query in the first outfit, and one a query in the second, as in PRCC
    (Yang et al., TPAMI 2021); the attribute ``clothes`` distinguishes them.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity, at least 4.
        size: height of an image in pixels, its width is half of it.
        difficulty: how alike the members of a family are, from 0 (as different as strangers in garments of the same
            kinds and main colours) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    size: int = 128

    NAME: ClassVar[str] = "persons"
    VERSION: ClassVar[int] = 1
    READER: ClassVar[str] = "market1501"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 4:
            raise ValueError(
                f"views must be at least 4, got {self.views}: two for the gallery, a query in the same clothes and one "
                "in changed clothes. Give a larger whole number."
            )

    def kind(self, family: int) -> str:
        """The build of a family, of `BUILDS`; they take turns, so every world has about as many of each."""
        return list(BUILDS)[(family + self.seed) % len(BUILDS)]

    def person(self, identity: int) -> Person:
        """The individual itself, whatever the view."""
        return _person(self, identity)

    def subject(self, identity: int, rng: np.random.Generator) -> PlacedPerson:
        """One person in one of the outfits, to be put into a setting with others."""
        worn, azimuth = int(rng.integers(2)), float(rng.uniform(-np.pi, np.pi))
        return PlacedPerson(self.person(identity), worn, azimuth, rng)

    def camera_of(self, identity: int, view: int) -> int:
        """Number of the camera, from 1; the views of an identity take turns over the cameras."""
        return (identity + view) % len(SITES) + 1

    def worn(self, identity: int, view: int) -> int:
        """0 for the first outfit, 1 for the second; identities of training wear either before every camera."""
        if self.split_of(identity) == "test":
            return _QUERIES.get(view % 4, 0)
        return (view + view // len(SITES)) % 2

    def path_of(self, identity: int, view: int) -> str:
        """Path in the layout of Market-1501; persons are numbered from 1, as 0 and -1 stand for nobody there."""
        folder = "bounding_box_train"
        if self.split_of(identity) == "test":
            folder = "query" if view % 4 in _QUERIES else "bounding_box_test"
        return f"{folder}/{identity + 1:04d}_c{self.camera_of(identity, view)}s1_{view:06d}_01.jpg"

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one person; depends on nothing but the fields and the two numbers.

        Raises:
            IndexError: there is no such identity or view.
        """
        self.check(identity, view)
        camera = _cameras(self.seed)[self.camera_of(identity, view) - 1]
        rng = stream(self.seed, 3, *divmod(identity, self.members), view)
        return _draw(self.person(identity), self.worn(identity, view), camera, rng, (self.size, self.size // 2))
