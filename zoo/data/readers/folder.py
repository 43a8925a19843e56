"""A folder for each identity: what most people own.

    root/rex/1.jpg  root/rex/2.jpg  root/bella/1.jpg ...

Identities are split by seed; or root holds the folders train, val and test, each with a folder for each identity.
"""

import os
from pathlib import Path

from zoo.data.images import EXTENSIONS
from zoo.data.index import IdentityIndex, split_identities
from zoo.data.readers import fitting_readers, refuse
from zoo.data.readers._layout import images_below, is_image, subfolders

LAYOUT = "a folder for each identity, <identity>/<any>.jpg, perhaps below train/, val/ and test/"

_GIVEN_SPLITS = {"train", "val", "test"}
#: published layouts that are folders of identities too.
_FOLDERS_TOO = {"folder", "vggface2"}
_LOOK_AT = 20


def fits(root: Path) -> bool:
    """Whether some folder in `root`, or in one of its folders, holds an image."""
    return any(
        _has_image(child) or any(map(_has_image, subfolders(child)[:1])) for child in subfolders(root)[:_LOOK_AT]
    )


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index a folder of folders.

    Args:
        root: the folder.
        val_share: share of the identities to validate on, where root has no split of its own.
        test_share: share of the identities to test on, likewise.
        seed: which identities these are.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no identities with images, or that has a published layout.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Give --data.root a folder with one folder for each identity.")
    children = [child.name for child in subfolders(root)]
    if not set(fitting_readers(root)) <= _FOLDERS_TOO:
        refuse("folder", root, "It has the layout of a published data set, whose folders are not identities.")
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
        named = _identity_images(root, root)
        kinds = split_identities([name for _, name in named], val_share, test_share, seed) if named else {}
        found = [(path, name, kinds[name]) for path, name in named]
    if not found:
        raise ValueError(
            f"No image in any of the {len(children)} folders of {root}. "
            f"Known file endings: {', '.join(sorted(EXTENSIONS))}."
        )
    paths, names, splits = (list(column) for column in zip(*found, strict=True))
    return IdentityIndex.build(root, paths, names, splits)


def _identity_images(root: Path, folder: Path) -> list[tuple[str, str]]:
    """(path relative to root, identity) of every image, folders below an identity's included, in sorted order."""
    return [(path, identity.name) for identity in subfolders(folder) for path in images_below(root, identity)]


def _has_image(folder: Path) -> bool:
    return any(is_image(name) for name in os.listdir(folder))
