"""The world of pets: cats, dogs, foxes, rabbits and hamsters, each with a coat of its own."""

import csv
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.world.base import Sample, World, box_of
from zoo.world.bodies.anatomy import Body, Figure, Pose, pose_body
from zoo.world.bodies.coat import COATS, PATTERNS, Coat, Layout, Skin, paint_coat
from zoo.world.render.geometry import Camera, Floats, Mask
from zoo.world.render.setting import Setting, Subject
from zoo.world.render.solids import Hits, shade_of, trace
from zoo.world.render.texture import linear, mix, step, stream

_BLEND = 0.022  # radius over which the parts of a body melt together


@dataclass(frozen=True)
class Species:
    """How a species is built: the range of every proportion, its kinds of ears, and its eyes."""

    ranges: dict[str, tuple[float, float]]
    ears: tuple[str, ...]
    slit: bool = False
    dark_eyes: bool = False


def _species(*ranges: tuple[float, float], ears: tuple[str, ...], slit: bool = False, dark: bool = False) -> Species:
    names = [field.name for field in fields(Body) if field.name != "ear_kind"]
    return Species(dict(zip(names, ranges, strict=True)), ears, slit, dark)


# Ranges in the order of Body: trunk, girth, leg, bone, neck, head, muzzle, jaw, cheek, ear, tail, brush.
SPECIES: dict[str, Species] = {
    "cat": _species(
        (0.50, 0.62), (0.18, 0.22), (0.30, 0.38), (0.055, 0.07), (0.24, 0.30), (0.25, 0.28), (0.06, 0.14),
        (0.38, 0.46), (0.48, 0.58), (0.85, 1.1), (0.55, 0.75), (0.045, 0.07), ears=("pointed",), slit=True,
    ),
    "dog": _species(
        (0.54, 0.72), (0.20, 0.25), (0.32, 0.48), (0.06, 0.08), (0.27, 0.34), (0.24, 0.27), (0.35, 0.7),
        (0.40, 0.52), (0.40, 0.50), (0.8, 1.15), (0.35, 0.6), (0.05, 0.07),
        ears=("folded", "pointed"), dark=True,
    ),
    "fox": _species(
        (0.50, 0.60), (0.17, 0.20), (0.30, 0.38), (0.05, 0.06), (0.26, 0.30), (0.23, 0.26), (0.45, 0.7),
        (0.28, 0.34), (0.52, 0.62), (1.1, 1.4), (0.60, 0.75), (0.10, 0.14), ears=("pointed",), slit=True,
    ),
    "rabbit": _species(
        (0.34, 0.44), (0.22, 0.27), (0.18, 0.24), (0.055, 0.07), (0.26, 0.31), (0.24, 0.27), (0.06, 0.16),
        (0.42, 0.50), (0.48, 0.58), (1.4, 1.9), (0.10, 0.14), (0.09, 0.12), ears=("long",), dark=True,
    ),
    "hamster": _species(
        (0.26, 0.34), (0.24, 0.30), (0.12, 0.16), (0.05, 0.06), (0.22, 0.27), (0.26, 0.30), (0.05, 0.12),
        (0.36, 0.44), (0.56, 0.70), (0.55, 0.75), (0.05, 0.07), (0.04, 0.05), ears=("round",), dark=True,
    ),
}  # fmt: skip
COLLARS = {"red": (190, 40, 40), "blue": (50, 80, 180), "green": (40, 130, 70), "yellow": (220, 180, 50)}
_POSES = ("standing", "walking", "sitting", "lying")
_SCALES = {"cat": 0.95, "dog": 1.0, "fox": 1.0, "rabbit": 1.1, "hamster": 1.05}  # in a group
_SHORT = 0.25  # legs on which an animal that stands looks as if it lay
_WHOLE = 0.7  # share of an animal that must be visible for its pose to be named
_MARKED, _VISIBLE = 0.04, 0.05  # light by which a mark differs from its coat, and the share of the skin that shows it
_BAND = 0.012  # share of the skin that a collar must take to be named
_REIDENTIFIED = 2  # further images of each training identity, to be identified among the training identities


@dataclass(frozen=True)
class Pet:
    """One individual: its body, its coat, and the words for what its family shares."""

    body: Body
    coat: Coat
    rest: Figure
    attributes: dict[str, str]


@dataclass(frozen=True)
class Pets(World):
    """Pets in look-alike families: members share species, build, colours and kind of pattern.

    They differ in where patches, stripes, spots, socks, blaze and tail tip lie, and a little in shade and
    build. Written in the layout of PetFace, with its pairs to verify and its images to re-identify.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity; those of training have two more, to be re-identified.
        size: height and width of an image in pixels.
        difficulty: how alike the members of a family are, from 0 (as different as strangers of the same breed
            and pattern) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    NAME: ClassVar[str] = "pets"
    VERSION: ClassVar[int] = 3
    READER: ClassVar[str] = "petface"

    def kind(self, family: int) -> str:
        """The species of a family; they take turns, so every world has about as many of each."""
        return list(SPECIES)[(family + self.seed) % len(SPECIES)]

    def views_of(self, identity: int) -> int:
        return self.views + _REIDENTIFIED * (self.split_of(identity) == "train")

    def path_of(self, identity: int, view: int) -> str:
        """``images/<species>/<number>/<view>.png``; the number counts from 0 within the world, not the species."""
        return f"images/{self.kind(identity // self.members)}/{identity:06d}/{view:02d}.png"

    def finish(self, root: Path, rows: list[dict[str, str]]) -> None:
        """Writes the lists of PetFace for each species."""
        for species in sorted({row["species"] for row in rows}):
            own = [row for row in rows if row["species"] == species]
            of = {split: [row for row in own if row["split"] == split] for split in ("train", "val", "test")}
            known = {row["path"] for row in of["train"] if int(Path(row["path"]).stem) < self.views}
            labels = {name: n for n, name in enumerate(sorted({row["identity"] for row in of["train"]}))}
            lists: dict[str, list[list[Any]]] = {
                "train.csv": [[*_file(row), labels[row["identity"]]] for row in of["train"] if row["path"] in known],
                "reidentification.csv": [
                    [*_file(row), labels[row["identity"]]] for row in of["train"] if row["path"] not in known
                ],
                "val.txt": [_file(row) for row in of["val"]],
                "test.txt": [_file(row) for row in of["test"]],
                "verification.csv": _pairs(of["test"], stream(self.seed, 4)),
            }
            heads = {"verification.csv": ["filename1", "filename2", "label"]}
            (root / "split" / species).mkdir(parents=True, exist_ok=True)
            for name, lines in lists.items():
                with (root / "split" / species / name).open("w", newline="") as file:
                    table = csv.writer(file, lineterminator="\n")
                    if name.endswith(".csv"):
                        table.writerow(heads.get(name, ["filename", "label"]))
                    table.writerows(lines)

    def pet(self, identity: int) -> Pet:
        """The individual itself, whatever the view."""
        return _pet(self, identity)

    def subject(self, identity: int, rng: np.random.Generator) -> "PlacedPet":
        """One pet in a random pose, to be put into a setting with others."""
        azimuth = float(rng.triangular(-1.4, 0, 1.4))
        collar = list(COLLARS)[rng.integers(len(COLLARS))] if rng.uniform() < 0.3 else "none"
        return PlacedPet(self.pet(identity), _pose(rng, azimuth), azimuth, collar)

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one pet; depends on nothing but the fields and the two numbers.

        Raises:
            IndexError: there is no such identity or view.
        """
        self.check(identity, view)
        return _draw(self.pet(identity), stream(self.seed, 3, *divmod(identity, self.members), view), self.size)


class PlacedPet(Subject[Hits]):
    """A pet in a pose.

    Args:
        azimuth: side from which the camera sees it, in radians.
        collar: colour of its collar, or ``none``.
    """

    def __init__(self, pet: Pet, pose: Pose, azimuth: float, collar: str) -> None:
        self.pet, self.pose, self.azimuth, self.collar = pet, pose, azimuth, collar
        self.figure = pose_body(pet.body, pose)
        self.solids, self.scale = self.figure.solids, _SCALES[pet.attributes["species"]]

    def corners(self) -> Floats:
        return self.solids.corners()

    def meet(self, camera: Camera, rays: Floats) -> Hits:
        return trace(self.solids, camera.origin, rays, _BLEND)

    def shine(self, met: Hits, shown: Mask, setting: Setting) -> tuple[Floats, dict[str, str]]:
        pet = self.pet
        skin = Skin.under(met, pet.rest, pet.body)
        colour, gloss = paint_coat(pet.coat, skin, pet.body)
        unmarked, _ = paint_coat(replace(pet.coat, mark=pet.coat.base, third=pet.coat.base), skin, pet.body)
        marked = np.abs(colour - unmarked).max(0) > _MARKED
        words = {"species": pet.attributes["species"]}
        whole = bool(shown.mean() > _WHOLE)
        if whole and _shows_pose(self.pose, pet.body):
            words["pose"] = self.pose.kind
        if marked[shown].mean() > _VISIBLE:
            words |= {"coat": pet.attributes["coat"], "pattern": pet.attributes["pattern"]}
        if whole and abs(self.azimuth) < 0.35:
            words["facing"] = "camera"
        elif whole and abs(self.azimuth) > 0.75:
            words["facing"] = "left" if self.azimuth > 0 else "right"  # as seen in the image
        if self.collar != "none":
            band = _collar_on(skin, pet)
            colour = mix(colour, linear(*COLLARS[self.collar]), band)
            if band[shown].mean() > _BAND:
                words["collar"] = self.collar
        return _lit(pet, self.figure, met, setting, colour, gloss), words


def _shows_pose(pose: Pose, body: Body) -> bool:
    """Whether a picture shows which pose it is."""
    if pose.kind == "walking" and abs(np.sin(pose.stride)) < 0.5:
        return False  # the legs pass each other
    return pose.kind == "sitting" or body.leg > _SHORT


def _file(row: dict[str, str]) -> list[str]:
    """An image's name as PetFace's lists give it, relative to ``images``."""
    return [row["path"].removeprefix("images/")]


def _pairs(rows: list[dict[str, str]], rng: np.random.Generator) -> list[list[str]]:
    """As many pairs of one pet as of two, half of these from one family: file, file, 1 or 0."""
    pairs: list[list[str]] = []
    for row in rows:
        same = [other for other in rows if other["identity"] == row["identity"] and other is not row]
        kin = [r for r in rows if r["family"] == row["family"] and r["identity"] != row["identity"]]
        strangers = [other for other in rows if other["identity"] != row["identity"]]
        for label, others in (("1", same), ("0", kin if kin and len(pairs) % 4 < 2 else strangers)):
            if others:
                pairs.append([*_file(row), *_file(others[rng.integers(len(others))]), label])
    return pairs


@lru_cache(maxsize=8)
def _pet(world: Pets, identity: int) -> Pet:
    family, member = divmod(identity, world.members)
    shared, own = stream(world.seed, 2, family), stream(world.seed, 2, family, member + 1)
    species = SPECIES[world.kind(family)]
    pattern = PATTERNS[shared.integers(len(PATTERNS))]
    name = list(COATS[pattern])[shared.integers(len(COATS[pattern]))]
    ears = species.ears[shared.integers(len(species.ears))]
    eye = 4 if species.dark_eyes else int(shared.integers(4))
    numbers = {}
    for part, (low, high) in species.ranges.items():
        common, wobble = shared.uniform(low, high), own.uniform(-0.07, 0.07)
        numbers[part] = float(common * (1 + wobble * world.own_share))
    body = Body(ear_kind=ears, **numbers)
    layout = Layout.draw(shared).mixed(Layout.draw(own), world.own_share, own)
    coat = Coat.of(pattern, name, layout, eye, species.slit, edge_seed=int(shared.integers(2**31)))
    attributes = {"species": world.kind(family), "coat": name, "pattern": pattern}
    return Pet(body, coat, pose_body(body), attributes)


def _pose(rng: np.random.Generator, azimuth: float) -> Pose:
    """A random pose in which the animal more or less looks towards a camera at ``azimuth``."""
    return Pose(
        kind=_POSES[rng.integers(len(_POSES))],
        yaw=float(np.clip(azimuth * rng.uniform(0.3, 0.9) + rng.normal(0, 0.2), -0.9, 0.9)),
        nod=float(rng.normal(0.0, 0.16)),
        tilt=float(rng.normal(0.0, 0.14)),
        stride=float(rng.uniform(0, 2 * np.pi)),
        lift=float(rng.uniform(-0.4, 0.9)),
        sway=float(rng.uniform(-0.9, 0.9)),
        curl=float(rng.uniform(-0.3, 1.3)),
        ears=float(rng.uniform(-0.3, 0.6)),
    )


def _draw(pet: Pet, rng: np.random.Generator, size: int) -> Sample:
    azimuth = float(rng.triangular(-1.3, 0, 1.3))  # from the front and the sides, where the marks are
    pose = _pose(rng, azimuth)
    figure = pose_body(pet.body, pose)
    setting = Setting.draw(figure.solids, azimuth, rng)
    collar = list(COLLARS)[rng.integers(len(COLLARS))] if rng.uniform() < 0.3 else "none"
    image, mask, prop = setting.picture(
        figure.solids, _BLEND, lambda hits: _shine(pet, figure, hits, setting, collar), size, rng
    )
    attributes = pet.attributes | {
        "background": setting.background,
        "light": setting.lamp,
        "pose": pose.kind,
        "side": "front" if abs(azimuth) < 0.4 else "left" if azimuth > 0 else "right",  # as seen in the image
        "collar": collar,
        "prop": prop,
    }
    return Sample(image, mask, box_of(mask), attributes)


def _shine(pet: Pet, figure: Figure, hits: Hits, setting: Setting, collar: str) -> Floats:
    """Light (3, H) from the pet's skin."""
    skin = Skin.under(hits, pet.rest, pet.body)
    colour, gloss = paint_coat(pet.coat, skin, pet.body)
    if collar != "none":
        colour = mix(colour, linear(*COLLARS[collar]), _collar_on(skin, pet))
    return _lit(pet, figure, hits, setting, colour, gloss)


def _lit(pet: Pet, figure: Figure, hits: Hits, setting: Setting, colour: Floats, gloss: Floats) -> Floats:
    """Light (3, H) from skin of ``colour`` (3, H) and ``gloss`` (H,)."""
    shadow = shade_of(
        figure.part("trunk", "head"),
        hits.point + 0.03 * hits.normal,
        setting.light.direction,
        setting.light.softness,
        skip=0.3,
    )
    openness = 0.55 + 0.45 * np.clip(hits.point[2] / (pet.body.leg + pet.body.girth), 0, 1)
    lit = setting.light.on(hits.normal, shadow, openness)
    view = setting.camera.origin[:, None] - hits.point
    view /= np.sqrt((view * view).sum(0))
    facing = np.clip((view * hits.normal).sum(0), 0, 1)
    rim = (1 - facing) ** 3 * 0.25 * (1 - gloss)
    return colour * lit + setting.light.sky[:, None] * rim * (0.3 + 0.7 * colour)


def _collar_on(skin: Skin, pet: Pet) -> Floats:
    """Cover (N,) of a collar around the neck."""
    body, head = pet.body, pet.rest.head_centre
    neck = np.array([head[0] - body.trunk / 2, head[2] - body.leg - body.girth * 0.25], np.float32)
    length = np.sqrt((neck * neck).sum())
    ahead, up = (skin.trunk[0] - 1) * np.float32(body.trunk), skin.trunk[2] * np.float32(body.girth)
    along = (ahead * neck[0] + up * neck[1]) / length
    band = step(0.034, 0.024, np.abs(along - 0.42 * length))
    return band * step(0.6, 0.3, skin.head) * step(0.5, 0.2, skin.legs)
