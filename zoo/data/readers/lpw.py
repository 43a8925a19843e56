"""Labeled Pedestrian in the Wild.

    pep_256x128/
        scen1/view1/12/0001.jpg     scene, view (the camera), identity; also below data_slim/
        scen2/...  scen3/...

Song et al., Region-based Quality Estimation Network for Large-scale Person Re-identification, AAAI 2018. Identities
are numbered anew in every scene and shared by its views. Scenes 2 and 3 are trained on; of scene 1, view 2 is the query
and the others are the gallery.
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

LAYOUT = "scen{1,2,3}/view<n>/<identity>/<number>.jpg, perhaps below data_slim/"
PUBLISHED = {
    "train+val": Count(418_739, 1_975),
    "query": Count(63_118, None),
    "gallery": Count(108_690, None),
}

_SCENE, _VIEW, _IMAGE = re.compile(r"scen([123])"), re.compile(r"view(\d+)"), re.compile(r"\d+\.\w+")
_TEST_SCENE, _QUERY_VIEW = 1, 2
_SLIM = "data_slim"


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds a folder of a scene with a view."""
    return bool(candidates(root, _is_dataset))


def read(root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0) -> IdentityIndex:
    """Index LPW.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout.
    """
    folder = dataset_folder("lpw", root, _is_dataset)
    skipped = Skipped(log, folder)
    rows = []
    for scene, view, where in _views(_inner(folder)):
        split = "train" if scene != _TEST_SCENE else "query" if view == _QUERY_VIEW else "gallery"
        for person in subfolders(where):
            for path, name in images(root, person):
                if _IMAGE.fullmatch(name):
                    rows.append(Row(path, f"scen{scene}/{person.name}", split, 10 * scene + view))
                else:
                    skipped.add("images whose name is not a number", path)
    skipped.report()
    index = build(root, hold_out(rows, val_share, seed), origins=("lpw",))
    compare(log, "LPW", PUBLISHED, index)
    return index


def _views(folder: Path) -> list[tuple[int, int, Path]]:
    """(scene, view, folder)"""
    found = []
    for scene in subfolders(folder):
        if matched := _SCENE.fullmatch(scene.name):
            views = [(_VIEW.fullmatch(view.name), view) for view in subfolders(scene)]
            found += [(int(matched[1]), int(match[1]), view) for match, view in views if match]
    return found


def _is_dataset(folder: Path) -> bool:
    return bool(_views(_inner(folder)))


def _inner(folder: Path) -> Path:
    return folder / _SLIM if (folder / _SLIM).is_dir() else folder
