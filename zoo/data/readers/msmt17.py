"""MSMT17, versions 1 and 2.

    MSMT17_V1/ or MSMT17_V2/
        list_train.txt  list_val.txt  list_query.txt  list_gallery.txt     lines such as
            0000/0000_000_01_0303morning_0015_0.jpg 0                      camera 1, identity 0
        train/0000/...      or mask_train_v2/0000/...  with faces blurred
        test/0000/...       or mask_test_v2/0000/...

Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018. Identities of training
and test are both numbered from 0: they are named train_0000 and test_0000 here. list_val names further images of the
training identities.
"""

import logging
from pathlib import Path
from typing import Literal

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

LAYOUT = "list_{train,val,query,gallery}.txt beside train/ and test/, or mask_train_v2/ and mask_test_v2/"
PUBLISHED = {
    "train+val+closed": Count(32_621, None),
    "query": Count(11_659, None),
    "gallery": Count(82_161, None),
    "train+val+closed+query+gallery": Count(None, 4_101),
}

_FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
#: list -> folder its paths are in.
_LISTS = {"train": "train", "val": "train", "query": "test", "gallery": "test"}


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds a list of query or training images, and one of the image folders."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path,
    val_share: float = 0.1,
    test_share: float = 0.3,
    seed: int = 0,
    *,
    train: Literal["train", "train+val"] = "train+val",
) -> IdentityIndex:
    """Index MSMT17.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.
        train: which lists are trained on. Papers do either; with "train" alone, the images of list_val become the
            split "closed".

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout.
    """
    folder = dataset_folder("msmt17", root, _is_dataset)
    skipped, files = Skipped(log, folder), Files(root)
    rows = []
    for name, part in _LISTS.items():
        table = folder / f"list_{name}.txt"
        if not table.is_file():
            skipped.add("lists that are missing", table.name)
            continue
        split = name if part == "test" else "closed" if name == "val" and train == "train" else "train"
        prefix = prefix_of(root, _image_folder(folder, part))
        for line in lines_of(table):
            row = _parse(line, prefix, part, split)
            if row is None:
                skipped.add(f"lines of {table.name} that are not <path> <identity>", line)
            elif row.path not in files:
                skipped.add(f"images of {table.name} that are missing", row.path)
            else:
                rows.append(row)
    rows = once(rows, skipped)
    skipped.report()
    index = build(root, hold_out(rows, val_share, seed), origins=("msmt17",))
    compare(log, "MSMT17", PUBLISHED, index)
    return index


def _parse(line: str, prefix: str, part: str, split: str) -> Row | None:
    path, _, identity = line.rpartition(" ")
    fields = path.rsplit("/", 1)[-1].split("_")
    if not identity.isdigit() or len(fields) < 4 or not fields[2].isdigit():
        return None
    return Row(prefix + path, f"{part}_{int(identity):04d}", split, int(fields[2]) - 1)


def _is_dataset(folder: Path) -> bool:
    lists = any((folder / f"list_{name}.txt").is_file() for name in ("train", "query"))
    return lists and any(_image_folder(folder, part).is_dir() for part in _FOLDERS)


def _image_folder(folder: Path, part: str) -> Path:
    first, second = (folder / name for name in _FOLDERS[part])
    return second if second.is_dir() else first
