"""The world of scenes: pictures of several pets, objects and persons, with boxes, attributes and sentences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.world.base import box_of
from zoo.world.objects import Objects
from zoo.world.persons import Persons
from zoo.world.pets import SPECIES, Pets
from zoo.world.render.geometry import Camera, Floats
from zoo.world.render.scenery import BACKGROUNDS, Light, Surroundings
from zoo.world.render.setting import Placed, Setting, Spot, Subject
from zoo.world.render.texture import stream
from zoo.world.rendered import SPLITS, RenderedDataset
from zoo.world.sentences import Observation, Sentence, captions, phrase, sentences
from zoo.world.things.crafts import CRAFTS

LIGHTS = ("noon", "lamp", "shade", "evening")
CATEGORIES = {
    **dict.fromkeys(SPECIES, "pet"), **dict.fromkeys(CRAFTS, "object"), "person": "person",
}  # fmt: skip
_COUNTS = (0.15, 0.4, 0.3, 0.15)  # odds of 1, 2, 3 and 4 instances
_SHARES = {"pets": 0.5, "objects": 0.35, "persons": 0.15}  # odds that an instance is one of them
_KIN = 0.25  # odds that an instance is a look-alike of the one before
_BEHIND = 0.35  # odds that it stands before or behind another one and not beside
_RISE, _FAR = (0.22, 0.55), 7.0  # the camera's elevation in radians and its distance
_TRIES = 25
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Instance:
    """A person, pet or object in a scene.

    Args:
        identity: its name in the world that it comes from, e.g. ``cat_012_3``.
        mask: its visible pixels, (H, W) bool.
        observed: its kind, what the picture shows of it, the box of its mask, and its distance.
    """

    identity: str
    mask: NDArray[np.bool_]
    observed: Observation


@dataclass(frozen=True)
class Scene:
    """A picture of several instances.

    Args:
        image: (H, W, 3) uint8.
        instances: from left to right.
        attributes: background and light.
        captions: sentences about the whole picture.
        sentences: sentences about single instances and about pairs.
    """

    image: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    attributes: dict[str, str]
    captions: tuple[str, ...]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Scenes(RenderedDataset):
    """Pictures of one to four pets, household objects and persons, in the layout of COCO.

    The individuals are those of `Pets`, `Objects` and `Persons` with the same fields, under the same names. A scene
    of the test split shows none but their test identities, and so on, so an expert that was trained on one of these
    worlds was never trained on an identity of a test scene.

    Args:
        scenes: number of scenes in all splits.
        size: height and width of an image in pixels.
        families: number of look-alike families of pets, of objects and of persons.
        members: identities in each family.
        difficulty: how alike the members of a family are, from 0 to 1.
        seed: another seed is another world.
        val_share: share of the scenes, and of the families, held out for validation.
        test_share: share of the scenes, and of the families, held out for testing.
    """

    scenes: int = 3000
    size: int = 112
    families: int = 80
    members: int = 5
    difficulty: float = 0.5
    seed: int = 0
    val_share: float = 0.1
    test_share: float = 0.25

    NAME: ClassVar[str] = "scenes"
    VERSION: ClassVar[int] = 1
    UNITS: ClassVar[str] = "scenes"

    def __post_init__(self) -> None:
        if not isinstance(self.scenes, int) or self.scenes < 1:
            raise ValueError(f"scenes must be at least 1, got {self.scenes!r}. Give a larger whole number.")
        for world in self.worlds.values():  # they refuse invalid fields
            for name in ("difficulty", "val_share", "test_share"):
                object.__setattr__(self, name, getattr(world, name))
        held_out = [split for split in ("val", "test") if getattr(self, f"{split}_share") > 0]
        missing = {"train", *held_out} - {self.split_of(scene) for scene in range(self.scenes)}
        if missing:
            raise ValueError(f"{self.scenes} scenes leave none for {', '.join(sorted(missing))}. Make more scenes.")

    @property
    def units(self) -> int:
        return self.scenes

    def name_of(self, scene: int) -> str:
        return f"{scene:06d}"

    def views_of(self, scene: int) -> int:
        return 1

    def split_of(self, scene: int) -> str:
        """``train``, ``val`` or ``test``; does not depend on the number of scenes."""
        at = (scene + 1) * _GOLDEN % 1
        if at < self.test_share:
            return "test"
        return "val" if at < self.test_share + self.val_share else "train"

    def path_of(self, scene: int, view: int) -> str:
        """Path of an image, e.g. ``train/000012.png``."""
        return f"{self.split_of(scene)}/{self.name_of(scene)}.png"

    @cached_property
    def worlds(self) -> dict[str, Pets | Objects | Persons]:
        """The worlds that the individuals come from, by name."""
        return {
            kind.NAME: kind(
                families=self.families,
                members=self.members,
                size=self.size,
                difficulty=self.difficulty,
                seed=self.seed,
                val_share=self.val_share,
                test_share=self.test_share,
            )
            for kind in (Pets, Objects, Persons)
        }

    @cached_property
    def _families(self) -> dict[tuple[str, str], list[int]]:
        """Families by split and world."""
        families: dict[tuple[str, str], list[int]] = {}
        for name, world in self.worlds.items():
            for family in range(self.families):
                families.setdefault((world.split_of(family * self.members), name), []).append(family)
        return families

    def render(self, scene: int) -> Scene:
        """Draws one scene; depends on nothing but the fields and its number.

        Raises:
            IndexError: there is no such scene.
        """
        if not 0 <= scene < self.scenes:
            raise IndexError(f"scene must be from 0 to {self.scenes - 1}, got {scene}. Make more scenes.")
        rng = stream(self.seed, 7, scene)
        chosen = self._choose(self.split_of(scene), rng)
        subjects = [self.worlds[world].subject(identity, rng) for world, identity in chosen]
        camera = Camera.orbit(np.zeros(3), 0.0, rng.uniform(*_RISE), _FAR, rng.normal(0, 0.03))
        placed = _arrange(subjects, camera, rng)
        setting = _setting_for(placed, camera, rng)
        group = setting.group(placed, self.size, rng)
        instances = []
        for k, ((world, identity), (_, spot), words) in enumerate(zip(chosen, placed, group.words, strict=False)):
            mask = group.owner == k
            if words is not None and mask.any():
                away = setting.camera.origin[:2] - np.array(spot.place)
                kind = words.get("species") or words["category"]
                observed = Observation(kind, words, box_of(mask), float(np.sqrt((away * away).sum())))
                instances.append(Instance(self.worlds[world].name_of(identity), mask, observed))
        instances.sort(key=lambda one: one.observed.middle)
        observations = [one.observed for one in instances]
        return Scene(
            image=group.image,
            instances=tuple(instances),
            attributes={"background": setting.background, "light": setting.lamp},
            captions=captions(observations, setting.background, self.size),
            sentences=sentences(observations, self.size),
        )

    def _choose(self, split: str, rng: np.random.Generator) -> list[tuple[str, int]]:
        """World and identity of every instance of a scene, none of them twice."""
        chosen: list[tuple[str, int]] = []
        for k in range(1 + int(rng.choice(len(_COUNTS), p=_COUNTS))):
            world = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
            families = self._families[split, world]
            family = families[rng.integers(len(families))]
            if k and rng.uniform() < _KIN:
                world, family = chosen[-1][0], chosen[-1][1] // self.members
            one = (world, family * self.members + int(rng.integers(self.members)))
            if one not in chosen:
                chosen.append(one)
        return chosen

    def draw(self, scene: int, view: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """An image and what COCO's lists have on it."""
        drawn = self.render(scene)
        instances = [
            {
                "bbox": list(one.observed.box),
                "area": int(one.mask.sum()),
                "segmentation": run_lengths(one.mask),
                "category": one.observed.kind,
                "identity": one.identity,
                "attributes": one.observed.attributes,
                "phrase": phrase(one.observed),
                "distance": round(one.observed.distance, 3),
            }
            for one in drawn.instances
        ]
        return drawn.image, {
            "scene": scene,
            "attributes": drawn.attributes,
            "instances": instances,
            "captions": list(drawn.captions),
            "sentences": [[sentence.text, list(sentence.about)] for sentence in drawn.sentences],
        }

    def write_lists(self, root: Path, records: list[dict[str, Any]]) -> None:
        """Writes ``annotations/{instances,captions,sentences}_{split}.json``.

        Captions are about a whole picture. Sentences have the form of captions and are about single instances and
        pairs; their key ``about`` lists the ids of these annotations.
        """
        (root / "annotations").mkdir(exist_ok=True)
        for split in SPLITS:
            own = [record for record in records if record["split"] == split]
            for name, table in _coco(own, self.size).items():
                (root / "annotations" / f"{name}_{split}.json").write_text(json.dumps(table) + "\n")


def _coco(records: Sequence[dict[str, Any]], size: int) -> dict[str, dict[str, Any]]:
    """The lists of COCO (Lin et al., ECCV 2014) of a split, by name."""
    number = {name: k + 1 for k, name in enumerate(CATEGORIES)}
    categories = [{"id": number[name], "name": name, "supercategory": above} for name, above in CATEGORIES.items()]
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    texts: dict[str, list[dict[str, Any]]] = {"captions": [], "sentences": []}
    for record in records:
        image, first = record["scene"], len(boxes) + 1
        name = Path(record["path"]).name
        images.append({"id": image, "file_name": name, "width": size, "height": size} | record["attributes"])
        for one in record["instances"]:
            kept = {name: one[name] for name in one if name != "category"}
            ids = {"id": len(boxes) + 1, "image_id": image, "category_id": number[one["category"]], "iscrowd": 0}
            boxes.append(ids | kept)
        for text in record["captions"]:
            texts["captions"].append({"id": len(texts["captions"]) + 1, "image_id": image, "caption": text})
        for text, about in record["sentences"]:
            row = {"id": len(texts["sentences"]) + 1, "image_id": image, "caption": text}
            texts["sentences"].append(row | {"about": [first + k for k in about]})
    info = {"description": "Instance Zoo, drawn scenes"}
    tables: dict[str, dict[str, Any]] = {
        "instances": {"info": info, "images": images, "annotations": boxes, "categories": categories}
    }
    return tables | {name: {"info": info, "images": images, "annotations": rows} for name, rows in texts.items()}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask (H, W): column by column, the first run is of zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    counts = np.diff(bounds).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def _arrange(
    subjects: Sequence[Subject[Any]], camera: Camera, rng: np.random.Generator
) -> list[tuple[Subject[Any], Spot]]:
    """Spots about the origin where the subjects do not touch; the first of them, as many as there is space for."""
    spots: list[Spot] = []
    held: list[tuple[Floats, Floats]] = []  # corners of upright rectangles on the floor
    for subject in subjects:
        for _ in range(_TRIES):
            anchor = held[rng.integers(len(held))] if held else None
            spot, low, high = _propose(subject, camera, anchor, rng)
            if all((low >= there[1] + 0.03).any() or (high <= there[0] - 0.03).any() for there in held):
                spots.append(spot)
                held.append((low, high))
                break
        else:
            break
    x, y = (np.min([low for low, _ in held], 0) + np.max([high for _, high in held], 0)) / 2
    moved = [replace(spot, place=(spot.place[0] - float(x), spot.place[1] - float(y))) for spot in spots]
    return list(zip(subjects, moved, strict=False))


def _propose(
    subject: Subject[Any], camera: Camera, anchor: tuple[Floats, Floats] | None, rng: np.random.Generator
) -> tuple[Spot, Floats, Floats]:
    """A spot beside, before or behind the rectangle ``anchor``, and the corners (2,) of its own rectangle."""
    bearing = float(np.arctan2(camera.origin[1], camera.origin[0]))
    spot = Spot((0.0, 0.0), bearing - subject.azimuth, subject.scale * float(rng.uniform(0.9, 1.1)))
    flat = spot.to_setting(subject.corners())[:, :2]
    low, high = flat.min(0), flat.max(0)
    if anchor is None:
        return spot, low, high
    reach = (high - low + anchor[1] - anchor[0]) / 2
    if rng.uniform() < _BEHIND:
        shift = np.array([reach[0] + rng.uniform(0.05, 0.5), reach[1] * rng.uniform(0.2, 0.8)])
    else:
        shift = np.array([rng.uniform(0, 0.5), reach[1] * rng.uniform(1.02, 1.3)])
    shift = shift * rng.choice([-1, 1], 2) + (anchor[0] + anchor[1]) / 2 - (low + high) / 2
    return replace(spot, place=(float(shift[0]), float(shift[1]))), low + shift, high + shift


def _setting_for(placed: Sequence[Placed], camera: Camera, rng: np.random.Generator) -> Setting:
    """A setting whose camera has all subjects in view and whose wall stands behind them."""
    corners = np.concatenate([spot.to_setting(subject.corners()) for subject, spot in placed])
    flat = camera.project(corners)
    low, high = flat.min(0), flat.max(0)
    fill = rng.uniform(0.85, 0.97) if len(placed) > 1 else rng.uniform(0.5, 0.9)
    zoom = float(2 * fill / (high - low).max())
    slack = np.maximum(1 - (high - low) / 2 * zoom, 0) * rng.uniform(-0.9, 0.9, 2)
    shift = slack - (low + high) / 2 * zoom
    camera = Camera(camera.origin, camera.axes, zoom, (float(shift[0]), float(shift[1])))
    background, lamp = BACKGROUNDS[rng.integers(len(BACKGROUNDS))], LIGHTS[rng.integers(len(LIGHTS))]
    light, surroundings = Light.draw(lamp, 0.0, rng), Surroundings.draw(background, 0.0, rng)
    facing = surroundings.facing * 0.6
    behind = -(corners[:, 0] * np.cos(facing) + corners[:, 1] * np.sin(facing)).min()
    surroundings = replace(surroundings, facing=facing, far=float(behind + rng.uniform(0.2, 1.2)))
    return Setting(camera, background, lamp, light, surroundings, ())
