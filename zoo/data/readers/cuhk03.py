"""CUHK03 with its images extracted, under the new protocol (767 training and 700 test identities).

    cuhk03/
        images_detected/1_001_1_01.png      camera pair, person, view, image; also images_labeled/
        cuhk03_new_protocol_config_detected.mat, cuhk03_new_protocol_config_labeled.mat

Li et al., DeepReID: Deep Filter Pairing Neural Network for Person Re-Identification, CVPR 2014; protocol of Zhong et
al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. CUHK03-NP, which is distributed as
folders in the style of Market-1501, is read by the reader market1501.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.files import Files
from zoo.data.readers.base import Count, Published, Reader, Row, register

#: The counts of the detected boxes are not confirmed at a source.
_COUNTS = {
    "labeled": {"train+val": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)},
    "detected": {"train+val": Count(None, 767), "query": Count(None, 700), "gallery": Count(None, 700)},
}
_RAW = "cuhk-03.mat"


@register
@dataclass(frozen=True)
class CUHK03(Reader):
    """Reads CUHK03 under the new protocol.

    Args:
        boxes: persons cut out by a detector, or by hand.
    """

    name = "cuhk03"
    layout = "images_{detected,labeled}/1_001_1_01.png beside cuhk03_new_protocol_config_{detected,labeled}.mat"

    boxes: Literal["detected", "labeled"] = "detected"

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        """The images may still be packed."""
        named = [_config(folder, boxes) for boxes in _COUNTS]
        return any(path.is_file() for path in named) or _raw(folder) is not None

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: images that are not extracted, or a protocol that is none.
        """
        config, where = _config(files.place, self.boxes), files.place / f"images_{self.boxes}"
        if not where.is_dir():
            self.refuse(files.root, _how_to_extract(files.place, self.boxes))
        if not config.is_file():
            self.refuse(files.root, f"{config.name} is missing; it is distributed with the new protocol.")
        prefix = files.prefix(where)
        for name, identity, split in _protocol(config):
            fields = name.split("_")
            if len(fields) != 4 or not fields[2].isdigit():
                files.skip("images whose name is not <pair>_<person>_<view>_<image>", name)
            elif prefix + name not in files:
                files.skip("images of the protocol that are missing", prefix + name)
            else:
                yield Row(prefix + name, f"{identity:04d}", split, int(fields[2]) - 1)

    def published_for(self, place: Path, rows: list[Row]) -> Published:
        return Published(f"CUHK03, {self.boxes}, new protocol,", _COUNTS[self.boxes], origins=("cuhk03",))


def _protocol(config: Path) -> list[tuple[str, int, str]]:
    """(image, identity, split) of every image of the protocol; its rows count from 1."""
    from scipy.io import loadmat  # comes with scikit-learn
    from scipy.io.matlab import MatReadError

    try:
        mat: dict[str, np.ndarray] = loadmat(config)
        names = [str(np.ravel(cell)[0]) for cell in mat["filelist"].ravel()]
        labels = mat["labels"].ravel().astype(int).tolist()
        parts = {split: mat[f"{split}_idx"].ravel().astype(int) - 1 for split in ("train", "query", "gallery")}
        return [(names[i], labels[i], split) for split, rows in parts.items() for i in rows.tolist()]
    except (KeyError, ValueError, IndexError, NotImplementedError, TypeError, MatReadError) as error:
        raise ValueError(
            f"{config} is no protocol of CUHK03: {error}. It must hold filelist, labels, train_idx, query_idx and "
            "gallery_idx; get it again."
        ) from error


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
