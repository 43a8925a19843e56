"""From the class that a card names to the class itself: the only place that imports by name."""

import re
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zoo.cards.cardfile import CardError

if TYPE_CHECKING:
    from zoo.module import ZooModule

PACKAGES = ("experts", "fusion", "recipes")

C = TypeVar("C", bound=type)
_registered: dict[str, type] = {}


def check_packages(*packages: str) -> None:
    """Make sure that `experts`, `fusion` and `recipes`, everyday names, are the siblings of this `zoo`.

    Args:
        packages: the ones to look at; all when none is given.

    Raises:
        ImportError: another package or module of that name comes first, or the sibling is missing.
    """
    home = Path(__file__).resolve().parent.parent.parent
    for package in packages or PACKAGES:
        own, found = home / package, _import_path(package)
        if found is None:
            raise ImportError(f"Instance Zoo's `{package}` is missing: nothing at {own}. Reinstall it.")
        if found != own:
            raise ImportError(
                f"`import {package}` finds {found}, which hides the package of Instance Zoo at {own}. Rename "
                f"{found}, or start from another folder and leave its parent off PYTHONPATH."
            )


def _import_path(name: str) -> Path | None:
    """Where `import name` leads, without importing it: the folder of a package, the file of a module."""
    module = sys.modules.get(name)
    spec = find_spec(name) if module is None else None
    if module is not None:
        places = [*getattr(module, "__path__", [])] or [getattr(module, "__file__", None)]
    else:
        places = [*(spec.submodule_search_locations or [])] or [spec.origin] if spec else []
    return Path(places[0]).resolve() if places and places[0] else None


def register(cls: C) -> C:
    """Let cards name a class of your own; usable as a decorator. Loading such a card needs it, too.

    Args:
        cls: a subclass of ZooModule.

    Raises:
        TypeError: not a subclass of ZooModule.
    """
    from zoo.module import ZooModule

    if not (isinstance(cls, type) and issubclass(cls, ZooModule)):
        raise TypeError(f"register({cls!r}): only classes can be registered that derive from zoo.ZooModule.")
    _registered[class_path_of(cls)] = cls
    return cls


def resolve(class_path: str) -> "type[ZooModule]":
    """The class that a card names: one of `zoo`, `experts` or `fusion`, or one that was registered.

    Args:
        class_path: module and class, such as zoo.backbones.TimmEncoder.

    Raises:
        CardError: anything else. A card from a hub can thus never run other code.
        ImportError: another package hides `experts` or `fusion`.
    """
    if class_path in _registered:
        return _registered[class_path]
    package = class_path.split(".")[0]
    if package not in ("zoo", "experts", "fusion") or not re.fullmatch(r"\w+(\.[A-Za-z]\w*)+", class_path):
        raise CardError(
            f"Class {class_path!r} is refused: a card may name classes of zoo, experts and fusion only. If "
            "the class is your own, derive it from zoo.ZooModule and call zoo.register(cls) before "
            "loading."
        )
    if package != "zoo":
        check_packages(package)
    from zoo.module import ZooModule

    module_name, _, name = class_path.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            missing = f"Class {class_path!r} needs {error.name!r}, which is not installed. Install it."
            raise CardError(missing) from error
        raise CardError(
            f"Class {class_path!r} does not exist: there is no module {error.name!r}. Correct the class in "
            "the card, or update instance-zoo when the card is newer."
        ) from error
    offered = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, ZooModule) and value.__module__ == module_name
    }
    if name not in offered:
        near = get_close_matches(name, offered, n=1)
        known = ", ".join(offered) or "none"
        hint = f"Did you mean {module_name}.{near[0]}?" if near else f"It defines {known}."
        raise CardError(
            f"Class {class_path!r} is refused: {module_name} defines no subclass of ZooModule called {name!r}. {hint}"
        )
    return offered[name]


def class_path_of(cls: type) -> str:
    """Module and name, as `resolve` takes them."""
    return f"{cls.__module__}.{cls.__qualname__}"
