"""A folder for each identity: what most people own.

    root/rex/1.jpg  root/rex/2.jpg  root/bella/1.jpg ...

Identities are split by seed; or root holds the folders train, val and test, each with a folder for each identity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, image_names, subfolders
from zoo.data.holdout import HoldOut
from zoo.data.images import EXTENSIONS
from zoo.data.readers.base import READERS, Reader, Row, fitting_readers, register

_GIVEN_SPLITS = {"train", "val", "test"}
_LOOK_AT = 20


@register
@dataclass(frozen=True)
class Folder(Reader):
    """Reads a folder of folders."""

    name = "folder"
    layout = "a folder for each identity, <identity>/<any>.jpg, perhaps below train/, val/ and test/"
    folder_per_identity = True

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        """Whether some folder in it, or in one of its folders, holds an image."""
        return any(
            image_names(child) or any(map(image_names, subfolders(child)[:1]))
            for child in subfolders(folder)[:_LOOK_AT]
        )

    @classmethod
    def fits(cls, root: Path) -> bool:
        """Whether `root` itself is such a folder; its parent is not accepted."""
        return cls.is_dataset(root)

    def locate(self, root: Path) -> Path:
        """
        Raises:
            FileNotFoundError: no such folder.
            ValueError: a folder without folders, or one that has a published layout.
        """
        if not root.is_dir():
            raise FileNotFoundError(f"No folder {root}. Give --data.root a folder with one folder for each identity.")
        if not all(READERS[name].folder_per_identity for name in fitting_readers(root)):
            self.refuse(root, "It has the layout of a published dataset, whose folders are not identities.")
        if not subfolders(root):
            raise ValueError(
                f"{root} holds no folders. The folder reader expects one folder for each identity: {root}/rex/1.jpg ..."
            )
        return root

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: splits beside identities, or no image.
        """
        root, empty = files.root, True
        children = {child.name for child in subfolders(root)}
        splits, others = sorted(children & _GIVEN_SPLITS), sorted(children - _GIVEN_SPLITS)
        if others and "train" in splits and len(splits) > 1:
            raise ValueError(
                f"{root} holds {', '.join(splits)}, and also {', '.join(others[:3])}. "
                "Keep either splits or identities at the top."
            )
        for split in [""] if others else splits:
            for identity in subfolders(root / split):
                for path in files.images_below(identity):
                    empty = False
                    yield Row(path, identity.name, split)
        if empty:
            raise ValueError(
                f"No image in any of the {len(children)} folders of {root}. "
                f"Known file endings: {', '.join(sorted(EXTENSIONS))}."
            )

    def assign_splits(self, rows: list[Row], hold_out: HoldOut) -> list[Row]:
        """Splits that are given stay as they are."""
        return rows if rows[0].split else super().assign_splits(rows, hold_out)
