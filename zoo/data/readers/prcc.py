"""PRCC: persons who change their clothes.

    prcc/rgb/
        train/001/A_cropped_rgb001.jpg      identity 001, camera A
        val/001/B_cropped_rgb002.jpg        further images of the training identities
        test/A/034/...                      camera first; A is the gallery
        test/B/034/...                      queries in the clothes of the gallery
        test/C/034/...                      queries in other clothes

Yang et al., Person Re-identification by Contour Sketch under Moderate Clothing Change, TPAMI 2021. Cameras A, B and C
are 0, 1 and 2. The attribute clothes is "same" for the queries of B, "changed" for those of C, and "" elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, subfolders
from zoo.data.readers.base import Count, Published, Reader, Row, register

_CAMERAS = {"A": 0, "B": 1, "C": 2}
_CLOTHES = {"A": "", "B": "same", "C": "changed"}


@register
@dataclass(frozen=True)
class PRCC(Reader):
    """Reads PRCC. The images of val/ that show training identities are the split "closed"."""

    name = "prcc"
    layout = "rgb/{train,val}/<identity>/{A,B,C}*.jpg and rgb/test/{A,B,C}/<identity>/*.jpg"
    published = Published(
        "PRCC",
        # The three parts of the test are not confirmed at a source one by one.
        {"train+val+closed": Count(17_896 + 5_002, 150), "query+gallery": Count(10_800, 71)},
        origins=("prcc",),
    )

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        rgb = folder / "rgb"
        return (rgb / "train").is_dir() or any((rgb / "test" / name).is_dir() for name in _CAMERAS)

    def rows(self, files: Files) -> Iterator[Row]:
        rgb = files.place / "rgb"
        trained = {person.name for person in subfolders(rgb / "train")}
        unknown = {"clothes": ""}
        for part in ("train", "val"):
            for person in subfolders(rgb / part):
                split = "train" if part == "train" else "closed" if person.name in trained else "val"
                for path, name in files.images(person):
                    if name[0] in _CAMERAS:
                        yield Row(path, person.name, split, _CAMERAS[name[0]], attributes=unknown)
                    else:
                        files.skip("images whose name does not begin with A, B or C", path)
        for letter, camera in _CAMERAS.items():
            split, clothes = "gallery" if letter == "A" else "query", {"clothes": _CLOTHES[letter]}
            for person in subfolders(rgb / "test" / letter):
                for path, _ in files.images(person):
                    yield Row(path, person.name, split, camera, attributes=clothes)
