"""Conversations as examples, and examples as batches, of a vision-language model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.conversations.manifest import Conversations
from zoo.data.images import UnreadableImage, image_size, read_image
from zoo.data.samplers import Key
from zoo.vlm.batch import Example, VLMBatch
from zoo.vlm.cache.features import image_key
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.prompts import option, stage_one


class Unread(NamedTuple):
    """A conversation that is left out whole, since one of its images cannot be had: "path: reason"."""

    reason: str


class Matches(NamedTuple):
    """A gallery with several queries.

    Args:
        answers: the place of the right image of each query, from 1.
        paths: files of the gallery's images, then of the queries.
    """

    answers: tuple[int, ...]
    paths: tuple[str, ...]


class ConversationDataset(Dataset[Example | Unread]):
    """Conversations as examples of stage 1.

    Args:
        conversations: one of several collections, by number.
        rows: (N, 2) int64 collection and conversation of each row.
        no_match: whether questions offer that none matches.
        decode: False gives blank images of the right size, for features that are cached.
        unkept: images that are decoded all the same, since their features could not be had.
    """

    def __init__(
        self,
        conversations: Sequence[Conversations],
        rows: np.ndarray,
        no_match: bool,
        decode: bool = True,
        unkept: Collection[Path] = (),
    ) -> None:
        self.conversations, self.rows, self.no_match = conversations, rows, no_match
        self.decode, self.unkept = decode, unkept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Example | Unread:
        collection, number = self.rows[key.row].tolist()
        root, conversation = self.conversations[collection].root, self.conversations[collection][number]
        refs = (*conversation.gallery, conversation.query)
        paths = [root / ref.path for ref in refs]
        it = f"(conversation {number} of {conversation.category})"  # in errors: several may lack the same image
        try:
            images, keys = open_images(paths, self.decode, self.unkept)
        except UnreadableImage as error:
            return Unread(f"{error} {it}")
        return Example(
            messages=stage_one(images[:-1], images[-1], conversation.category, self.no_match),
            answer=option(conversation.category, conversation.answer),
            source=conversation,
            keys=keys,
            categories=(conversation.category,) * len(refs),
            boxes=tuple(ref.box for ref in refs),
            names=tuple(f"{ref.path} {it}" for ref in refs),
        )


class Collate:
    """Examples -> a batch, without those that cannot be used. A class, so that worker processes can be spawned.

    Args:
        batcher: of the model.
        with_pixels: False where features are cached.
        for_generation: prompts only, padded on the left.
    """

    def __init__(self, batcher: VLMProcessor, with_pixels: bool = True, for_generation: bool = False) -> None:
        self.batcher, self.with_pixels, self.for_generation = batcher, with_pixels, for_generation

    def __call__(self, items: Sequence[Example | Unread]) -> VLMBatch:
        examples, skipped = [], []
        for item in items:
            reason = item.reason if isinstance(item, Unread) else self.batcher.unfit(item)
            if reason is not None:
                skipped.append(reason)
            elif isinstance(item, Example):
                examples.append(item)
        if not examples:
            return _nothing(skipped)
        return self.batcher(examples, with_pixels=self.with_pixels, for_generation=self.for_generation, skipped=skipped)


def _nothing(skipped: Sequence[str]) -> VLMBatch:
    none = torch.zeros(0, 0, dtype=torch.int64)
    return VLMBatch(none, none, none, {}, {}, none.flatten(), {}, (), (), tuple(skipped))


@dataclass(frozen=True)
class Blank:
    """Stands for an image of which only the size is needed, in pixels: width and height."""

    size: tuple[int, int]
    mode: str = "RGB"

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


def open_images(paths: Sequence[Path], decode: bool, unkept: Collection[Path]) -> tuple[list[Any], tuple[str, ...]]:
    """Images, or a `Blank` for each that need not be decoded, and what the feature cache knows them by.

    Raises:
        UnreadableImage: one is missing, or not an image; with the path.
    """
    images = [open_image(path, decode or path in unkept) for path in paths]
    return images, tuple(image_key(path, ()) for path in paths)


def open_image(path: Path, decode: bool = True) -> Any:
    """An image, or a `Blank` of its size.

    Raises:
        UnreadableImage: missing, or not an image; with the path.
    """
    try:
        return read_image(path) if decode else Blank(image_size(path))
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}") from error
