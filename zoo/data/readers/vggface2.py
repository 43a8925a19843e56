"""VGGFace2.

    vggface2/
        train/n000002/0001_01.jpg       identity, image and face in the image
        test/n000001/0001_01.jpg

Cao et al., VGGFace2: A Dataset for Recognising Faces across Pose and Age, FG 2018. No identity is in both folders.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, subfolders
from zoo.data.readers.base import Count, Published, Reader, Row, register

_IDENTITY, _IMAGE = re.compile(r"n\d{6}"), re.compile(r"\d+_\d+\.\w+")
_FOLDERS = ("train", "test")


@register
@dataclass(frozen=True)
class VGGFace2(Reader):
    """Reads VGGFace2, or one of its two parts where only that is there."""

    name = "vggface2"
    layout = "{train,test}/n000001/0001_01.jpg"
    published = Published(
        "VGGFace2", {"train+val": Count(None, 8_631), "test": Count(None, 500)}, origins=("vggface2",)
    )
    folder_per_identity = True

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        people = [person for split in _FOLDERS for person in subfolders(folder / split)[:3]]
        return any(_IDENTITY.fullmatch(person.name) for person in people)

    def rows(self, files: Files) -> Iterator[Row]:
        for split in _FOLDERS:
            for person in subfolders(files.place / split):
                if not _IDENTITY.fullmatch(person.name):
                    files.skip("folders whose name is not n and six digits", person.name)
                    continue
                for path, name in files.images(person):
                    if _IMAGE.fullmatch(name):
                        yield Row(path, person.name, split)
                    else:
                        files.skip("images whose name is not <image>_<face>", path)
