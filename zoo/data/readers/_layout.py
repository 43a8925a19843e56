"""What the readers share: finding a data set's folder, listing it, holding out identities, and counting."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data.images import EXTENSIONS
from zoo.data.index import IdentityIndex, split_identities
from zoo.data.readers import refuse
from zoo.distributed import rank

log = logging.getLogger(__name__)

#: a folder of more folders than this is a data set itself, not the parent of one.
_MOST_SIBLINGS = 100
#: the mark of a drawn world (`zoo.world`).
_DRAWN = "world.json"


class Row(NamedTuple):
    """One image of an index, by path relative to the index's root."""

    path: str
    identity: str
    split: str
    camera: int = -1
    category: str = ""


class Count(NamedTuple):
    """Published size of a part of a data set; None where it is not published."""

    images: int | None
    identities: int | None


class Skipped:
    """What was left out and why, named in one warning a reason.

    Args:
        log: the reader's logger.
        root: folder of the data set.
    """

    def __init__(self, log: logging.Logger, root: Path) -> None:
        self.log, self.root = log, root
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: object) -> None:
        """Count one; `reason` is a noun phrase in the plural, such as "images without a camera"."""
        self.names.setdefault(reason, []).append(str(name))

    def report(self) -> None:
        """Warn, on one rank."""
        for reason, names in self.names.items():
            if rank() == 0:
                self.log.warning("%s: skipped %d %s, such as %s", self.root, len(names), reason, ", ".join(names[:3]))


# ---------------------------------------------------------------------- finding and listing


def candidates(root: Path, is_dataset: Callable[[Path], bool]) -> list[Path]:
    """`root` if it is such a data set, else those of its folders that are."""
    if not root.is_dir():
        return []
    if is_dataset(root):
        return [root]
    children = subfolders(root)
    return [child for child in children if is_dataset(child)] if len(children) <= _MOST_SIBLINGS else []


def dataset_folder(reader: str, root: Path, is_dataset: Callable[[Path], bool]) -> Path:
    """`root`, or the one folder in it that is the data set.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such data set in it, or several.
    """
    found = candidates(root, is_dataset)
    if not found:
        refuse(reader, root)
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise ValueError(f"{root} holds {len(found)} folders that the reader {reader} fits: {names}. Give one of them.")
    return found[0]


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [folder / name for name in _writable(folder, names)]


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and dot + ending.lower() in EXTENSIONS


def images(root: Path, folder: Path) -> list[tuple[str, str]]:
    """(path relative to `root`, file name) of the images directly in a folder, sorted; none where there is none."""
    if not folder.is_dir():
        return []
    prefix = prefix_of(root, folder)
    return [(prefix + name, name) for name in _writable(folder, filter(is_image, os.listdir(folder)))]


def images_below(root: Path, folder: Path) -> list[str]:
    """Paths relative to `root` of the images in a folder and below it, hidden folders left out, in sorted order."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = _writable(Path(parent), (name for name in folders if not name.startswith(".")))
        prefix = prefix_of(root, Path(parent))
        found += [prefix + name for name in _writable(Path(parent), filter(is_image, files))]
    return found


def _writable(folder: Path, names: Iterable[str]) -> list[str]:
    """Names in sorted order; those that are not UTF-8, and could not be written to any list, are warned of."""
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


def prefix_of(root: Path, folder: Path) -> str:
    """What to put before a name in `folder` to have its posix path relative to `root`."""
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"


class Files:
    """Whether files are there, with one listing a folder instead of one question a file.

    Args:
        root: folder that the paths are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listings: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self.listings:
            where = self.root / folder
            self.listings[folder] = frozenset(os.listdir(where)) if where.is_dir() else frozenset()
        return name in self.listings[folder]


# ---------------------------------------------------------------------- the index


def hold_out(rows: Iterable[Row], val_share: float, seed: int) -> list[Row]:
    """Give a share of the training identities to val, with the further images that are kept out of training."""
    rows = list(rows)
    training = sorted({row.identity for row in rows if row.split == "train"})
    if not training or val_share == 0:
        return rows
    kinds = split_identities(training, val_share, 0.0, seed)
    held = {name for name, kind in kinds.items() if kind == "val"}
    return [
        row._replace(split="val") if row.identity in held and row.split in ("train", "closed") else row for row in rows
    ]


def once(rows: Iterable[Row], skipped: Skipped) -> list[Row]:
    """Rows of a list, each image once."""
    first: dict[str, Row] = {}
    for row in rows:
        if first.setdefault(row.path, row) is not row:
            skipped.add("images that are listed again", row.path)
    return list(first.values())


def build(root: Path, rows: Sequence[Row], origins: Sequence[str] = (), **parts: Any) -> IdentityIndex:
    """An index of these rows; `parts` are further arguments of `IdentityIndex.build`.

    A drawn world only looks like the data set: it has none of its images, hence not its origins.
    """
    paths, identities, splits, cameras, categories = zip(*rows, strict=True) if rows else [()] * 5
    origins = () if _is_drawn(root) else origins
    return IdentityIndex.build(root, paths, identities, splits, categories, cameras, origins=origins, **parts)


def compare(log: logging.Logger, dataset: str, published: Mapping[str, Count], index: IdentityIndex) -> None:
    """Warn where an index has other numbers than published: a subset, or an incomplete copy.

    Args:
        log: the reader's logger.
        dataset: its name in words.
        published: splits, joined by + where some of one are given to another -> published size.
        index: what was read.
    """
    if rank() != 0 or _is_drawn(index.root):
        return
    differences = []
    for part, count in published.items():
        rows = index.rows(*part.split("+"))
        found = Count(len(rows), len(np.unique(index.identities[rows])))
        differences += [
            f"{part} {wanted:,} {what} (found {here:,})"
            for wanted, here, what in zip(count, found, Count._fields, strict=True)
            if wanted is not None and wanted != here
        ]
    if differences:
        log.warning(
            "%s differs from what %s publishes: %s. Of a part or an incomplete copy, scores cannot be compared with "
            "published ones.",
            index.root,
            dataset,
            ", ".join(differences),
        )


def _is_drawn(root: Path) -> bool:
    return (root / _DRAWN).is_file()
