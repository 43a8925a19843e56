"""Labeled Faces in the Wild: pairs to verify.

    lfw/
        lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg    any name: lfw, lfw-deepfunneled, ...
        pairs.txt                                   here, or among the people; also pairsDevTest.txt, pairsDevTrain.txt

The first line of pairs.txt, `10<tab>300`, announces ten folds of 300 pairs of one person and 300 of two. Each fold
lists the former as `name<tab>1<tab>4`, then the latter as `name<tab>1<tab>other<tab>2`. The development tables have a
single number and no folds.

Huang et al., Labeled Faces in the Wild, technical report 07-49, University of Massachusetts, Amherst, 2007.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, image_names, lines_of, subfolders
from zoo.data.readers.base import Count, Pair, Published, Reader, Row, register
from zoo.distributed import rank

log = logging.getLogger(__name__)

_TABLES = "pairs*.txt"
_NUMBER = re.compile(r"_(\d{4})\.\w+$")
_LOOK_AT = 5


@register
@dataclass(frozen=True)
class LFW(Reader):
    """Reads LFW. Every image is in the split test.

    Args:
        pairs: name of the table of pairs.
    """

    name = "lfw"
    layout = "<people>/<Name>/<Name>_0001.jpg and pairs.txt"
    published = Published("LFW", {"test": Count(13_233, 5_749)}, origins=("lfw",))  # README of the dataset

    pairs: str = "pairs.txt"

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        """Whether it holds a table of pairs and folders of people."""
        people = _people(folder)
        return bool(people) and any(True for place in (folder, people[0]) for _ in place.glob(_TABLES))

    def rows(self, files: Files) -> Iterator[Row]:
        people, _ = self._people_and_table(files.place)
        for person in subfolders(people):
            for path, name in files.images(person):
                if _NUMBER.search(name) is None or not name.startswith(f"{person.name}_"):
                    files.skip("images whose name is not <Name>_<4 digits>", path)
                else:
                    yield Row(path, person.name, "test")

    def verification(self, files: Files, rows: list[Row]) -> Iterator[Pair]:
        """
        Raises:
            ValueError: a table that is none.
        """
        _, table = self._people_and_table(files.place)
        path_of = {(row.identity, int(match[1])): row.path for row in rows if (match := _NUMBER.search(row.path))}
        folds, each, lines = _read(table)
        for number, line in enumerate(lines):
            images = _parse(line)
            if images is None:
                files.skip(f"lines of {table.name} that name no two images", line)
            elif not all(image in path_of for image in images):
                files.skip("pairs with an image that is missing", line.replace("\t", " "))
            else:
                one, other = images
                fold = number // (2 * each) + 1 if folds else 0
                yield Pair(path_of[one], path_of[other], one[0] == other[0], fold)

    def _people_and_table(self, folder: Path) -> tuple[Path, Path]:
        """The folder of the people and the table of pairs.

        Raises:
            FileNotFoundError: no such table of pairs.
            ValueError: several versions of the images.
        """
        people = _people(folder)
        if len(people) > 1:
            names = ", ".join(place.name for place in people)
            raise ValueError(f"{folder} holds several versions of the images: {names}. Keep one beside the pairs.")
        places = (folder, people[0])
        table = next((place / self.pairs for place in places if (place / self.pairs).is_file()), None)
        if table is None:
            there = sorted({path.name for place in places for path in place.glob(_TABLES)})
            raise FileNotFoundError(f"No table {self.pairs} in {folder} or {people[0]}. There are {', '.join(there)}.")
        return people[0], table


def _read(table: Path) -> tuple[int, int, list[str]]:
    """Folds, 0 where there are none; pairs of one person, and of two, in each; and the lines of the pairs."""
    first_line, *lines = lines_of(table) or [""]
    numbers = first_line.split()
    if len(numbers) not in (1, 2) or not all(number.isdigit() for number in numbers):
        raise ValueError(
            f"{table} begins with {first_line!r}, not with the number of folds and of pairs. Get it again."
        )
    folds, each = (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, int(numbers[0]))
    if len(lines) != 2 * each * max(folds, 1) and rank() == 0:
        log.warning("%s announces %d pairs, and lists %d", table, 2 * each * max(folds, 1), len(lines))
    return folds, each, lines


def _parse(line: str) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """((name, number), (name, number)) of `name 1 4` or `name 1 other 2`."""
    fields = line.split("\t") if "\t" in line else line.split()
    name, other = fields[0], fields[-2] if len(fields) == 4 else fields[0]
    if len(fields) not in (3, 4) or not (fields[1].isdigit() and fields[-1].isdigit()):
        return None
    return (name, int(fields[1])), (other, int(fields[-1]))


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
        for name in image_names(person)[:1]
    )
