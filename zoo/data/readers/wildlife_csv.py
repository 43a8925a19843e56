"""The table of wildlife-datasets.

    root/
        metadata.csv    any name: image_id, identity, path; perhaps bbox "[x, y, w, h]", species, video, ...
        ...             the images, at `path` relative to the table's folder

Images of the identity `unknown` are left out. One image may have several rows, each with the box of another animal.
The species is the category. The table has no split that keeps identities apart: they are split by seed.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.index import SPLITS, IdentityIndex, split_identities
from zoo.data.readers._layout import Files, Row, Skipped, build, candidates
from zoo.data.readers._table import find_table, path_from, rows_of, tables_with
from zoo.distributed import rank

log = logging.getLogger(__name__)

LAYOUT = "a CSV file with the columns image_id, identity, path, and the images that it names"

_COLUMNS = ("image_id", "identity", "path")
_UNKNOWN = ("unknown", "", "nan")
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
    split: str | None = None,
    videos_are_cameras: bool = False,
) -> IdentityIndex:
    """Index a table of wildlife-datasets.

    Args:
        root: folder of the table and the images, or its parent.
        val_share: share of the identities to validate on.
        test_share: share of the identities to test on.
        seed: which identities these are.
        table: the CSV file, relative to root, where there are several.
        split: column that says train, val, test, query or gallery, to be used instead of a split by seed.
        videos_are_cameras: an image does not count as found if it is of the query's own video. Only where most
            animals are in several videos.

    Raises:
        FileNotFoundError: no such folder or table.
        ValueError: no table with these columns, several, or an identity in training and elsewhere.
    """
    needed = (*_COLUMNS, *([split] if split else []), *(["video"] if videos_are_cameras else []))
    source = find_table("wildlife_csv", root, needed, table)
    skipped, files = Skipped(log, source), Files(root)
    rows, boxes, videos, unknown = [], [], [], 0
    for entry in rows_of(source):
        box, path = _box(entry.get("bbox", "")), path_from(root, source.parent, entry["path"])
        if entry["identity"].strip().lower() in _UNKNOWN:
            unknown += 1
        elif not entry["path"] or box is None or (split and entry[split] not in SPLITS):
            skipped.add("rows without a path, a known split, or a box that is one", list(entry.values()))
        elif path is None:
            skipped.add(f"images that are not below {root}", entry["path"])
        elif path not in files:
            skipped.add("images that are missing", path)
        else:
            rows.append(Row(path, entry["identity"], entry[split] if split else "", category=entry.get("species", "")))
            boxes.append(box)
            videos.append(entry.get("video", "") if videos_are_cameras else "")
    skipped.report()
    if unknown and rank() == 0:
        log.info("%s: left out %d images of unknown identity", source, unknown)
    if rows and not split:
        kinds = split_identities([row.identity for row in rows], val_share, test_share, seed)
        rows = [row._replace(split=kinds[row.identity]) for row in rows]
    number = {name: position for position, name in enumerate(sorted({video for video in videos if video}))}
    rows = [row._replace(camera=number.get(video, -1)) for row, video in zip(rows, videos, strict=True)]
    has_boxes = any(box != _NO_BOX for box in boxes)
    return build(root, rows, boxes=np.array(boxes, dtype=np.float32) if has_boxes else None)


def _box(text: str) -> Sequence[float] | None:
    """x, y, w, h of "[x, y, w, h]"; -1 where there is none; None where it is not a box."""
    if text.strip().lower() in ("", "nan", "none"):
        return _NO_BOX
    try:
        x, y, w, h = (float(value) for value in json.loads(text))
    except (ValueError, TypeError):
        return None
    return (x, y, w, h) if w > 0 and h > 0 else None
