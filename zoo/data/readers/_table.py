"""Tables of images as CSV: found by their columns, read, and their paths made relative."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from zoo.data.readers import refuse
from zoo.data.readers._layout import dataset_folder, prefix_of


def tables_with(folder: Path, columns: Sequence[str]) -> list[Path]:
    """CSV files in a folder that have these columns, sorted."""
    if not folder.is_dir():
        return []
    tables = (path for path in sorted(folder.glob("*.csv")) if not path.name.startswith("."))
    return [path for path in tables if set(columns) <= set(header_of(path))]


def header_of(path: Path) -> list[str]:
    """First row of a CSV file; none where it is no text."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file by column, "" where a row is too short.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, restval="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Convert it, or get it again.") from error


def find_table(reader: str, root: Path, columns: Sequence[str], table: str | None) -> Path:
    """The table that is named, relative to `root`, or else the only one that has these columns.

    Raises:
        FileNotFoundError: no such folder or table.
        ValueError: none has the columns, or several have.
    """
    if table is not None:
        path = root / table
        if not path.is_file():
            raise FileNotFoundError(f"No table {path}. Name a CSV file relative to {root}.")
        missing = [name for name in columns if name not in header_of(path)]
        if missing:
            refuse(reader, root, f"{table} has no column {', '.join(missing)}.")
        return path
    found = tables_with(dataset_folder(reader, root, lambda folder: bool(tables_with(folder, columns))), columns)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{found[0].parent} has {len(found)} tables that fit: {names}. Name one, by the option table.")
    return found[0]


def path_from(root: Path, folder: Path, path: str) -> str | None:
    """A path of a table, relative to `folder` or absolute -> relative to `root`; None where it is not below it."""
    if not PurePosixPath(path).is_absolute():
        return prefix_of(root, folder) + PurePosixPath(path).as_posix()
    for top in (root.absolute(), root.resolve()):
        if PurePosixPath(path).is_relative_to(top.as_posix()):
            return PurePosixPath(path).relative_to(top.as_posix()).as_posix()
    return None
