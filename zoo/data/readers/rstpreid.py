"""RSTPReid.

    RSTPReid/
        imgs/0000_c14_0031.jpg      identity 0, camera 14
        data_captions.json          a list of
            {"id": 0, "img_path": "0000_c14_0031.jpg", "captions": [...], "split": "train"}

Zhu et al., DSSL: Deep Surroundings-person Separation Learning for Text-based Person Retrieval, ACM MM 2021. Its images
are those of MSMT17, in another split: trained on the one, a model must not be tested on the other.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zoo.data.files import Files, text_of
from zoo.data.holdout import HoldOut
from zoo.data.readers.base import Count, Published, Reader, Row, listed, register

_TABLE = "data_captions.json"
_CAMERA = re.compile(r"\d+_c(\d+)")


@register
@dataclass(frozen=True)
class RSTPReid(Reader):
    """Reads RSTPReid."""

    name = "rstpreid"
    layout = "imgs/0000_c14_0031.jpg and data_captions.json, a list of {id, img_path, captions, split}"
    published = Published(
        "RSTPReid",
        {
            "train+val+test": Count(20_505, 4_101),
            "train": Count(None, 3_701),
            "val": Count(None, 200),
            "test": Count(None, 200),
        },
        origins=("rstpreid", "msmt17"),
    )

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        return (folder / _TABLE).is_file() and (folder / "imgs").is_dir()

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: a table that is not a list in JSON.
        """
        parse = partial(_parse, files.prefix(files.place / "imgs"))
        unusable = f"entries of {_TABLE} without id, a split, or a path with a camera"
        return listed(files, _TABLE, _entries(files.place / _TABLE), parse, unusable)

    def assign_splits(self, rows: list[Row], hold_out: HoldOut) -> list[Row]:
        """All three splits are published."""
        return rows


def _entries(table: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text_of(table))
    except json.JSONDecodeError as error:
        raise ValueError(f"{table} is not JSON: {error}. Get it again.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{table} holds a {type(entries).__name__}, not a list of images. Get it again.")
    return entries


def _parse(prefix: str, entry: dict[str, Any]) -> Row | None:
    try:
        identity, path, split = int(entry["id"]), str(entry["img_path"]), entry["split"]
    except (KeyError, TypeError, ValueError):
        return None
    camera = _CAMERA.match(path.rsplit("/", 1)[-1])
    if camera is None or split not in ("train", "val", "test"):
        return None
    return Row(prefix + path, f"{identity:04d}", split, int(camera[1]) - 1)
