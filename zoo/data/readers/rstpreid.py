"""RSTPReid.

    RSTPReid/
        imgs/0000_c14_0031.jpg      identity 0, camera 14
        data_captions.json          a list of
            {"id": 0, "img_path": "0000_c14_0031.jpg", "captions": [...], "split": "train"}

Zhu et al., DSSL: Deep Surroundings-person Separation Learning for Text-based Person Retrieval, ACM MM 2021. Its images
are those of MSMT17, in another split: trained on the one, a model must not be tested on the other.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

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
    once,
    prefix_of,
    text_of,
)

log = logging.getLogger(__name__)

LAYOUT = "imgs/0000_c14_0031.jpg and data_captions.json, a list of {id, img_path, captions, split}"
PUBLISHED = {
    "train+val+test": Count(20_505, 4_101),
    "train": Count(None, 3_701),
    "val": Count(None, 200),
    "test": Count(None, 200),
}

_TABLE = "data_captions.json"
_CAMERA = re.compile(r"\d+_c(\d+)")
_SPLITS = ("train", "val", "test")


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds imgs/ and data_captions.json."""
    return bool(candidates(root, _is_dataset))


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index RSTPReid.

    Args:
        root: the data set's folder, or its parent.
        val_share: not used: the split is published.
        test_share: not used, likewise.
        seed: not used, likewise.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, or a table that is none.
    """
    folder = dataset_folder("rstpreid", root, _is_dataset)
    skipped, files, prefix = Skipped(log, folder), Files(root), prefix_of(root, folder / "imgs")
    rows = []
    for entry in _entries(folder / _TABLE):
        row = _parse(entry, prefix)
        if row is None:
            skipped.add(f"entries of {_TABLE} without id, a split, or a path with a camera", entry)
        elif row.path not in files:
            skipped.add(f"images of {_TABLE} that are missing", row.path)
        else:
            rows.append(row)
    rows = once(rows, skipped)
    skipped.report()
    index = build(root, rows, origins=("rstpreid", "msmt17"))
    compare(log, "RSTPReid", PUBLISHED, index)
    return index


def _entries(table: Path) -> list[Any]:
    try:
        entries = json.loads(text_of(table))
    except json.JSONDecodeError as error:
        raise ValueError(f"{table} is not JSON: {error}. Get it again.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{table} holds a {type(entries).__name__}, not a list of images. Get it again.")
    return entries


def _parse(entry: Any, prefix: str) -> Row | None:
    try:
        identity, path, split = int(entry["id"]), str(entry["img_path"]), entry["split"]
    except (KeyError, TypeError, ValueError):
        return None
    camera = _CAMERA.match(path.rsplit("/", 1)[-1])
    if camera is None or split not in _SPLITS:
        return None
    return Row(prefix + path, f"{identity:04d}", split, int(camera[1]) - 1)


def _is_dataset(folder: Path) -> bool:
    return (folder / _TABLE).is_file() and (folder / "imgs").is_dir()
