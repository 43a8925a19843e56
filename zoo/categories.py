"""Categories: the kinds of instances that experts distinguish. A new kind is one entry here, or one call of
`register_category` in your own code."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.world import World

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """How an instance is cut out of a larger image.

    Args:
        labels: what detectors call it; () takes whatever is detected.
        margin: added on each side of a box, as a share of that side's length.
    """

    labels: tuple[str, ...] = ()
    margin: float = 0.0

    def box(self, detections: list[tuple[str, Box]], width: int, height: int) -> Box:
        """The largest detection that fits, with its margin, cut at the image's border; else the whole image.

        Args:
            detections: label and x, y, w, h in pixels.
            width, height: of the image, in pixels.

        Returns:
            x, y, w, h in pixels.
        """
        fitting = [box for label, box in detections if not self.labels or label in self.labels]
        if not fitting:
            return 0.0, 0.0, float(width), float(height)
        x, y, w, h = max(fitting, key=lambda box: box[2] * box[3])
        left, top = max(0.0, x - self.margin * w), max(0.0, y - self.margin * h)
        right, bottom = min(float(width), x + w + self.margin * w), min(float(height), y + h + self.margin * h)
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Category:
    """A kind of instance.

    Args:
        noun: what sentences call one of them.
        expert: card of the expert that is taken where none is named.
        crop: how one is cut out of an image.
        world: makes the default procedural world that draws such instances; None where there is none.
    """

    noun: str
    expert: str
    crop: Crop = Crop()
    world: "Callable[[], World] | None" = None


# Worlds are imported when they are asked for, so that categories stay light.


def _persons() -> "World":
    from zoo.world import Persons

    return Persons()


def _faces() -> "World":
    from zoo.world import Faces

    return Faces()


def _pets() -> "World":
    from zoo.world import Pets

    return Pets()


def _objects() -> "World":
    from zoo.world import Objects

    return Objects()


CATEGORIES: dict[str, Category] = {
    "person": Category("person", "person_mobilenetv3s050.world", Crop(("person",)), _persons),
    "face": Category("face", "face_mobilenetv3s050.world", Crop(("face",), margin=0.2), _faces),
    # COCO's animals that people keep, and what finer detectors call the rest.
    "pet": Category(
        "pet",
        "pet_mobilenetv3s050.world",
        Crop(("cat", "dog", "bird", "horse", "rabbit", "hamster", "fox"), margin=0.05),
        _pets,
    ),
    "object": Category("product", "object_mobilenetv3s050.world", Crop(margin=0.05), _objects),
}


def find_category(name: str) -> Category:
    """The category of a name.

    Raises:
        ValueError: no such category.
    """
    if name not in CATEGORIES:
        near = get_close_matches(name, CATEGORIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown category {name!r}.{hint} Known: {', '.join(CATEGORIES)}. "
            "A new one is an entry in zoo/categories.py, or one call of `register_category` in your own code."
        )
    return CATEGORIES[name]


def register_category(name: str, category: Category) -> None:
    """Add a kind of instance, such as vehicle or landmark.

    Raises:
        ValueError: the name stands for another one already.
    """
    if CATEGORIES.setdefault(name, category) != category:
        raise ValueError(f"Category {name!r} is there already: {CATEGORIES[name]}. Choose another name.")
