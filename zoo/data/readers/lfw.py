"""Labeled Faces in the Wild: pairs to verify.

    lfw/
        lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg    any name: lfw, lfw-deepfunneled, ...
        pairs.txt                                   here, or among the people; also pairsDevTest.txt, pairsDevTrain.txt

The first line of pairs.txt, `10<tab>300`, says ten folds of 300 pairs of one person and 300 of two. Each fold lists
the former as `name<tab>1<tab>4`, then the latter as `name<tab>1<tab>other<tab>2`. The development tables have a single
number and no folds.

Huang et al., Labeled Faces in the Wild, technical report 07-49, University of Massachusetts, Amherst, 2007.
"""

import logging
import re
from pathlib import Path

from zoo.data.index import IdentityIndex, Pairs
from zoo.data.readers._layout import (
    Count,
    Row,
    Skipped,
    build,
    candidates,
    compare,
    dataset_folder,
    images,
    lines_of,
    subfolders,
)
from zoo.distributed import rank

log = logging.getLogger(__name__)

LAYOUT = "<people>/<Name>/<Name>_0001.jpg and pairs.txt"
PUBLISHED = {"test": Count(13_233, 5_749)}  # README of the data set

_PAIRS = "pairs*.txt"
_NUMBER = re.compile(r"_(\d{4})\.\w+$")
_LOOK_AT = 5


def fits(root: Path) -> bool:
    """Whether `root`, or a folder in it, holds a table of pairs and folders of people."""
    return bool(candidates(root, _is_dataset))


def read(
    root: Path, val_share: float = 0.1, test_share: float = 0.3, seed: int = 0, *, pairs: str = "pairs.txt"
) -> IdentityIndex:
    """Index LFW. Every image is in the split test.

    Args:
        root: the data set's folder, or its parent.
        val_share: not used: there is nothing to train on.
        test_share: not used, likewise.
        seed: not used, likewise.
        pairs: name of the table of pairs.

    Raises:
        FileNotFoundError: no such folder, or no such table of pairs.
        ValueError: another layout, or a table that is none.
    """
    folder = dataset_folder("lfw", root, _is_dataset)
    people = _people(folder)
    if len(people) > 1:
        names = ", ".join(place.name for place in people)
        raise ValueError(f"{folder} holds several versions of the images: {names}. Keep one beside the pairs.")
    table = next((place / pairs for place in (folder, people[0]) if (place / pairs).is_file()), None)
    if table is None:
        there = sorted({path.name for place in (folder, people[0]) for path in place.glob(_PAIRS)})
        raise FileNotFoundError(f"No table {pairs} in {folder} or {people[0]}. There are {', '.join(there)}.")
    skipped = Skipped(log, folder)
    rows: list[Row] = []
    row_of: dict[tuple[str, int], int] = {}
    for person in subfolders(people[0]):
        for path, name in images(root, person):
            match = _NUMBER.search(name)
            if match is None or not name.startswith(f"{person.name}_"):
                skipped.add("images whose name is not <Name>_<4 digits>", path)
                continue
            row_of[person.name, int(match[1])] = len(rows)
            rows.append(Row(path, person.name, "test"))
    found = _read_pairs(table, row_of, skipped)
    skipped.report()
    index = build(root, rows, pairs=found, origins=("lfw",))
    compare(log, "LFW", PUBLISHED, index)
    return index


def _read_pairs(table: Path, row_of: dict[tuple[str, int], int], skipped: Skipped) -> Pairs | None:
    first_line, *lines = lines_of(table) or [""]
    numbers = first_line.split()
    if len(numbers) not in (1, 2) or not all(number.isdigit() for number in numbers):
        raise ValueError(
            f"{table} begins with {first_line!r}, not with the number of folds and of pairs. Get it again."
        )
    folds, each = (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, int(numbers[0]))
    if len(lines) != 2 * each * max(folds, 1) and rank() == 0:
        log.warning("%s announces %d pairs, and lists %d", table, 2 * each * max(folds, 1), len(lines))
    found = []
    for number, line in enumerate(lines):
        images_of = _parse(line)
        if images_of is None:
            skipped.add(f"lines of {table.name} that name no two images", line)
        elif not all(image in row_of for image in images_of):
            skipped.add("pairs with an image that is missing", line.replace("\t", " "))
        else:
            one, other = images_of
            found.append((row_of[one], row_of[other], one[0] == other[0], number // (2 * each) + 1 if folds else 0))
    return Pairs.build(*zip(*found, strict=True)) if found else None


def _parse(line: str) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """((name, number), (name, number)) of `name 1 4` or `name 1 other 2`."""
    fields = line.split("\t") if "\t" in line else line.split()
    name, other = fields[0], fields[-2] if len(fields) == 4 else fields[0]
    if len(fields) not in (3, 4) or not (fields[1].isdigit() and fields[-1].isdigit()):
        return None
    return (name, int(fields[1])), (other, int(fields[-1]))


def _is_dataset(folder: Path) -> bool:
    people = _people(folder)
    return bool(people) and any(True for place in (folder, people[0]) for _ in place.glob(_PAIRS))


def _people(folder: Path) -> list[Path]:
    """The folder that holds the people: this one, or those in it."""
    if _holds_people(folder):
        return [folder]
    inner = subfolders(folder)[:_LOOK_AT]
    return [place for place in inner if _holds_people(place)]


def _holds_people(folder: Path) -> bool:
    return any(
        _NUMBER.search(name) and name.startswith(f"{person.name}_")
        for person in subfolders(folder)[:_LOOK_AT]
        for _, name in images(person, person)[:1]
    )
