"""PetFace: aligned faces of pets and other animals, in 13 families.

    PetFace/
        images/cat/000000/00.png
        split/cat/
            train.csv               filename,label      cat/000000/00.png,0
            val.txt, test.txt       a path in each line
            reidentification.csv    filename,label      new images of training identities
            verification.csv        filename1,filename2,label       1: one identity, 0: two

Shinoda and Shiohara, PetFace: A Large-Scale Dataset and Benchmark for Animal Identification, ECCV 2024. Labels begin
at 0 in every family; an identity is named by its folder here, cat/000000, and its category is the family.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from zoo.data.index import IdentityIndex, Pairs
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
    lines_of,
    prefix_of,
    subfolders,
)
from zoo.data.readers._table import rows_of

log = logging.getLogger(__name__)

LAYOUT = "images/<family>/<6 digits>/<2 digits>.png and split/<family>/{train.csv, val.txt, test.txt, ...}"
#: over all families; whether the lists name every image is not confirmed at a source.
PUBLISHED = {"train+val+test+closed": Count(None, 257_484)}
FAMILIES = (
    "cat", "chimp", "chinchilla", "degus", "dog", "ferret", "guineapig", "hamster", "hedgehog", "javasparrow",
    "parakeet", "pig", "rabbit",
)  # fmt: skip

_LISTS = {"train.csv": "train", "val.txt": "val", "test.txt": "test", "reidentification.csv": "closed"}


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds images/ and split/ with a family's lists."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path,
    val_share: float = 0.1,
    test_share: float = 0.3,
    seed: int = 0,
    *,
    families: list[str] | None = None,
) -> IdentityIndex:
    """Index PetFace, its families joined.

    Args:
        root: the data set's folder, or its parent.
        val_share: share of the training identities to validate on, where there is no val.txt.
        test_share: not used: the test identities are published.
        seed: which identities are validated on.
        families: read these only.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, or a family that is not there.
    """
    folder = dataset_folder("petface", root, _is_dataset)
    there = [place.name for place in subfolders(folder / "split")]
    unknown = sorted(set(families or ()) - set(there))
    if unknown:
        raise ValueError(f"{folder} has no family {unknown[0]!r}. It has {', '.join(there)}.")
    skipped, files = Skipped(log, folder), Files(root)
    rows: list[Row] = []
    for family in there if families is None else sorted(set(families)):
        rows += _family(root, folder, family, files, skipped)
    if not any(row.split == "val" for row in rows):
        rows = hold_out(rows, val_share, seed)
    pairs = _verification(root, folder, rows, skipped)
    skipped.report()
    index = build(root, rows, pairs=pairs, origins=("petface",))
    if set(FAMILIES) <= {row.category for row in rows}:
        compare(log, "PetFace", PUBLISHED, index)
    return index


def _family(root: Path, folder: Path, family: str, files: Files, skipped: Skipped) -> list[Row]:
    """The rows of one family, those that only the pairs name included."""
    lists, prefix = folder / "split" / family, prefix_of(root, folder / "images")
    rows: dict[str, Row] = {}
    trained: set[str] = set()
    for name, split in _LISTS.items():
        for path in _paths(lists / name):
            row = _row(prefix, path, family, split)
            if row is None:
                skipped.add(f"lines of {name} that are not <family>/<identity>/<image>", path)
            elif row.path not in files:
                skipped.add(f"images of {name} that are missing", path)
            elif split == "val" and row.identity in trained:
                skipped.add("images of val.txt that show training identities", path)
            elif row.path in rows:
                skipped.add("images that are listed again", path)
            else:
                rows[row.path] = row
                if split == "train":
                    trained.add(row.identity)
    for path in (path for pair in _pairs(lists / "verification.csv") for path in pair[:2]):
        row = _row(prefix, path, family, "test")
        if row is not None and row.path in files:
            rows.setdefault(row.path, row)
    return list(rows.values())


def _verification(root: Path, folder: Path, rows: list[Row], skipped: Skipped) -> Pairs | None:
    prefix, row_of = prefix_of(root, folder / "images"), {row.path: number for number, row in enumerate(rows)}
    found = []
    for family in sorted({row.category for row in rows}):
        for first, second, label in _pairs(folder / "split" / family / "verification.csv"):
            parsed = [_row(prefix, path, family, "test") for path in (first, second)]
            places = [row_of.get(row.path) if row is not None else None for row in parsed]
            if label not in ("0", "1"):
                skipped.add("pairs of verification.csv whose label is not 0 or 1", f"{first},{second},{label}")
            elif places[0] is None or places[1] is None:
                skipped.add("pairs of verification.csv with an image that is missing", f"{first},{second}")
            else:
                found.append((places[0], places[1], label == "1"))
    return Pairs.build(*zip(*found, strict=True)) if found else None


def _paths(table: Path) -> Iterator[str]:
    """The paths that a list names; none where there is no such list."""
    if not table.is_file():
        return
    if table.suffix == ".csv":
        yield from (row.get("filename", "") for row in rows_of(table))
    else:
        yield from lines_of(table)


def _pairs(table: Path) -> Iterator[tuple[str, str, str]]:
    if table.is_file():
        for row in rows_of(table):
            yield row.get("filename1", ""), row.get("filename2", ""), row.get("label", "").strip()


def _row(prefix: str, path: str, family: str, split: str) -> Row | None:
    """`cat/000000/00.png`, or `000000/00.png`, in the lists of cat."""
    parts = path.split("/")
    if len(parts) == 3 and parts[0] == family:
        parts = parts[1:]
    if len(parts) != 2 or not parts[0].isdigit():
        return None
    identity, image = parts
    return Row(f"{prefix}{family}/{identity}/{image}", f"{family}/{identity}", split, category=family)


def _is_dataset(folder: Path) -> bool:
    lists = [place / name for place in subfolders(folder / "split") for name in _LISTS]
    return (folder / "images").is_dir() and any(path.is_file() for path in lists)
