"""ILIAS: particular objects to be found among many images. A test set only.

    ilias_core/
        bold_bimp_000/                      one object
            query/Q000_00.jpg               and Q000_00_bbox.txt: lines `x y width height`; T000.txt is a text query
            pos/P000_00.jpg                 and P000_00_bbox.txt

Kordopatis-Zilos et al., ILIAS: Instance-Level Image retrieval At Scale, CVPR 2025. Its 100 million distractors are
distributed apart, as shards: unpack as many as are wanted into one folder.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.files import Files, image_names, lines_of, subfolders
from zoo.data.index import NO_BOX
from zoo.data.readers.base import Box, Count, Published, Reader, Row, register

_FOLDERS = {"query": ("query", re.compile(r"Q\d+_\d+\.\w+")), "pos": ("gallery", re.compile(r"P\d+_\d+\.\w+"))}
_DISTRACTOR = "distractor"
_LOOK_AT = 5


@register
@dataclass(frozen=True)
class ILIAS(Reader):
    """Reads ILIAS: image queries, their positives, and perhaps distractors.

    Args:
        crop: cut the queries to the box around all boxes of the object; else they are seen whole. Positives always are.
        distractors: a folder of further gallery images, relative to root.
    """

    name = "ilias"
    layout = "<object>_<3 digits>/query/Q000_00.jpg and <object>_<3 digits>/pos/P000_00.jpg"
    published = Published("ILIAS", {"query": Count(1_232, 1_000), "gallery": Count(4_715, None)}, origins=("ilias",))

    crop: bool = True
    distractors: str | None = None

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        return any(
            pattern.fullmatch(name)
            for thing in subfolders(folder)[:_LOOK_AT]
            for part, (_, pattern) in _FOLDERS.items()
            for name in image_names(thing / part)[:1]
        )

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: a folder of distractors without images.
        """
        taken = set()
        for thing in subfolders(files.place):
            for part, (split, pattern) in _FOLDERS.items():
                for path, image in files.images(thing / part):
                    if not pattern.fullmatch(image):
                        files.skip(f"images of {part}/ whose name is not like {part[0].upper()}000_00.jpg", path)
                        continue
                    taken.add(path)
                    box = _box(thing / part / image, files) if self.crop and split == "query" else NO_BOX
                    yield Row(path, thing.name, split, box=box)
        if self.distractors is not None:
            yield from _distractors(files, self.distractors, taken)

    def published_for(self, place: Path, rows: list[Row]) -> Published:
        return self.published if self.distractors is None else self.published._replace(counts={})


def _box(image: Path, files: Files) -> Box:
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
    files.skip("boxes of queries, which are seen whole,", table.name)
    return NO_BOX


def _distractors(files: Files, folder: str, taken: set[str]) -> Iterator[Row]:
    root, where = files.root, files.root / folder
    is_inside = where.is_dir() and where.is_relative_to(root) and ".." not in where.relative_to(root).parts
    paths = [path for path in files.images_below(where) if path not in taken] if is_inside else []
    if not paths:
        raise ValueError(f"No distractors in {where}. Give the option distractors a folder of images inside {root}.")
    return (Row(path, _DISTRACTOR, "gallery") for path in paths)
