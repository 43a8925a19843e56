"""Two tasks that another project could bring: which colour a square has, and what it is called in a sentence."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from zoo.data.images import UnreadableImage
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.tasks import ChoiceTask, ImageReader, Skipped, WritingTask
from zoo.vlm.tasks.choice import Options

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}


class Square(NamedTuple):
    """An image of one colour."""

    path: Path
    colour: str
    size: str


Squares = dict[str, list[Square]]


def squares(root: Path, **counts: int) -> Squares:
    """Split -> this many squares of it, drawn below `root`, of all colours and two sizes in turn."""
    found: Squares = {}
    for split, count in counts.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        found[split] = []
        for number in range(count):
            colour = list(COLOURS)[number % len(COLOURS)]
            name, side = (("small", 28), ("large", 56))[number // len(COLOURS) % 2]
            path = root / split / f"{number:02d}.png"
            Image.new("RGB", (side, side), COLOURS[colour]).save(path)
            found[split].append(Square(path, colour, name))
    return found


def conversation(question: str, answer: str, square: Square, reader: ImageReader) -> Example | Skipped:
    """A question about one square."""
    try:
        (image,), keys = reader.open([square.path])
    except UnreadableImage as error:
        return Skipped(str(error))
    content: list[dict[str, Any]] = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    path = str(square.path)
    return Example([{"role": "user", "content": content}], answer, square, keys, image_names=(path,), name=path)


class WhichColour(ChoiceTask[Square]):
    """One of three colours is right; squares are grouped by their size."""

    name = "colour"
    groups = ("small", "large")

    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def size(self, split: str) -> int:
        return len(self.squares.get(split, ()))

    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        item = self.squares[split][key.row]
        return conversation("Which colour is it?", item.colour, item, images)

    def options(self, item: Square) -> Options:
        return Options(tuple(COLOURS), list(COLOURS).index(item.colour), item.size)

    def images(self, *splits: str) -> Iterator[KeptImage]:
        for split in splits:
            yield from (KeptImage(item.path) for item in self.squares.get(split, ()))


class NameColour(WritingTask[Square]):
    """The colour in a short sentence."""

    name = "naming"
    longest = 4

    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def size(self, split: str) -> int:
        return len(self.squares.get(split, ()))

    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        item = self.squares[split][key.row]
        return conversation("What is it?", self.references(item)[0], item, images)

    def references(self, item: Square) -> Sequence[str]:
        return f"It is {item.colour}.", f"A {item.colour} square."

    def training_texts(self, item: Square) -> Sequence[str]:
        return ("It is red.",)

    def images(self, *splits: str) -> Iterator[KeptImage]:
        for split in splits:
            yield from (KeptImage(item.path) for item in self.squares.get(split, ()))
