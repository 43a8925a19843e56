"""CUHK03 with its images extracted, under the new protocol (767 training and 700 test identities).

    cuhk03/
        images_detected/1_001_1_01.png      camera pair, person, view, image; also images_labeled/
        cuhk03_new_protocol_config_detected.mat, cuhk03_new_protocol_config_labeled.mat

Li et al., DeepReID: Deep Filter Pairing Neural Network for Person Re-Identification, CVPR 2014; protocol of Zhong et
al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. CUHK03-NP, which is distributed as
folders in the style of Market-1501, is read by the reader market1501.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.index import IdentityIndex
from zoo.data.readers import refuse
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
    prefix_of,
)

log = logging.getLogger(__name__)

LAYOUT = "images_{detected,labeled}/1_001_1_01.png beside cuhk03_new_protocol_config_{detected,labeled}.mat"
#: The counts of the detected boxes are not confirmed at a source.
PUBLISHED = {
    "labeled": {"train+val": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)},
    "detected": {"train+val": Count(None, 767), "query": Count(None, 700), "gallery": Count(None, 700)},
}

_RAW = "cuhk-03.mat"


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds the protocol, or the images still packed."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path,
    val_share: float = 0.1,
    test_share: float = 0.3,
    seed: int = 0,
    *,
    boxes: Literal["detected", "labeled"] = "detected",
) -> IdentityIndex:
    """Index CUHK03 under the new protocol.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.
        boxes: persons cut out by a detector, or by hand.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, images that are not extracted, or a protocol that is none.
    """
    folder = dataset_folder("cuhk03", root, _is_dataset)
    config, where = _config(folder, boxes), folder / f"images_{boxes}"
    if not where.is_dir():
        refuse("cuhk03", root, _how_to_extract(folder, boxes))
    if not config.is_file():
        refuse("cuhk03", root, f"{config.name} is missing; it is distributed with the new protocol.")
    skipped, files, prefix = Skipped(log, folder), Files(root), prefix_of(root, where)
    rows = []
    for name, identity, split in _protocol(config):
        fields = name.split("_")
        if len(fields) != 4 or not fields[2].isdigit():
            skipped.add("images whose name is not <pair>_<person>_<view>_<image>", name)
        elif prefix + name not in files:
            skipped.add("images of the protocol that are missing", prefix + name)
        else:
            rows.append(Row(prefix + name, f"{identity:04d}", split, int(fields[2]) - 1))
    skipped.report()
    index = build(root, hold_out(rows, val_share, seed), origins=("cuhk03",))
    compare(log, f"CUHK03, {boxes}, new protocol,", PUBLISHED[boxes], index)
    return index


def _protocol(config: Path) -> list[tuple[str, int, str]]:
    """(image, identity, split) of every image of the protocol; its rows count from 1."""
    from scipy.io import loadmat  # comes with scikit-learn
    from scipy.io.matlab import MatReadError

    try:
        mat: dict[str, Any] = loadmat(config)
        names = [str(np.ravel(cell)[0]) for cell in mat["filelist"].ravel()]
        labels = mat["labels"].ravel().astype(int).tolist()
        parts = {split: mat[f"{split}_idx"].ravel().astype(int) - 1 for split in ("train", "query", "gallery")}
        return [(names[i], labels[i], split) for split, rows in parts.items() for i in rows.tolist()]
    except (KeyError, ValueError, IndexError, NotImplementedError, TypeError, MatReadError) as error:
        raise ValueError(
            f"{config} is no protocol of CUHK03: {error}. It must hold filelist, labels, train_idx, query_idx and "
            "gallery_idx; get it again."
        ) from error


def _is_dataset(folder: Path) -> bool:
    named = [_config(folder, boxes) for boxes in ("detected", "labeled")]
    return any(path.is_file() for path in named) or _raw(folder) is not None


def _config(folder: Path, boxes: str) -> Path:
    """Beside the images, or where the release keeps it."""
    name = f"cuhk03_new_protocol_config_{boxes}.mat"
    inside = folder / "cuhk03_release" / name
    return inside if inside.is_file() else folder / name


def _raw(folder: Path) -> Path | None:
    return next((path for path in (folder / _RAW, folder / "cuhk03_release" / _RAW) if path.is_file()), None)


def _how_to_extract(folder: Path, boxes: str) -> str:
    if _raw(folder) is None:
        return f"images_{boxes}/ is missing."
    return (
        f"{_RAW} holds the images packed, as HDF5. Extract them to images_{boxes}/ with h5py, for camera pair p, "
        "person i and image k, all from 1, as {p}_{i:03d}_{v}_{k:02d}.png, where the view v is 1 for the first five "
        "images of a person and 2 for the others; or get CUHK03-NP, which is extracted, and read it with market1501."
    )
