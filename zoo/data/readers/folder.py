"""A folder for each identity: what most people own.

    root/rex/1.jpg  root/rex/2.jpg  root/bella/1.jpg ...

Identities are split by seed; or root holds the folders train, val and test, each with a folder for each identity.
An `attributes.csv` in root (columns path, ... ) adds what else is known of the images.
"""

import csv
import os
from pathlib import Path

import numpy as np

from zoo.data.images import EXTENSIONS
from zoo.data.index import IdentityIndex, split_identities

_GIVEN_SPLITS = {"train", "val", "test"}


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index a folder of folders.

    Args:
        root: the folder.
        val_share: share of the identities to validate on, where root has no split of its own.
        test_share: share of the identities to test on, likewise.
        seed: which identities these are.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no identities with images.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Give --data.root a folder with one folder for each identity.")
    children = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not children:
        raise ValueError(
            f"{root} holds no folders. The folder reader expects one folder for each identity: {root}/rex/1.jpg ..."
        )
    if set(children) <= _GIVEN_SPLITS:
        found = [(path, name, split) for split in children for path, name in _identity_images(root, root / split)]
    elif "train" in children and _GIVEN_SPLITS & set(children) != {"train"}:
        strays = sorted(set(children) - _GIVEN_SPLITS)
        raise ValueError(
            f"{root} holds {', '.join(sorted(_GIVEN_SPLITS & set(children)))}, and also {', '.join(strays[:3])}. "
            "Keep either splits or identities at the top."
        )
    else:
        images = _identity_images(root, root)
        kinds = split_identities([name for _, name in images], val_share, test_share, seed) if images else {}
        found = [(path, name, kinds[name]) for path, name in images]
    if not found:
        raise ValueError(
            f"No image in any of the {len(children)} folders of {root}. "
            f"Known file endings: {', '.join(sorted(EXTENSIONS))}."
        )
    paths, names, splits = (list(column) for column in zip(*found, strict=True))
    attributes = _read_attributes(root / "attributes.csv", paths)
    return IdentityIndex.build(root, paths, names, splits, attributes=attributes)


def _identity_images(root: Path, folder: Path) -> list[tuple[str, str]]:
    """(path relative to root, identity) of every image, folders below an identity's included, in sorted order."""
    found = []
    for identity in sorted(child for child in folder.iterdir() if child.is_dir()):
        if identity.name.startswith("."):
            continue
        for parent, folders, files in os.walk(identity, followlinks=True):
            folders.sort()
            found += [
                (Path(parent, file).relative_to(root).as_posix(), identity.name)
                for file in sorted(files)
                if Path(file).suffix.lower() in EXTENSIONS and not file.startswith(".")
            ]
    return found


def _read_attributes(table: Path, paths: list[str]) -> dict[str, np.ndarray]:
    if not table.is_file():
        return {}
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "path" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{table} has no column path, only {reader.fieldnames}. Name the images in it, or remove it."
            )
        rows = {row.pop("path"): row for row in reader}
    missing = [path for path in paths if path not in rows]
    if missing:
        raise ValueError(
            f"{table} has no row for {len(missing)} images, such as {missing[0]}. Complete it, or remove it."
        )
    columns = [name for name in next(iter(rows.values())) if name not in ("identity", "x", "y", "w", "h")]
    return {name: np.array([rows[path][name] for path in paths]) for name in columns}
