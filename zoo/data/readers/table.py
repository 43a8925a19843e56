"""TableReader: the base of readers of one CSV table of images, which is recognised by its columns."""

import csv
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from zoo.data.files import Files
from zoo.data.readers.base import Reader, Row


@dataclass(frozen=True)
class TableReader(Reader):
    """Base of the readers of one CSV table that names images, relative to its own folder or by absolute paths.

    A subclass states `columns` and `unusable`, and implements `parse`.

    Args:
        table: the CSV file, relative to root, where there are several.
    """

    #: by which a table is known; `path` is one of them.
    columns: ClassVar[tuple[str, ...]]
    #: rows without an image, as a noun phrase in the plural.
    unusable: ClassVar[str]

    table: str | None = None

    @abstractmethod
    def parse(self, entry: Mapping[str, str]) -> Row | None:
        """An image by its path as the table has it; None where the entry has none.

        Args:
            entry: column -> field.
        """

    def needed(self) -> tuple[str, ...]:
        """Columns that the options ask for."""
        return self.columns

    def entries(self, table: Path) -> Iterator[dict[str, str]]:
        """Rows of the table by column."""
        return rows_of(table)

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        return bool(_tables_with(folder, cls.columns))

    def locate(self, root: Path) -> Path:
        """The table that is named, or else the only one that has the columns.

        Raises:
            FileNotFoundError: no such folder or table.
            ValueError: none has the columns, or several have.
        """
        needed = self.needed()
        if self.table is not None:
            path = root / self.table
            if not path.is_file():
                raise FileNotFoundError(f"No table {path}. Name a CSV file relative to {root}.")
            missing = [name for name in needed if name not in _header_of(path)]
            if missing:
                self.refuse(root, f"{self.table} has no column {', '.join(missing)}.")
            return path
        folder = self.dataset_folder(root, lambda folder: bool(_tables_with(folder, needed)))
        found = _tables_with(folder, needed)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} has {len(found)} tables that fit: {names}. Name one, by the option table.")
        return found[0]

    def rows(self, files: Files) -> Iterator[Row]:
        table = files.place
        for entry in self.entries(table):
            row, path = self.parse(entry), _path_from(files, table.parent, entry["path"])
            if row is None:
                files.skip(self.unusable, list(entry.values()))
            elif path is None:
                files.skip(f"images that are not below {files.root}", entry["path"])
            elif path not in files:
                files.skip("images that are missing", path)
            else:
                yield row._replace(path=path)


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


def _tables_with(folder: Path, columns: Sequence[str]) -> list[Path]:
    """CSV files in a folder that have these columns, sorted."""
    if not folder.is_dir():
        return []
    tables = (path for path in sorted(folder.glob("*.csv")) if not path.name.startswith("."))
    return [path for path in tables if set(columns) <= set(_header_of(path))]


def _header_of(path: Path) -> list[str]:
    """First row of a CSV file; none where it is no text."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _path_from(files: Files, folder: Path, path: str) -> str | None:
    """A path of a table, relative to `folder` or absolute -> relative to the root; None where it is not below it."""
    if not PurePosixPath(path).is_absolute():
        return files.prefix(folder) + PurePosixPath(path).as_posix()
    for top in (files.root.absolute(), files.root.resolve()):
        if PurePosixPath(path).is_relative_to(top.as_posix()):
            return PurePosixPath(path).relative_to(top.as_posix()).as_posix()
    return None
