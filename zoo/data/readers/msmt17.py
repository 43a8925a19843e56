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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from zoo.data.files import Files, lines_of
from zoo.data.readers.base import Count, Published, Reader, Row, listed, register

_FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
#: list -> folder its paths are in.
_LISTS = {"train": "train", "val": "train", "query": "test", "gallery": "test"}


@register
@dataclass(frozen=True)
class MSMT17(Reader):
    """Reads MSMT17.

    Args:
        train: which lists are trained on. Papers do either; with "train" alone, the images of list_val become the
            split "closed".
    """

    name = "msmt17"
    layout = "list_{train,val,query,gallery}.txt beside train/ and test/, or mask_train_v2/ and mask_test_v2/"
    published = Published(
        "MSMT17",
        {
            "train+val+closed": Count(32_621, None),
            "query": Count(11_659, None),
            "gallery": Count(82_161, None),
            "train+val+closed+query+gallery": Count(None, 4_101),
        },
        origins=("msmt17",),
    )

    train: Literal["train", "train+val"] = "train+val"

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        lists = any((folder / f"list_{name}.txt").is_file() for name in ("train", "query"))
        return lists and any(_image_folder(folder, part).is_dir() for part in _FOLDERS)

    def rows(self, files: Files) -> Iterator[Row]:
        for name, part in _LISTS.items():
            table = files.place / f"list_{name}.txt"
            if not table.is_file():
                files.skip("lists that are missing", table.name)
                continue
            split = name if part == "test" else "closed" if name == "val" and self.train == "train" else "train"
            parse = partial(_parse, files.prefix(_image_folder(files.place, part)), part, split)
            unusable = f"lines of {table.name} that are not <path> <identity>"
            yield from listed(files, table.name, lines_of(table), parse, unusable)


def _parse(prefix: str, part: str, split: str, line: str) -> Row | None:
    path, _, identity = line.rpartition(" ")
    fields = path.rsplit("/", 1)[-1].split("_")
    if not identity.isdigit() or len(fields) < 4 or not fields[2].isdigit():
        return None
    return Row(prefix + path, f"{part}_{int(identity):04d}", split, int(fields[2]) - 1)


def _image_folder(folder: Path, part: str) -> Path:
    first, second = (folder / name for name in _FOLDERS[part])
    return second if second.is_dir() else first
