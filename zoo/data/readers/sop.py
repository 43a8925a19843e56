"""Stanford Online Products.

    Stanford_Online_Products/
        Ebay_train.txt, Ebay_test.txt       image_id class_id super_class_id path
            1 1 1 bicycle_final/111085122871_0.JPG
        bicycle_final/111085122871_0.JPG

Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016. A class is one product; the
category is its super class. Every test image is both query and gallery.
"""

import logging
from pathlib import Path

from zoo.data.index import IdentityIndex
from zoo.data.readers._layout import (
    Count,
    Files,
    Row,
    Skipped,
    build,
    candidates,
    compare,
    dataset_folder,
    hold_out,
    lines_of,
    once,
    prefix_of,
)

log = logging.getLogger(__name__)

LAYOUT = "Ebay_train.txt, Ebay_test.txt and <category>_final/*.JPG"
PUBLISHED = {"train+val": Count(59_551, 11_318), "test": Count(60_502, 11_316)}

_SPLITS = ("train", "test")
_SUFFIX = "_final"


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds one of the two lists."""
    return bool(candidates(root, _is_dataset))


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index Stanford Online Products.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training classes to validate on.
        test_share: not used: the test classes are published.
        seed: which classes are validated on.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout.
    """
    folder = dataset_folder("sop", root, _is_dataset)
    skipped, files, prefix = Skipped(log, folder), Files(root), prefix_of(root, folder)
    rows = []
    for split in _SPLITS:
        table = folder / f"Ebay_{split}.txt"
        if not table.is_file():
            skipped.add("lists that are missing", table.name)
            continue
        for line in lines_of(table)[1:]:
            row = _parse(line, prefix, split)
            if row is None:
                skipped.add(f"lines of {table.name} that are not <image> <class> <super class> <path>", line)
            elif row.path not in files:
                skipped.add(f"images of {table.name} that are missing", row.path)
            else:
                rows.append(row)
    rows = once(rows, skipped)
    skipped.report()
    index = build(root, hold_out(rows, val_share, seed), origins=("sop",))
    compare(log, "Stanford Online Products", PUBLISHED, index)
    return index


def _parse(line: str, prefix: str, split: str) -> Row | None:
    fields = line.split(maxsplit=3)
    if len(fields) != 4 or not fields[1].isdigit():
        return None
    category = fields[3].partition("/")[0].removesuffix(_SUFFIX)
    return Row(prefix + fields[3], f"{int(fields[1]):05d}", split, category=category)


def _is_dataset(folder: Path) -> bool:
    return any((folder / f"Ebay_{split}.txt").is_file() for split in _SPLITS)
