"""The files of a dataset: listed in sorted order, named relative to one folder, with what is left out counted."""

import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from zoo.data.images import EXTENSIONS
from zoo.distributed import rank

log = logging.getLogger(__name__)


class Files:
    """The files under a root. One listing a folder answers which files are there.

    Args:
        root: folder that all paths are relative to.
        place: the dataset's own folder or table, which warnings name; by default the root.
    """

    def __init__(self, root: Path, place: Path | None = None) -> None:
        self.root, self.place = root, place if place is not None else root
        self.listed: set[str] = set()  # paths that the dataset's lists have named so far
        self._skipped: dict[str, list[str]] = {}
        self._names_in: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names_in:
            where = self.root / folder
            self._names_in[folder] = frozenset(os.listdir(where)) if where.is_dir() else frozenset()
        return name in self._names_in[folder]

    def images(self, folder: Path) -> list[tuple[str, str]]:
        """(path, file name) of the images directly in a folder, sorted; none where there is no such folder."""
        prefix = self.prefix(folder)
        return [(prefix + name, name) for name in image_names(folder)]

    def images_below(self, folder: Path) -> list[str]:
        """Paths of the images in a folder and below it, hidden folders left out, in sorted order."""
        found = []
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = _writable(Path(parent), (name for name in folders if not name.startswith(".")))
            prefix = self.prefix(Path(parent))
            found += [prefix + name for name in _writable(Path(parent), filter(is_image, files))]
        return found

    def prefix(self, folder: Path) -> str:
        """What to put before a name in `folder` to have its posix path relative to the root."""
        relative = folder.relative_to(self.root).as_posix()
        return "" if relative == "." else f"{relative}/"

    def skip(self, reason: str, name: object) -> None:
        """Count one that is left out; `reason` is a noun phrase in the plural, such as "images without a camera"."""
        self._skipped.setdefault(reason, []).append(str(name))

    def report_skipped(self) -> None:
        """Warn of what was left out, one line a reason, on one rank."""
        for reason, names in self._skipped.items():
            if rank() == 0:
                log.warning("%s: skipped %d %s, such as %s", self.place, len(names), reason, ", ".join(names[:3]))
        self._skipped.clear()


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [folder / name for name in _writable(folder, names)]


def image_names(folder: Path) -> list[str]:
    """Names of the images directly in a folder, sorted; none where there is no such folder."""
    return _writable(folder, filter(is_image, os.listdir(folder))) if folder.is_dir() else []


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and dot + ending.lower() in EXTENSIONS


def lines_of(table: Path) -> list[str]:
    """The lines of a text file, stripped, empty ones left out.

    Raises:
        ValueError: the file is not UTF-8.
    """
    return [line.strip() for line in text_of(table).splitlines() if line.strip()]


def text_of(table: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return table.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8: {error}. Convert it, or get it again.") from error


def _writable(folder: Path, names: Iterable[str]) -> list[str]:
    """Names in sorted order, without those that are not UTF-8 and could not be written to any list; warns of these."""
    names = sorted(names)
    foreign = [name for name in names if not _is_utf8(name)]
    if foreign:
        _warn_of_foreign(folder, tuple(foreign))
    return [name for name in names if _is_utf8(name)] if foreign else names


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@cache  # a folder is listed several times
def _warn_of_foreign(folder: Path, names: tuple[str, ...]) -> None:
    if rank() == 0:
        log.warning(
            "%s: skipped %d files or folders whose names are not UTF-8, such as %s. Rename them.",
            ascii(str(folder)),
            len(names),
            ", ".join(map(ascii, names[:3])),
        )
