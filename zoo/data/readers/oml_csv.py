"""The table of open-metric-learning.

    root/
        df.csv      label, path, split, is_query, is_gallery; perhaps category, sequence, x_1, x_2, y_1, y_2
        ...         the images, at `path` relative to the table's folder

split is train or validation. The roles are empty in training; an image of validation is a query, in the gallery, or
both. Every label among the queries must be in the gallery. x_1, x_2, y_1, y_2 are left, right, top and bottom in
pixels, empty where an image has no box.

sequence: images of one sequence, such as neighbouring frames of a film, share it. open-metric-learning leaves out of a
query's gallery whatever is of its sequence. Here a sequence becomes a camera: those images of the query's own label and
sequence are left out, which is the same where no sequence shows two labels.
"""

import logging
from pathlib import Path

import numpy as np

from zoo.data.index import IdentityIndex
from zoo.data.readers._layout import Files, Row, Skipped, build, candidates, hold_out
from zoo.data.readers._table import find_table, path_from, rows_of, tables_with

log = logging.getLogger(__name__)

LAYOUT = "a CSV file with the columns label, path, split, is_query, is_gallery, and the images that it names"

_COLUMNS = ("label", "path", "split", "is_query", "is_gallery")
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
#: (is_query, is_gallery) -> split
_ROLES = {(True, True): "test", (True, False): "query", (False, True): "gallery"}
_NO_BOX = (-1.0, -1.0, -1.0, -1.0)


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds a table with these columns."""
    return bool(candidates(root, lambda folder: bool(tables_with(folder, _COLUMNS))))


def read(
    root: Path,
    val_share: float = 0.1,
    test_share: float = 0.3,
    seed: int = 0,
    *,
    table: str | None = None,
) -> IdentityIndex:
    """Index a table of open-metric-learning; its validation is tested on here.

    Args:
        root: folder of the table and the images, or its parent.
        val_share: share of the training labels to validate on.
        test_share: not used: the table says what is tested on.
        seed: which labels are validated on.
        table: the CSV file, relative to root, where there are several.

    Raises:
        FileNotFoundError: no such folder or table.
        ValueError: no table with these columns, several, or queries whose label is not in the gallery.
    """
    source = find_table("oml_csv", root, _COLUMNS, table)
    skipped, files = Skipped(log, source), Files(root)
    kept: list[tuple[Row, str, tuple[float, ...]]] = []
    asked, stored = set(), set()
    for entry in rows_of(source):
        split, box, path = _split(entry), _box(entry), path_from(root, source.parent, entry["path"])
        asked |= {entry["label"]} if split in ("test", "query") else set()
        stored |= {entry["label"]} if split in ("test", "gallery") else set()
        if not entry["label"] or not entry["path"] or split is None or box is None:
            skipped.add("rows without label, path, a role, or a box that is one", list(entry.values()))
        elif path is None:
            skipped.add(f"images that are not below {root}", entry["path"])
        elif path not in files:
            skipped.add("images that are missing", path)
        else:
            row = Row(path, entry["label"], split, category=entry.get("category", ""))
            kept.append((row, entry.get("sequence", ""), box))
    skipped.report()
    if asked - stored:
        raise ValueError(
            f"{len(asked - stored)} labels of {source} have queries and nothing in the gallery, such as "
            f"{sorted(asked - stored)[0]!r}. Add gallery images of them, or take their queries out."
        )
    boxes = np.array([box for _, _, box in kept], dtype=np.float32)
    cameras = _numbered([sequence for _, sequence, _ in kept])
    rows = [row._replace(camera=camera) for (row, _, _), camera in zip(kept, cameras, strict=True)]
    return build(root, hold_out(rows, val_share, seed), boxes=boxes if (boxes >= 0).any() else None)


def _split(entry: dict[str, str]) -> str | None:
    if entry["split"] == "train":
        return "train"
    query, gallery = (_TRUTH.get(entry[role].strip().lower()) for role in ("is_query", "is_gallery"))
    if entry["split"] != "validation" or query is None or gallery is None:
        return None
    return _ROLES.get((query, gallery))


def _box(entry: dict[str, str]) -> tuple[float, ...] | None:
    """x, y, w, h; -1 where there is none; None where it is not a box."""
    corners = [entry.get(name, "").strip() for name in ("x_1", "y_1", "x_2", "y_2")]
    if not any(corners):
        return _NO_BOX
    try:
        left, top, right, bottom = map(float, corners)
    except ValueError:
        return None
    return (left, top, right - left, bottom - top) if 0 <= left < right and 0 <= top < bottom else None


def _numbered(sequences: list[str]) -> list[int]:
    """Sequences by number, in sorted order; -1 where an image has none."""
    number = {name: position for position, name in enumerate(sorted({s for s in sequences if s}))}
    return [number.get(name, -1) for name in sequences]
