"""VGGFace2.

    vggface2/
        train/n000002/0001_01.jpg       identity, image and face in the image
        test/n000001/0001_01.jpg

Cao et al., VGGFace2: A Dataset for Recognising Faces across Pose and Age, FG 2018. No identity is in both folders.
"""

import logging
import re
from pathlib import Path

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

LAYOUT = "{train,test}/n000001/0001_01.jpg"
PUBLISHED = {"train+val": Count(None, 8_631), "test": Count(None, 500)}

_IDENTITY, _IMAGE = re.compile(r"n\d{6}"), re.compile(r"\d+_\d+\.\w+")
_SPLITS = ("train", "test")


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds train or test with an identity's folder."""
    return bool(candidates(root, _is_dataset))


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index VGGFace2, or one of its two parts where only that is there.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout.
    """
    folder = dataset_folder("vggface2", root, _is_dataset)
    skipped = Skipped(log, folder)
    rows = []
    for split in _SPLITS:
        for person in subfolders(folder / split):
            if not _IDENTITY.fullmatch(person.name):
                skipped.add("folders whose name is not n and six digits", person.name)
                continue
            for path, name in images(root, person):
                if _IMAGE.fullmatch(name):
                    rows.append(Row(path, person.name, split))
                else:
                    skipped.add("images whose name is not <image>_<face>", path)
    skipped.report()
    index = build(root, hold_out(rows, val_share, seed), origins=("vggface2",))
    compare(log, "VGGFace2", PUBLISHED, index)
    return index


def _is_dataset(folder: Path) -> bool:
    people = [person for split in _SPLITS for person in subfolders(folder / split)[:3]]
    return any(_IDENTITY.fullmatch(person.name) for person in people)
