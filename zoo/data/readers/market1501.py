"""Market-1501, and the data sets distributed in its style: DukeMTMC-reID, CUHK03-NP.

    Market-1501-v15.09.15/
        bounding_box_train/0002_c1s1_000451_03.jpg     identity 2, camera 1
        query/0001_c1s1_001051_00.jpg
        bounding_box_test/0001_c1s1_001051_01.jpg      the gallery; -1_... is junk, 0000_... shows no one in particular
        images/...                                     500,000 distractors, distributed apart

Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015. DukeMTMC-reID has the same folders under
`DukeMTMC-reID/`, CUHK03-NP has them under `cuhk03-np/detected/` and `cuhk03-np/labeled/`, as PNG.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

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
    images_below,
)

log = logging.getLogger(__name__)

LAYOUT = "bounding_box_train/, query/ and bounding_box_test/ with images such as 0001_c1s1_001051_00.jpg"
PUBLISHED = {
    "Market-1501": {
        "train+val": Count(12_936, 751),
        "query": Count(3_368, 750),
        "gallery": Count(15_913, 751),  # 13,115 of the queries' 750 identities, and 2,798 distractors as one more
    },
    "DukeMTMC-reID": {"train+val": Count(16_522, None), "query": Count(2_228, None), "gallery": Count(17_661, None)},
    # The counts of the detected boxes are not confirmed at a source.
    "CUHK03-NP labeled": {"train+val": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)},
}

_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_NAME = re.compile(r"(-?\d+)_c(\d+)")
_CUHK03_BOXES = ("detected", "labeled")
_JUNK = -1
_DISTRACTOR = "0000"


class _Kind(NamedTuple):
    dataset: str
    origin: str


#: part of the folder's name, in lower case -> which data set it is.
_KINDS = {
    "market": _Kind("Market-1501", "market1501"),
    "duke": _Kind("DukeMTMC-reID", "dukemtmc"),
    "cuhk03": _Kind("CUHK03-NP", "cuhk03"),
}


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds bounding_box_train and another of the three folders."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0, *, distractors: bool = False
) -> IdentityIndex:
    """Index a data set in the style of Market-1501.

    Identity -1 is dropped. Identity 0 stays in the gallery as "0000", which no query shows.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.
        distractors: add the images of the folder images/ to the gallery, as "0000" whatever their names say.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, or distractors that are not there.
    """
    folder = dataset_folder("market1501", root, _is_dataset)
    skipped = Skipped(log, folder)
    rows = []
    for name, split in _FOLDERS.items():
        for path, image in images(root, folder / name):
            match = _NAME.match(image)
            if match is None:
                skipped.add(f"images of {name}/ whose name is not <identity>_c<camera>", image)
            elif int(match[1]) != _JUNK:
                rows.append(Row(path, f"{int(match[1]):04d}", split, int(match[2]) - 1))
    if distractors:
        rows += _distractors(root, folder)
    skipped.report()
    kind = _kind_of(folder)
    index = build(root, hold_out(rows, val_share, seed), origins=(kind.origin,) if kind else ())
    if kind and not distractors:
        dataset = f"{kind.dataset} {folder.name}" if folder.name in _CUHK03_BOXES else kind.dataset
        compare(log, dataset, PUBLISHED.get(dataset, {}), index)
    return index


def _is_dataset(folder: Path) -> bool:
    there = [(folder / name).is_dir() for name in _FOLDERS]
    return there[0] and any(there[1:])


def _kind_of(folder: Path) -> _Kind | None:
    folder = folder.absolute()
    name = (folder.parent if folder.name in _CUHK03_BOXES else folder).name.lower()
    return next((kind for part, kind in _KINDS.items() if part in name), None)


def _distractors(root: Path, folder: Path) -> list[Row]:
    found = images_below(root, folder / "images")
    if not found:
        raise ValueError(
            f"{folder} has no images in images/, where the 500,000 distractors belong. "
            "Unpack them there, or leave out the option distractors."
        )
    cameras = (_NAME.match(path.rsplit("/", 1)[-1]) for path in found)
    return [
        Row(path, _DISTRACTOR, "gallery", int(camera[2]) - 1 if camera else -1)
        for path, camera in zip(found, cameras, strict=True)
    ]
