"""Attributes of the images, such as a colour or a side: read from an `attributes.csv` beside any layout."""

import csv
from dataclasses import replace

import numpy as np

from zoo.data.index import IdentityIndex

#: columns that locate an image and its identity.
_NOT_ATTRIBUTES = ("path", "identity", "family", "x", "y", "w", "h")


def with_attributes(index: IdentityIndex) -> IdentityIndex:
    """The index with the columns of `attributes.csv` in its root, where there is one.

    Rows are joined by the column path. Columns path, identity, family, x, y, w, h are no attributes; a column that
    the reader has filled already stays as it is. A missing field is "".

    Raises:
        ValueError: a table without a column path, or without a row for every image.
    """
    table = index.root / "attributes.csv"
    if not table.is_file():
        return index
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        if "path" not in header:
            raise ValueError(f"{table} has no column path, only {header}. Name the images in it, or remove it.")
        rows = {row["path"]: row for row in reader}
    missing = [path for path in index.paths.tolist() if path not in rows]
    if missing:
        raise ValueError(
            f"{table} has no row for {len(missing)} images, such as {missing[0]}. Complete it, or remove it."
        )
    names = [name for name in header if name and name not in (*_NOT_ATTRIBUTES, *index.attributes)]
    columns = {name: np.array([rows[path][name] or "" for path in index.paths.tolist()]) for name in names}
    return replace(index, attributes=index.attributes | columns)
