"""One module per published layout. Each offers `read(root: Path, ...) -> IdentityIndex`; a module's name is the
reader's name, so a new layout is one new file here."""

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from zoo.data.index import IdentityIndex


def list_readers() -> list[str]:
    """Names of all readers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_reader(name: str) -> Callable[..., IdentityIndex]:
    """The `read` function of a reader.

    Raises:
        ValueError: no such reader.
    """
    known = list_readers()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown reader {name!r}.{hint} Known: {', '.join(known)}.")
    return import_module(f"{__name__}.{name}").read
