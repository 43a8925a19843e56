"""PRCC: persons who change their clothes.

    prcc/rgb/
        train/001/A_cropped_rgb001.jpg      identity 001, camera A
        val/001/B_cropped_rgb002.jpg        further images of the training identities
        test/A/034/...                      camera first; A is the gallery
        test/B/034/...                      queries in the clothes of the gallery
        test/C/034/...                      queries in other clothes

Yang et al., Person Re-identification by Contour Sketch under Moderate Clothing Change, TPAMI 2021. Cameras A, B and C
are 0, 1 and 2. The attribute clothes is "same" for the queries of B, "changed" for those of C, and "" elsewhere.
"""

import logging
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
    hold_out,
    images,
    subfolders,
)

log = logging.getLogger(__name__)

LAYOUT = "rgb/{train,val}/<identity>/{A,B,C}*.jpg and rgb/test/{A,B,C}/<identity>/*.jpg"
#: The three parts of the test are not confirmed at a source one by one.
PUBLISHED = {
    "train+val+closed": Count(17_896 + 5_002, 150),
    "query+gallery": Count(10_800, 71),
}

_CAMERAS = {"A": 0, "B": 1, "C": 2}
_CLOTHES = {"B": "same", "C": "changed"}


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds rgb/train or rgb/test with folders for cameras."""
    return bool(candidates(root, _is_dataset))


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index PRCC.

    The images of val/ show training identities; they are the split "closed".

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout.
    """
    folder = dataset_folder("prcc", root, _is_dataset) / "rgb"
    skipped = Skipped(log, folder)
    rows = []
    trained = {person.name for person in subfolders(folder / "train")}
    for part in ("train", "val"):
        for person in subfolders(folder / part):
            split = "train" if part == "train" else "closed" if person.name in trained else "val"
            for path, name in images(root, person):
                if name[0] in _CAMERAS:
                    rows.append(Row(path, person.name, split, _CAMERAS[name[0]]))
                else:
                    skipped.add("images whose name does not begin with A, B or C", path)
    rows = hold_out(rows, val_share, seed)
    clothes = [""] * len(rows)
    for letter, camera in _CAMERAS.items():
        split = "query" if letter in _CLOTHES else "gallery"
        for person in subfolders(folder / "test" / letter):
            found = [Row(path, person.name, split, camera) for path, _ in images(root, person)]
            rows += found
            clothes += [_CLOTHES.get(letter, "")] * len(found)
    skipped.report()
    index = build(root, rows, origins=("prcc",), attributes={"clothes": np.array(clothes, dtype=str)})
    compare(log, "PRCC", PUBLISHED, index)
    return index


def _is_dataset(folder: Path) -> bool:
    return (folder / "rgb" / "train").is_dir() or any((folder / "rgb" / "test" / name).is_dir() for name in _CAMERAS)
