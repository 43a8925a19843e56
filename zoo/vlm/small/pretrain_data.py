"""PretrainData: what a small vision-language model learns from: captions of scenes and of portraits, easy galleries."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from zoo.categories import find_category
from zoo.conversations.manifest import Conversation, Conversations, ImageRef
from zoo.data.captions import read_captions
from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.data.samplers import Key, MixedSampler, ShuffledSampler
from zoo.distributed import rank, world_size
from zoo.vlm.batch import Example
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.data import ConversationData, index_of
from zoo.vlm.examples import Matches, Unread, open_images
from zoo.vlm.prompts import option, stage_one
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
            (image,), keys = open_images([path], self.decode, self.unkept)
        except UnreadableImage as error:
            return Unread(str(error))
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        answer = answers[np.random.default_rng((self.seed, *key)).integers(len(answers))]
        return Example([{"role": "user", "content": content}], answer, path, keys)


class EasyDataset(Dataset[Example | Unread]):
    """Galleries that are easier still, and queried several times, so that comparing images can be learned at all.

    Each query is another image of an instance of the gallery, which may be asked for more than once; the queries are
    turns of one talk. All is drawn by (seed, epoch, row).

    Args:
        conversations: one of several collections, by number.
        rows: (N, 2) int64 collection and conversation of each row.
        queries: of each gallery.
        same: share of queries that are the right image itself.
        strange: share of galleries whose images are of any category.
        seed: of the draws.
        decode, unkept: as in `ConversationDataset`.
    """

    def __init__(
        self,
        conversations: Sequence[Conversations],
        rows: np.ndarray,
        queries: int,
        same: float,
        strange: float,
        seed: int = 0,
        decode: bool = True,
        unkept: Collection[Path] = (),
    ) -> None:
        self.conversations, self.rows, self.queries = conversations, rows, queries
        self.same, self.strange, self.seed, self.decode, self.unkept = same, strange, seed, decode, unkept
        found: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for collection, part in enumerate(conversations):
            own = rows[rows[:, 0] == collection, 1]
            known = {*zip(part.column("query_identity")[own], part.column("query_path")[own], strict=True)}
            for identity, path in sorted(known):
                found[part.root, str(identity)].append(part.root / str(path))
        self.queries_of = dict(found)  # files of each instance that conversations ask about

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Example | Unread:
        gallery, queries, answers, category = self.draw(key)
        paths = (*gallery, *queries)
        it = f"(easy gallery {key.row} of {category})"  # in errors: several may lack the same image
        try:
            images, keys = open_images(paths, self.decode, self.unkept)
        except UnreadableImage as error:
            return Unread(f"{error} {it}")
        shown, first, *further = images[: len(gallery)], *images[len(gallery) :]
        messages = stage_one(shown, first, category)
        for image, answer in zip(further, answers, strict=False):
            messages.append({"role": "assistant", "content": option(category, answer)})
            content = [{"type": "text", "text": "Query"}, {"type": "image", "image": image}]
            messages.append({"role": "user", "content": content})
        source = Matches(answers, tuple(map(str, paths)))
        return Example(
            messages, option(category, answers[-1]), source, keys, names=tuple(f"{path} {it}" for path in paths)
        )

    def draw(self, key: Key) -> tuple[list[Path], list[Path], tuple[int, ...], str]:
        """Files of a gallery, files of its queries, the place of the right image of each, and the category."""
        rng = np.random.default_rng((self.seed, *key))
        root, conversation = self._at(key.row)
        gallery = [(root, ref) for ref in conversation.gallery]
        if rng.random() < self.strange:
            gallery = self._strangers(len(gallery), rng)
        places = rng.integers(len(gallery), size=self.queries)
        queries = [self._another(gallery[place], rng) for place in places]
        return (
            [where / ref.path for where, ref in gallery],
            queries,
            tuple((places + 1).tolist()),
            conversation.category,
        )

    def _at(self, row: int) -> tuple[Path, Conversation]:
        collection, number = self.rows[row].tolist()
        return self.conversations[collection].root, self.conversations[collection][number]

    def _strangers(self, k: int, rng: np.random.Generator) -> list[tuple[Path, ImageRef]]:
        """Images of k instances of any category; fewer where there are not as many."""
        found: dict[tuple[Path, str], tuple[Path, ImageRef]] = {}
        for row in rng.permutation(len(self.rows)):
            root, conversation = self._at(row)
            found.setdefault((root, conversation.query.identity), (root, conversation.query))
            if len(found) == k:
                break
        return list(found.values())

    def _another(self, image: tuple[Path, ImageRef], rng: np.random.Generator) -> Path:
        """Another image of the same instance; the same image, where that is drawn or there is no other."""
        root, ref = image
        same = root / ref.path
        others = [path for path in self.queries_of.get((root, ref.identity), ()) if path != same]
        return others[rng.integers(len(others))] if others and rng.random() >= self.same else same


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
        queries: of each training gallery.
        same: share of the training queries that are the right image itself.
        strange: share of the training galleries whose images are of any category.
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
        queries: int = 1,
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
        if queries < 1:
            raise ValueError(f"data.queries is {queries}. Give 1 or more for each gallery.")
        if not 0 <= told <= 1:
            raise ValueError(f"data.told is {told}. Give the share of captions in a batch, from 0 to 1.")
        self.scenes, self.told = scenes, told
        self.queries, self.same, self.strange = queries, same, strange

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

    def describe(self) -> str:
        """One line: how many images have captions, and how many galleries there are."""
        return f"captions of {len(self.items):,} images; galleries: {super().describe()}"

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
            self.conversations,
            self.rows("train"),
            self.queries,
            self.same,
            self.strange,
            self.seed,
            self._decodes,
            self.unkept,
        )
        told = ToldDataset(self.items, self.seed, self._decodes, self.unkept)
        sizes = {told: captions, galleries: self.batch_size - captions}
        parts = {part: size for part, size in sizes.items() if size}
        samplers = [
            ShuffledSampler(np.arange(len(part)), size, self.seed, rank(), world_size())  # type: ignore[arg-type]
            for part, size in parts.items()
        ]
        sampler = MixedSampler(samplers, self.steps_per_epoch)
        return self._train_loader(JoinedDataset(list(parts)), sampler)
