"""PretrainData: what a small vision-language model learns from: captions of scenes and of portraits, easy galleries."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from zoo.categories import find_category
from zoo.data.captions import read_captions
from zoo.data.conversations import Conversation, Conversations, ImageRef
from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.data.samplers import Key, MixedSampler, ShuffledSampler
from zoo.distributed import rank, world_size
from zoo.vlm.batch import Example
from zoo.vlm.data import Collate, ConversationData, ConversationDataset, Unread, index_of, open_image
from zoo.vlm.features import image_key
from zoo.vlm.prompts import stage_one
from zoo.vlm.towers import KeptImage
from zoo.world import Scenes, World


class Told(NamedTuple):
    """An image, what is asked about it, and the answers of which any is right."""

    path: Path
    question: str
    answers: tuple[str, ...]


class ToldDataset(Dataset[Example | Unread]):
    """Images with answers; which of several is given is drawn by (seed, epoch, row).

    Args:
        items: images with answers.
        seed: of the draws.
        decode, unkept: as in `ConversationDataset`.
    """

    def __init__(
        self, items: Sequence[Told], seed: int = 0, decode: bool = True, unkept: Collection[Path] = ()
    ) -> None:
        self.items, self.seed, self.decode, self.unkept = items, seed, decode, unkept

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Example | Unread:
        path, question, answers = self.items[key.row]
        try:
            image = open_image(path, self.decode or path in self.unkept)
        except UnreadableImage as error:
            return Unread(str(error))
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        answer = answers[np.random.default_rng((self.seed, *key)).integers(len(answers))]
        return Example([{"role": "user", "content": content}], answer, path, (image_key(path, ()),))


class EasyDataset(ConversationDataset):
    """Galleries that are easier still, drawn by (seed, epoch, row), so that comparing images can be learned at all.

    Args:
        conversations: one of several collections, by number.
        rows: (N, 2) int64 collection and conversation of each row.
        same: share of galleries whose query is the right image itself.
        strange: share of galleries whose other images are of any category.
        seed: of the draws.
        decode, unkept: as in `ConversationDataset`.
    """

    def __init__(
        self,
        conversations: Sequence[Conversations],
        rows: np.ndarray,
        same: float,
        strange: float,
        seed: int = 0,
        decode: bool = True,
        unkept: Collection[Path] = (),
    ) -> None:
        super().__init__(conversations, rows, no_match=False, decode=decode, unkept=unkept)
        self.same, self.strange, self.seed = same, strange, seed

    def images_of(self, key: Key, root: Path, conversation: Conversation) -> list[tuple[Path, ImageRef]]:
        images, rng = super().images_of(key, root, conversation), np.random.default_rng((self.seed, *key))
        right = conversation.answer - 1
        if rng.random() < self.strange:
            for place in range(len(images) - 1):
                if place != right:
                    folder, stranger = self.at(int(rng.integers(len(self.rows))))
                    images[place] = (folder / stranger.query.path, stranger.query)
        if rng.random() < self.same:
            images[-1] = images[right]
        return images


class JoinedDataset(Dataset):
    """Several data sets, their rows numbered one after another, as `MixedSampler` draws them."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: Key) -> Example | Unread:
        part = int(np.searchsorted(self.ends, key.row, side="right"))
        first = int(self.ends[part - 1]) if part else 0
        return self.parts[part][Key(key.epoch, key.row - first)]


def portrait(index: IdentityIndex, row: int) -> str:
    """What is known of an image of one instance, as text: "species cat, coat black, pose sitting"."""
    known = {name: str(column[row]) for name, column in index.attributes.items() if column[row]}
    return ", ".join(f"{name} {value}".replace("_", " ") for name, value in known.items())


class PretrainData(ConversationData):
    """Captions and easy galleries of the procedural world.

    Args:
        scenes: scenes with several instances and their captions; null for none.
        told: share of a training batch that is captions, of scenes and of portraits alike, to the nearest number that
            all processes have equally many of; the rest is galleries.
        same: share of the training galleries whose query is the right image itself.
        strange: share of the training galleries whose other images are of any category.
        world: category -> wing, for portraits and galleries.
        encoder: card of the encoder that the galleries are mined with.
        k: images in a gallery; or (fewest, most).
        tau: similarities to the query that distractors exceed; -1 takes anyone.
        eval_conversations: most galleries of each category and level to validate on.
        per_query: training galleries of each query.
        batch_size: examples in a global training batch.
        eval_batch_size: galleries in a batch of evaluation, on each process.
        steps_per_epoch: batches in an epoch; null for as many as the galleries fill.
        workers: processes that decode, on each process.
        seed: of galleries and of all order.
    """

    def __init__(
        self,
        world: dict[str, World],
        scenes: Scenes | None = None,
        told: float = 0.5,
        same: float = 0.0,
        strange: float = 0.0,
        encoder: str = "general_mobilenetv3s050.world",
        k: int | tuple[int, int] = (2, 5),
        tau: tuple[float, ...] = (-1.0,),
        eval_conversations: int = 100,
        per_query: int = 2,
        batch_size: int = 64,
        eval_batch_size: int = 64,
        steps_per_epoch: int | None = None,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            world=world,
            encoder=encoder,
            k=k,
            tau=list(tau),
            eval_conversations=eval_conversations,
            per_query=per_query,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            workers=workers,
            seed=seed,
        )
        if not 0 <= told <= 1:
            raise ValueError(f"data.told is {told}. Give the share of captions in a batch, from 0 to 1.")
        self.scenes, self.told, self.same, self.strange = scenes, told, same, strange

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.scenes is not None:
            self.scenes.prepare()

    @cached_property
    def items(self) -> list[Told]:
        """All images of the training split that something is said of: scenes first."""
        found = []
        if self.scenes is not None:
            captions = read_captions(self.scenes.prepare(), "train")
            pairs = zip(captions.paths, captions.texts, strict=True)
            found += [Told(captions.root / path, "Describe the scene.", texts) for path, texts in pairs]
        for category, wing in self.world.items():
            index = index_of(wing)
            question = f"Describe the {find_category(category).noun}."
            for row in index.rows("train"):
                found.append(Told(index.root / str(index.paths[row]), question, (portrait(index, row),)))
        return found

    def images(self, *splits: str) -> list[KeptImage]:
        told = [KeptImage(item.path, "", None) for item in self.items] if "train" in splits and self.told else []
        return [*super().images(*splits), *told]

    def texts(self) -> Iterator[str]:
        """What the model is going to read and write: a tokenizer is made from it."""
        for item in self.items:
            yield from (item.question, *item.answers)
        for category in self.world:
            most = max(size for rule in self.rules for size in rule.sizes)
            blank = Image.new("RGB", (1, 1))
            question = stage_one([blank] * most, blank, category, no_match=True)
            yield from (part["text"] for part in question[0]["content"] if part["type"] == "text")

    def train_dataloader(self) -> DataLoader:
        # Equally many on each process, and on none without any that were asked for.
        captions = world_size() * max(round(self.told * self.batch_size / world_size()), int(self.told > 0))
        galleries = EasyDataset(
            self.conversations, self.rows("train"), self.same, self.strange, self.seed, self._decodes, self.unkept
        )
        told = ToldDataset(self.items, self.seed, self._decodes, self.unkept)
        sizes = {told: captions, galleries: self.batch_size - captions}
        parts = {part: size for part, size in sizes.items() if size}
        samplers = [
            ShuffledSampler(np.arange(len(part)), size, self.seed, rank(), world_size())  # type: ignore[arg-type]
            for part, size in parts.items()
        ]
        sampler = MixedSampler(samplers, self.steps_per_epoch)
        sampler.resume(**self.resume_at)
        return DataLoader(
            JoinedDataset(list(parts)),
            batch_size=self.batch_size // world_size(),
            sampler=sampler,
            collate_fn=Collate(self._batcher, self._decodes),
            persistent_workers=self.workers > 0,
            **self._loading,
        )
