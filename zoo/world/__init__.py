"""The procedural world: draws particular things, so that an expert can be trained without a download."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.world.base import Sample, World
    from zoo.world.faces import Faces
    from zoo.world.objects import Objects
    from zoo.world.persons import Persons
    from zoo.world.pets import Pets
    from zoo.world.scenes import Scenes

_HOMES = {
    "Faces": "zoo.world.faces",
    "Objects": "zoo.world.objects",
    "Persons": "zoo.world.persons",
    "Pets": "zoo.world.pets",
    "Sample": "zoo.world.base",
    "Scenes": "zoo.world.scenes",
    "World": "zoo.world.base",
}

__all__ = ["Faces", "Objects", "Persons", "Pets", "Sample", "Scenes", "World"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Known: {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)
