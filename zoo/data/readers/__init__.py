"""The readers of published layouts, by name: one module each, so that a new layout is one new file in this package.

A reader is a subclass of `Reader` with the decorator `register`; one from outside of this package is used likewise.
"""

import pkgutil
import types
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from zoo.data.holdout import HoldOut
from zoo.data.index import IdentityIndex
from zoo.data.readers.base import READERS, Reader, choose_reader, fitting_readers, register

__all__ = [
    "Reader",
    "choose_reader",
    "find_reader",
    "fitting_readers",
    "list_readers",
    "read_with",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")  # registers its reader


def list_readers() -> list[str]:
    """Names of all readers."""
    return sorted(READERS)


def find_reader(name: str) -> type[Reader]:
    """A reader by its name.

    Raises:
        ValueError: no such reader.
    """
    if name not in READERS:
        near = get_close_matches(name, READERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown reader {name!r}.{hint} Known: {', '.join(list_readers())}.")
    return READERS[name]


def read_with(
    name: str | None,
    root: Path,
    hold_out: HoldOut = HoldOut(),  # noqa: B008  (frozen)
    options: Mapping[str, object] | None = None,
) -> IdentityIndex:
    """Read `root` with a reader by name, its options checked.

    Args:
        name: the reader; None for the one that fits.
        root: folder of the dataset, or the parent of it.
        hold_out: identities to validate and test on, where they are not published.
        options: of the reader.

    Raises:
        ValueError: no such reader, no such option, a value that an option cannot have, or the reader's own errors.
        FileNotFoundError: no such folder.
    """
    reader = find_reader(name if name is not None else choose_reader(root))
    _check_options(reader, options or {})
    return reader(**(options or {})).read(root, hold_out)


def _check_options(reader: type[Reader], options: Mapping[str, object]) -> None:
    hints = get_type_hints(reader)
    known = {field.name: hints[field.name] for field in fields(reader)}
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            listed = f"Known: {', '.join(known)}." if known else "It has none."
            raise ValueError(f"Unknown option {option!r} of the reader {reader.name}.{hint} {listed}")
        if not _is_a(value, known[option]):
            raise ValueError(
                f"Option {option} of the reader {reader.name} cannot be {value!r}. Give {_in_words(known[option])}."
            )


def _is_a(value: object, hint: object) -> bool:
    """Whether a value is of a type, of which a generic's own arguments are not looked at."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in get_args(hint))
    kind = origin or hint
    return isinstance(kind, type) and isinstance(value, kind)


def _in_words(hint: object) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
