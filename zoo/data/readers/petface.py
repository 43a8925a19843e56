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

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, lines_of, subfolders
from zoo.data.holdout import HoldOut
from zoo.data.readers.base import Count, Pair, Published, Reader, Row, register
from zoo.data.readers.table import rows_of

FAMILIES = (
    "cat", "chimp", "chinchilla", "degus", "dog", "ferret", "guineapig", "hamster", "hedgehog", "javasparrow",
    "parakeet", "pig", "rabbit",
)  # fmt: skip

_LISTS = {"train.csv": "train", "val.txt": "val", "test.txt": "test", "reidentification.csv": "closed"}


@register
@dataclass(frozen=True)
class PetFace(Reader):
    """Reads PetFace, its families joined. Identities are held out for val only where there is no val.txt.

    Args:
        families: read these only.
    """

    name = "petface"
    layout = "images/<family>/<6 digits>/<2 digits>.png and split/<family>/{train.csv, val.txt, test.txt, ...}"
    #: Over all families; whether the lists name every image is not confirmed at a source.
    published = Published("PetFace", {"train+val+test+closed": Count(None, 257_484)}, origins=("petface",))

    families: list[str] | None = None

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        lists = [place / name for place in subfolders(folder / "split") for name in _LISTS]
        return (folder / "images").is_dir() and any(path.is_file() for path in lists)

    def rows(self, files: Files) -> Iterator[Row]:
        """
        Raises:
            ValueError: a family that is not there.
        """
        there = [place.name for place in subfolders(files.place / "split")]
        unknown = sorted(set(self.families or ()) - set(there))
        if unknown:
            raise ValueError(f"{files.place} has no family {unknown[0]!r}. It has {', '.join(there)}.")
        for family in there if self.families is None else sorted(set(self.families)):
            yield from _family(files, family)

    def assign_splits(self, rows: list[Row], hold_out: HoldOut) -> list[Row]:
        return rows if any(row.split == "val" for row in rows) else super().assign_splits(rows, hold_out)

    def verification(self, files: Files, rows: list[Row]) -> Iterator[Pair]:
        prefix, known = files.prefix(files.place / "images"), {row.path for row in rows}
        for family in sorted({row.category for row in rows}):
            for first, second, label in _pairs(files.place / "split" / family / "verification.csv"):
                parsed = [_row(prefix, path, family, "test") for path in (first, second)]
                paths = [row.path for row in parsed if row is not None and row.path in known]
                if label not in ("0", "1"):
                    files.skip("pairs of verification.csv whose label is not 0 or 1", f"{first},{second},{label}")
                elif len(paths) < 2:
                    files.skip("pairs of verification.csv with an image that is missing", f"{first},{second}")
                else:
                    yield Pair(paths[0], paths[1], label == "1")

    def published_for(self, place: Path, rows: list[Row]) -> Published:
        return self.published if {row.category for row in rows} >= set(FAMILIES) else self.published._replace(counts={})


def _family(files: Files, family: str) -> list[Row]:
    """The rows of one family, those that only the pairs name included."""
    lists, prefix = files.place / "split" / family, files.prefix(files.place / "images")
    rows: dict[str, Row] = {}
    trained: set[str] = set()
    for name, split in _LISTS.items():
        for path in _paths(lists / name):
            row = _row(prefix, path, family, split)
            if row is None:
                files.skip(f"lines of {name} that are not <family>/<identity>/<image>", path)
            elif row.path not in files:
                files.skip(f"images of {name} that are missing", path)
            elif split == "val" and row.identity in trained:
                files.skip("images of val.txt that show training identities", path)
            elif row.path in rows:
                files.skip("images that are listed again", path)
            else:
                rows[row.path] = row
                if split == "train":
                    trained.add(row.identity)
    for path in (path for pair in _pairs(lists / "verification.csv") for path in pair[:2]):
        row = _row(prefix, path, family, "test")
        if row is not None and row.path in files:
            rows.setdefault(row.path, row)
    return list(rows.values())


def _paths(table: Path) -> Iterator[str]:
    """The paths that a list names; none where there is no such list."""
    if not table.is_file():
        return
    if table.suffix == ".csv":
        yield from (row.get("filename", "") for row in rows_of(table))
    else:
        yield from lines_of(table)


def _pairs(table: Path) -> Iterator[tuple[str, str, str]]:
    """(path, path, label) of every pair; none where there is no such table."""
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
