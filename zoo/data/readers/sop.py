"""Stanford Online Products.

    Stanford_Online_Products/
        Ebay_train.txt, Ebay_test.txt       image_id class_id super_class_id path
            1 1 1 bicycle_final/111085122871_0.JPG
        bicycle_final/111085122871_0.JPG

Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016. A class is one product; the
category is its super class. Every test image is both query and gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zoo.data.files import Files, lines_of
from zoo.data.readers.base import Count, Published, Reader, Row, listed, register

_LISTS = ("train", "test")
_SUFFIX = "_final"


@register
@dataclass(frozen=True)
class StanfordOnlineProducts(Reader):
    """Reads Stanford Online Products."""

    name = "sop"
    layout = "Ebay_train.txt, Ebay_test.txt and <category>_final/*.JPG"
    published = Published(
        "Stanford Online Products",
        {"train+val": Count(59_551, 11_318), "test": Count(60_502, 11_316)},
        origins=("sop",),
    )

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        return any((folder / f"Ebay_{split}.txt").is_file() for split in _LISTS)

    def rows(self, files: Files) -> Iterator[Row]:
        prefix = files.prefix(files.place)
        for split in _LISTS:
            table = files.place / f"Ebay_{split}.txt"
            if not table.is_file():
                files.skip("lists that are missing", table.name)
                continue
            unusable = f"lines of {table.name} that are not <image> <class> <super class> <path>"
            yield from listed(files, table.name, lines_of(table)[1:], partial(_parse, prefix, split), unusable)


def _parse(prefix: str, split: str, line: str) -> Row | None:
    fields = line.split(maxsplit=3)
    if len(fields) != 4 or not fields[1].isdigit():
        return None
    category = fields[3].partition("/")[0].removesuffix(_SUFFIX)
    return Row(prefix + fields[3], f"{int(fields[1]):05d}", split, category=category)
