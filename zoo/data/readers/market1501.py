"""Market-1501, and the datasets distributed in its style: DukeMTMC-reID, CUHK03-NP.

    Market-1501-v15.09.15/
        bounding_box_train/0002_c1s1_000451_03.jpg     identity 2, camera 1
        query/0001_c1s1_001051_00.jpg
        bounding_box_test/0001_c1s1_001051_01.jpg      the gallery; -1_... is junk, 0000_... shows no one in particular
        images/...                                     500,000 distractors, distributed apart

Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015. DukeMTMC-reID has the same folders under
`DukeMTMC-reID/`, CUHK03-NP has them under `cuhk03-np/detected/` and `cuhk03-np/labeled/`, as PNG.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files
from zoo.data.readers.base import Count, Published, Reader, Row, register

#: part of the folder's name, in lower case -> which dataset it is.
_KINDS = {
    "market": Published(
        "Market-1501",
        {
            "train+val": Count(12_936, 751),
            "query": Count(3_368, 750),
            "gallery": Count(15_913, 751),  # 13,115 of the queries' 750 identities, and 2,798 distractors as one more
        },
        origins=("market1501",),
    ),
    "duke": Published(
        "DukeMTMC-reID",
        {"train+val": Count(16_522, None), "query": Count(2_228, None), "gallery": Count(17_661, None)},
        origins=("dukemtmc",),
    ),
    "cuhk03": Published("CUHK03-NP", origins=("cuhk03",)),
}
#: Boxes of CUHK03-NP -> counts; those of the detected boxes are not confirmed at a source.
_CUHK03_BOXES: Mapping[str, Mapping[str, Count]] = {
    "detected": {},
    "labeled": {"train+val": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)},
}

_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_NAME = re.compile(r"(-?\d+)_c(\d+)")
_JUNK = -1
_DISTRACTOR = "0000"


@register
@dataclass(frozen=True)
class Market1501(Reader):
    """Reads a dataset in the style of Market-1501.

    Identity -1 is dropped. Identity 0 stays in the gallery as "0000", which no query shows.

    Args:
        distractors: add the images of the folder images/ to the gallery, as "0000" whatever their names are.
    """

    name = "market1501"
    layout = "bounding_box_train/, query/ and bounding_box_test/ with images such as 0001_c1s1_001051_00.jpg"

    distractors: bool = False

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        there = [(folder / name).is_dir() for name in _FOLDERS]
        return there[0] and any(there[1:])

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: distractors that are not there.
        """
        for name, split in _FOLDERS.items():
            for path, image in files.images(files.place / name):
                match = _NAME.match(image)
                if match is None:
                    files.skip(f"images of {name}/ whose name is not <identity>_c<camera>", image)
                elif int(match[1]) != _JUNK:
                    yield Row(path, f"{int(match[1]):04d}", split, int(match[2]) - 1)
        if self.distractors:
            yield from _distractors(files)

    def published_for(self, place: Path, rows: list[Row]) -> Published:
        """The dataset is known by the name of its folder; CUHK03-NP by that of the folder of its two kinds of boxes."""
        place = place.absolute()
        boxes = place.name if place.name in _CUHK03_BOXES else None
        folder = (place.parent if boxes else place).name.lower()
        published = next((kind for part, kind in _KINDS.items() if part in folder), Published())
        if boxes:
            counts = _CUHK03_BOXES[boxes] if published.origins == ("cuhk03",) else {}
            published = published._replace(dataset=f"{published.dataset} {boxes}", counts=counts)
        return published._replace(counts={}) if self.distractors else published


def _distractors(files: Files) -> Iterator[Row]:
    found = files.images_below(files.place / "images")
    if not found:
        raise ValueError(
            f"{files.place} has no images in images/, where the 500,000 distractors belong. "
            "Unpack them there, or leave out the option distractors."
        )
    for path in found:
        camera = _NAME.match(path.rsplit("/", 1)[-1])
        yield Row(path, _DISTRACTOR, "gallery", int(camera[2]) - 1 if camera else -1)
