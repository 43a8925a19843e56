"""One module per published layout; a module's name is the reader's name, so a new layout is one new file here.

Each offers `read(root, val_share, test_share, seed, *, options...) -> IdentityIndex`, `fits(root) -> bool`, which looks
at names only, and `LAYOUT`, a picture of the layout in one line. A dataset's folder is accepted, and its parent.
"""

import inspect
import pkgutil
import types
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from zoo.data.index import IdentityIndex

#: the layout without a name of its own: it fits wherever folders hold images.
_GENERAL = "folder"


def list_readers() -> list[str]:
    """Names of all readers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


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
    return _module(name).read


def read_with(
    name: str | None, root: Path, split: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> IdentityIndex:
    """Read `root` with a reader by name, its options checked.

    Args:
        name: the reader; None for the one that fits.
        root: folder of the data set.
        split: `val_share`, `test_share`, `seed`.
        options: what else the reader takes.

    Raises:
        ValueError: no such reader, no such option, a value that an option cannot have, or the reader's own errors.
        FileNotFoundError: no such folder.
    """
    name = name if name is not None else choose_reader(root)
    read = find_reader(name)
    _check_options(name, read, options or {})
    return read(root, **(split or {}), **(options or {}))


def choose_reader(root: Path) -> str:
    """Name of the reader whose layout is found in `root`, else "folder".

    Raises:
        ValueError: more than one fits.
    """
    fitting = fitting_readers(root)
    if len(fitting) > 1:
        raise ValueError(f"{root} fits the readers {', '.join(fitting)}. Name the one that is meant.")
    return fitting[0] if fitting else _GENERAL


def fitting_readers(root: Path) -> list[str]:
    """Names of the readers whose published layout is found in `root`; "folder" only where no other is."""
    if not root.is_dir():
        return []
    published = [name for name in list_readers() if name != _GENERAL and _fits(name, root)]
    return published or ([_GENERAL] if _fits(_GENERAL, root) else [])


def refuse(reader: str, root: Path, reason: str = "") -> NoReturn:
    """Say which layout a reader expected, what is there instead, and which readers fit.

    Args:
        reader: name of the reader that cannot read `root`.
        root: the folder it was given.
        reason: what else to say, a sentence.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: any other case.
    """
    expected = f"The reader {reader} expects {_module(reader).LAYOUT}."
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"No folder {root}: it {what}. {expected} Check the path.")
    names = sorted(f"{child.name}/" if child.is_dir() else child.name for child in root.iterdir())
    found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
    others = [name for name in fitting_readers(root) if name != reader]
    remedy = f"Readers that fit: {', '.join(others)}." if others else "No other reader fits either: check the path."
    raise ValueError(" ".join(filter(None, (f"{root} cannot be read.", reason, expected, f"Found: {found}.", remedy))))


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")


def _fits(name: str, root: Path) -> bool:
    try:
        return _module(name).fits(root)
    except OSError:  # a folder that must not be listed
        return False


def _check_options(name: str, read: Callable[..., IdentityIndex], options: Mapping[str, Any]) -> None:
    hints = get_type_hints(read)
    parameters = inspect.signature(read).parameters.values()
    known = {p.name: hints[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            listed = f"Known: {', '.join(known)}." if known else "It has none."
            raise ValueError(f"Unknown option {option!r} of the reader {name}.{hint} {listed}")
        if not _is_a(value, known[option]):
            raise ValueError(
                f"Option {option} of the reader {name} cannot be {value!r}. Give {_in_words(known[option])}."
            )


def _is_a(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in get_args(hint))
    return isinstance(value, origin or hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
