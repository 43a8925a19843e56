"""ILIAS: particular objects to be found among many images. A test set only.

    ilias_core/
        bold_bimp_000/                      one object
            query/Q000_00.jpg               and Q000_00_bbox.txt: lines `x y width height`; T000.txt is a text query
            pos/P000_00.jpg                 and P000_00_bbox.txt

Kordopatis-Zilos et al., ILIAS: Instance-Level Image retrieval At Scale, CVPR 2025. Its 100 million distractors are
distributed apart, as shards: unpack as many as are wanted into one folder.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.index import IdentityIndex
from zoo.data.readers._layout import (
    Count,
    Row,
    Skipped,
    build,
    candidates,
    compare,
    dataset_folder,
    images,
    images_below,
    lines_of,
    subfolders,
)

log = logging.getLogger(__name__)

LAYOUT = "<object>_<3 digits>/query/Q000_00.jpg and <object>_<3 digits>/pos/P000_00.jpg"
PUBLISHED = {"query": Count(1_232, 1_000), "gallery": Count(4_715, None)}

_FOLDERS = {"query": ("query", re.compile(r"Q\d+_\d+\.\w+")), "pos": ("gallery", re.compile(r"P\d+_\d+\.\w+"))}
_DISTRACTOR = "distractor"
_NO_BOX = (-1.0, -1.0, -1.0, -1.0)
_LOOK_AT = 5


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds objects with queries or positives."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path,
    val_share: float = 0.1,
    test_share: float = 0.3,
    seed: int = 0,
    *,
    crop: bool = True,
    distractors: str | None = None,
) -> IdentityIndex:
    """Index ILIAS: image queries, their positives, and perhaps distractors.

    Args:
        root: the folder ilias_core, or its parent.
        val_share: not used: there is nothing to train on.
        test_share: not used, likewise.
        seed: not used, likewise.
        crop: cut the queries to the box around all boxes of the object; else they are seen whole. Positives always are.
        distractors: a folder of further gallery images, relative to root.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, or a folder of distractors without images.
    """
    folder = dataset_folder("ilias", root, _is_dataset)
    skipped = Skipped(log, folder)
    rows, boxes = [], []
    for thing in subfolders(folder):
        for name, (split, pattern) in _FOLDERS.items():
            for path, image in images(root, thing / name):
                if not pattern.fullmatch(image):
                    skipped.add(f"images of {name}/ whose name is not like {name[0].upper()}000_00.jpg", path)
                    continue
                rows.append(Row(path, thing.name, split))
                boxes.append(_box(root / path, skipped) if crop and split == "query" else _NO_BOX)
    if distractors is not None:
        rows += _distractors(root, distractors, {row.path for row in rows})
        boxes += [_NO_BOX] * (len(rows) - len(boxes))
    skipped.report()
    index = build(root, rows, boxes=np.array(boxes, dtype=np.float32) if crop else None, origins=("ilias",))
    if distractors is None:
        compare(log, "ILIAS", PUBLISHED, index)
    return index


def _box(image: Path, skipped: Skipped) -> Sequence[float]:
    """x, y, w, h around all boxes of an image, as the reference extraction crops."""
    table = image.with_name(f"{image.stem}_bbox.txt")
    try:
        lines = [[float(field) for field in line.split()] for line in lines_of(table)]
        x, y, w, h = np.array(lines).reshape(-1, 4).T
        left, top = max(x.min(), 0.0), max(y.min(), 0.0)
        if (w > 0).all() and (h > 0).all():
            return left, top, (x + w).max() - left, (y + h).max() - top
    except (OSError, ValueError):
        pass
    skipped.add("boxes of queries, which are seen whole,", table.name)
    return _NO_BOX


def _distractors(root: Path, folder: str, taken: set[str]) -> list[Row]:
    where = root / folder
    paths = [path for path in images_below(root, where) if path not in taken] if _is_inside(root, where) else []
    if not paths:
        raise ValueError(f"No distractors in {where}. Give the option distractors a folder of images inside {root}.")
    return [Row(path, _DISTRACTOR, "gallery") for path in paths]


def _is_inside(root: Path, where: Path) -> bool:
    return where.is_dir() and where.is_relative_to(root) and ".." not in where.relative_to(root).parts


def _is_dataset(folder: Path) -> bool:
    return any(
        pattern.fullmatch(name)
        for thing in subfolders(folder)[:_LOOK_AT]
        for part, (_, pattern) in _FOLDERS.items()
        for _, name in images(thing, thing / part)[:1]
    )
