"""The procedural world: draws particular things, so that an expert can be trained without a download."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.world.base import Sample, World
    from zoo.world.pets import Pets

_HOMES = {"Pets": "zoo.world.pets", "Sample": "zoo.world.base", "World": "zoo.world.base"}

__all__ = ["Pets", "Sample", "World"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Known: {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)
