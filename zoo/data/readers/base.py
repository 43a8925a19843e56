"""What every reader shares: the base class `Reader`, the rows it yields, and the registry of readers by name."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, NoReturn, TypeVar

import numpy as np

from zoo.data.files import Files, subfolders
from zoo.data.holdout import HoldOut
from zoo.data.index import NO_BOX, IdentityIndex, Pairs
from zoo.distributed import rank

log = logging.getLogger(__name__)

#: a folder of more folders than this is a dataset itself, not the parent of one.
_MOST_SIBLINGS = 100
#: the mark of a drawn world (`zoo.world`).
_DRAWN = "world.json"
#: the layout without a name of its own: it fits wherever folders hold images.
_GENERAL = "folder"

Box = tuple[float, float, float, float]


class Row(NamedTuple):
    """One image of an index.

    Args:
        path: posix path relative to the index's root.
        identity: name of the identity.
        split: one of `INDEX_SPLITS`; "" for an image whose identity is to be held out by seed, or trained on.
        camera: its number, -1 where there is none; or its name, "" where there is none: names are then numbered.
        category: the kind of thing, "" where unknown.
        box: x, y, w, h in pixels, -1 where there is none.
        attributes: what else is known of the image, by name.
    """

    path: str
    identity: str
    split: str = ""
    camera: int | str = -1
    category: str = ""
    box: Box = NO_BOX
    attributes: Mapping[str, str] = MappingProxyType({})


class Pair(NamedTuple):
    """Two images of a verification protocol, by path; fold 0 where the protocol has no folds."""

    first: str
    second: str
    same: bool
    fold: int = 0


class Count(NamedTuple):
    """Published size of a part of a dataset; None where it is not published."""

    images: int | None
    identities: int | None


class Published(NamedTuple):
    """What is published of a dataset.

    Args:
        dataset: its name in a sentence.
        counts: splits, joined by + where some images of one are given to another -> published size.
        origins: names of the collections that its images come from.
    """

    dataset: str = ""
    counts: Mapping[str, Count] = MappingProxyType({})
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader(ABC):
    """Turns the files of one published layout into an `IdentityIndex`.

    A subclass states its `name`, its `layout` and what is `published`, implements `is_dataset` and `rows`, and puts
    `@register` above `@dataclass(frozen=True)`. Its fields are the options of the reader. Finding the dataset in a
    folder, counting what is skipped, holding out identities and comparing with the published size are done here.
    """

    #: what `data.reader` calls it; the name of its module.
    name: ClassVar[str]
    #: a picture of the layout in one line.
    layout: ClassVar[str]
    published: ClassVar[Published] = Published()
    #: whether the layout is a folder for each identity, so that the reader `folder` may read it, too.
    folder_per_identity: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def is_dataset(cls, folder: Path) -> bool:
        """Whether this folder is the dataset's own; looks at names only."""

    @abstractmethod
    def rows(self, files: Files) -> Iterable[Row]:
        """The images. What cannot be used is counted by `files.skip`.

        Args:
            files: the files; `files.place` is the dataset's own folder.
        """

    # ------------------------------------------------------------------ what a subclass may refine

    @classmethod
    def fits(cls, root: Path) -> bool:
        """Whether `root`, or a folder in it, is such a dataset."""
        return bool(_candidates(root, cls.is_dataset))

    def locate(self, root: Path) -> Path:
        """The dataset's own folder.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no such dataset in it, or several.
        """
        return self.dataset_folder(root, self.is_dataset)

    def verification(self, files: Files, rows: list[Row]) -> Iterable[Pair]:
        """The pairs of a published verification protocol, both images of each among the rows."""
        return ()

    def assign_splits(self, rows: list[Row], hold_out: HoldOut) -> list[Row]:
        """Give identities without a split to train, val or test; else a share of the training identities to val,
        with the images of theirs that are kept out of training."""
        unsplit = [row.identity for row in rows if not row.split]
        if unsplit:
            kinds = hold_out.split(unsplit)
            return [row if row.split else row._replace(split=kinds[row.identity]) for row in rows]
        training = sorted({row.identity for row in rows if row.split == "train"})
        if not training or hold_out.val_share == 0:
            return rows
        kinds = replace(hold_out, test_share=0.0).split(training)
        held = {name for name, kind in kinds.items() if kind == "val"}
        return [
            row._replace(split="val") if row.identity in held and row.split in ("train", "closed") else row
            for row in rows
        ]

    def published_for(self, place: Path, rows: list[Row]) -> Published:
        """What is published of the part of the dataset that these rows are; without counts where it is a part only."""
        return self.published

    # ------------------------------------------------------------------ the frame

    def read(self, root: Path, hold_out: HoldOut = HoldOut()) -> IdentityIndex:  # noqa: B008  (frozen)
        """Index the dataset.

        Args:
            root: its folder, or the parent of it.
            hold_out: identities to validate and test on, where they are not published.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: another layout, or contents that are not as published.
        """
        files = Files(root, self.locate(root))
        try:
            rows = self.assign_splits(list(self.rows(files)), hold_out)
            pairs = list(self.verification(files, rows))
        finally:
            files.report_skipped()
        published = self.published_for(files.place, rows)
        # A drawn world only looks like the dataset: it has none of its images, hence not its origins and size.
        is_drawn = (root / _DRAWN).is_file()
        index = _index_of(root, rows, pairs, () if is_drawn else published.origins)
        if not is_drawn:
            _compare(published, index)
        return index

    @classmethod
    def dataset_folder(cls, root: Path, is_dataset: Callable[[Path], bool]) -> Path:
        """`root`, or the one folder in it that is the dataset.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no such dataset in it, or several.
        """
        found = _candidates(root, is_dataset)
        if not found:
            cls.refuse(root)
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise ValueError(
                f"{root} holds {len(found)} folders that the reader {cls.name} fits: {names}. Give one of them."
            )
        return found[0]

    @classmethod
    def refuse(cls, root: Path, reason: str = "") -> NoReturn:
        """Raise an error with the layout that this reader expects, what is there instead, and the readers that fit.

        Args:
            root: the folder that cannot be read.
            reason: why not, a sentence.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: any other case.
        """
        expected = f"The reader {cls.name} expects {cls.layout}."
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "does not exist"
            raise FileNotFoundError(f"No folder {root}: it {what}. {expected} Check the path.")
        names = sorted(f"{child.name}/" if child.is_dir() else child.name for child in root.iterdir())
        found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
        others = [name for name in fitting_readers(root) if name != cls.name]
        remedy = f"Readers that fit: {', '.join(others)}." if others else "No other reader fits either: check the path."
        parts = (f"{root} cannot be read.", reason, expected, f"Found: {found}.", remedy)
        raise ValueError(" ".join(filter(None, parts)))


def _candidates(root: Path, is_dataset: Callable[[Path], bool]) -> list[Path]:
    """`root` if it is such a dataset, else those of its folders that are."""
    if not root.is_dir():
        return []
    if is_dataset(root):
        return [root]
    children = subfolders(root)
    return [child for child in children if is_dataset(child)] if len(children) <= _MOST_SIBLINGS else []


# ---------------------------------------------------------------------- the registry

#: name -> reader.
READERS: dict[str, type[Reader]] = {}

R = TypeVar("R", bound=type[Reader])
Entry = TypeVar("Entry")


def register(reader: R) -> R:
    """Make a reader known by its name; a decorator.

    Raises:
        ValueError: another reader has this name.
    """
    if READERS.setdefault(reader.name, reader) is not reader:
        raise ValueError(f"There is a reader {reader.name!r} already: {READERS[reader.name]}. Choose another name.")
    return reader


def fitting_readers(root: Path) -> list[str]:
    """Names of the readers whose published layout is found in `root`; "folder" only where no other is."""
    if not root.is_dir():
        return []
    published = [name for name in sorted(READERS) if name != _GENERAL and _fits(name, root)]
    return published or ([_GENERAL] if _fits(_GENERAL, root) else [])


def choose_reader(root: Path) -> str:
    """Name of the reader whose layout is found in `root`, else "folder".

    Raises:
        ValueError: more than one fits.
    """
    fitting = fitting_readers(root)
    if len(fitting) > 1:
        raise ValueError(f"{root} fits the readers {', '.join(fitting)}. Name the one that is meant.")
    return fitting[0] if fitting else _GENERAL


def _fits(name: str, root: Path) -> bool:
    try:
        return READERS[name].fits(root)
    except OSError:  # a folder that must not be listed
        return False


# ---------------------------------------------------------------------- rows


def listed(
    files: Files, name: str, entries: Iterable[Entry], parse: Callable[[Entry], Row | None], unusable: str
) -> Iterator[Row]:
    """Rows of a list that names images; what cannot be used, is missing or was listed before is skipped.

    Args:
        files: of the dataset.
        name: of the list.
        entries: its lines, or whatever it holds.
        parse: an entry -> its row; None where it has none.
        unusable: entries without a row, as a noun phrase in the plural.
    """
    for entry in entries:
        row = parse(entry)
        if row is None:
            files.skip(unusable, entry)
        elif row.path not in files:
            files.skip(f"images of {name} that are missing", row.path)
        elif row.path in files.listed:
            files.skip("images that are listed again", row.path)
        else:
            files.listed.add(row.path)
            yield row


def _index_of(root: Path, rows: list[Row], pairs: list[Pair], origins: tuple[str, ...]) -> IdentityIndex:
    names = sorted({row.camera for row in rows if isinstance(row.camera, str)} - {""})
    number = {name: place for place, name in enumerate(names)}
    row_of = {row.path: place for place, row in enumerate(rows)} if pairs else {}
    attributes = dict.fromkeys(name for row in rows for name in row.attributes)
    return IdentityIndex.build(
        root,
        [row.path for row in rows],
        [row.identity for row in rows],
        [row.split for row in rows],
        [row.category for row in rows],
        [row.camera if isinstance(row.camera, int) else number.get(row.camera, -1) for row in rows],
        np.array([row.box for row in rows], dtype=np.float32) if any(row.box != NO_BOX for row in rows) else None,
        {name: np.array([row.attributes.get(name, "") for row in rows], dtype=str) for name in attributes},
        Pairs.build(
            [row_of[pair.first] for pair in pairs],
            [row_of[pair.second] for pair in pairs],
            [pair.same for pair in pairs],
            [pair.fold for pair in pairs],
        )
        if pairs
        else None,
        origins,
    )


def _compare(published: Published, index: IdentityIndex) -> None:
    """Warn where an index has another size than published: a subset, or an incomplete copy."""
    differences = []
    for part, count in published.counts.items():
        rows = index.rows(*part.split("+"))
        found = Count(len(rows), len(np.unique(index.identities[rows])))
        differences += [
            f"{part} {wanted:,} {what} (found {here:,})"
            for wanted, here, what in zip(count, found, Count._fields, strict=True)
            if wanted is not None and wanted != here
        ]
    if differences and rank() == 0:
        log.warning(
            "%s differs from what %s publishes: %s. Of a part or an incomplete copy, scores cannot be compared with "
            "published ones.",
            index.root,
            published.dataset,
            ", ".join(differences),
        )
