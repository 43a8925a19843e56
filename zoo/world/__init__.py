"""The procedural world: images of particular persons, faces, pets and objects that are drawn, not downloaded."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.world.base import Sample, World
    from zoo.world.faces import Faces
    from zoo.world.objects import Objects
    from zoo.world.persons import Persons
    from zoo.world.pets import Pets
    from zoo.world.scenes import Scenes

_MODULES = {
    "Faces": "zoo.world.faces",
    "Objects": "zoo.world.objects",
    "Persons": "zoo.world.persons",
    "Pets": "zoo.world.pets",
    "Sample": "zoo.world.base",
    "Scenes": "zoo.world.scenes",
    "World": "zoo.world.base",
}

__all__ = ["Faces", "Objects", "Persons", "Pets", "Sample", "Scenes", "World"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Known: {', '.join(__all__)}.")
    return getattr(import_module(_MODULES[name]), name)
