"""CaptionTask: describe an image."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.categories import find_category
from zoo.data.captions import read_captions
from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.match import Worlds, default_worlds, index_of
from zoo.vlm.tasks.task import Skipped
from zoo.vlm.tasks.writing import WritingTask
from zoo.world import Scenes

_SCENE = "Describe the scene."


class CaptionedImage(NamedTuple):
    """An image, a question about it, and the answers of which any is right."""

    path: Path
    question: str
    answers: tuple[str, ...]


class CaptionTask(WritingTask[CaptionedImage]):
    """Captions of rendered scenes, and lists of the attributes of rendered instances. Of several captions of an image,
    one is drawn for each epoch.

    Args:
        scenes: scenes with several instances and their captions; null for none.
        world: category -> world of single instances, whose attributes are listed; null for none.
        seed: of the draws.
        name: of the task, beside others.
    """

    def __init__(
        self, scenes: Scenes | None = None, world: Worlds | None = None, seed: int = 0, name: str = "captions"
    ) -> None:
        self.scenes, self.world, self.seed = scenes, default_worlds() if world == "default" else world or {}, seed
        self.name = name
        self._items: dict[str, list[CaptionedImage]] = {}

    def prepare(self) -> None:
        for world in self.world.values():
            world.prepare()
        if self.scenes is not None:
            self.scenes.prepare()

    def items(self, split: str) -> list[CaptionedImage]:
        """All images of a split that have captions, scenes first."""
        if split not in self._items:
            found = []
            if self.scenes is not None:
                captions = read_captions(self.scenes.prepare(), split)
                pairs = zip(captions.paths, captions.texts, strict=True)
                found += [CaptionedImage(captions.root / path, _SCENE, texts) for path, texts in pairs]
            for category, world in self.world.items():
                index = index_of(world)
                question = f"Describe the {find_category(category).noun}."
                for row in index.rows(split):
                    path = index.root / str(index.paths[row])
                    found.append(CaptionedImage(path, question, (attributes_text(index, row),)))
            self._items[split] = found
        return self._items[split]

    def size(self, split: str) -> int:
        return len(self.items(split))

    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        item = self.items(split)[key.row]
        try:
            (image,), keys = images.open([item.path])
        except UnreadableImage as error:
            return Skipped(str(error))
        content = [{"type": "image", "image": image}, {"type": "text", "text": item.question}]
        answer = item.answers[np.random.default_rng((self.seed, *key)).integers(len(item.answers))]
        path = str(item.path)
        return Example([{"role": "user", "content": content}], answer, item, keys, image_names=(path,), name=path)

    def references(self, item: CaptionedImage) -> Sequence[str]:
        return item.answers

    def training_texts(self, item: CaptionedImage) -> Sequence[str]:
        return self._training_texts.get(item.question, ())

    @cached_property
    def _training_texts(self) -> dict[str, list[str]]:
        """Question -> the answers of the training split."""
        answers: dict[str, list[str]] = defaultdict(list)
        for item in self.items("train"):
            answers[item.question] += item.answers
        return dict(answers)

    def images(self, *splits: str) -> Iterator[KeptImage]:
        for split in splits:
            for item in self.items(split):
                yield KeptImage(item.path)

    def texts(self) -> Iterator[str]:
        for item in self.items("train"):
            yield from (item.question, *item.answers)

    def describe(self) -> str:
        return f"captions of {self.size('train'):,} images"


def attributes_text(index: IdentityIndex, row: int) -> str:
    """The attributes of an image of one instance: "species cat, coat black, pose sitting"."""
    known = {name: str(column[row]) for name, column in index.attributes.items() if column[row]}
    return ", ".join(f"{name} {value}".replace("_", " ") for name, value in known.items())
