"""MatchTask: which image of a gallery shows the instance of a query?"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from zoo.cards import card
from zoo.categories import CATEGORIES
from zoo.conversations.leaks import refuse_shared_identities
from zoo.conversations.manifest import Conversation, Conversations
from zoo.conversations.pipeline import MINING_VERSION, make_conversations
from zoo.conversations.rule import GalleryRule
from zoo.data.cameras import without_useless_cameras
from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.data.join import Source, read_sources
from zoo.data.samplers import Key
from zoo.distributed import from_all_ranks, rank
from zoo.home import home
from zoo.scores import ScoreName, Scores
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.choice import ChoiceTask, Options
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.prompts import gallery_question, option, options, parse_choice
from zoo.vlm.tasks.task import STAGES, Answering, Skipped
from zoo.world import World

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")

#: category -> its world; "default" for all that `zoo.categories` knows
Worlds = dict[str, World] | Literal["default"]


@dataclass(frozen=True)
class GallerySource:
    """Conversations that are there already.

    Args:
        manifest: .parquet or .jsonl, as `python -m recipes.conversations` writes it.
        root: folder of its images, where the manifest does not name it.
    """

    manifest: str
    root: str | None = None


class MatchTask(ChoiceTask[Conversation]):
    """In-context galleries, mined from procedural worlds or before (IIR-VLM, stage 1), answered as `[Pet 3]`.

    Baselines: `expert` takes the gallery image that is most similar to the query for the expert alone (eq. 2),
    `general` the one that is for the encoder that the galleries were mined with. They cannot answer that none matches:
    they are of the conversations with a match only, and `no_match` is the share of those without, where there are any.
    There is no `expert` where an adapter takes patch tokens: they are not the vector of eq. 2.

    Args:
        galleries: manifests of conversations that are there already.
        world: category -> procedural world whose identities fill its galleries; "default" for the world of every
            category in `zoo.categories`.
        encoder: card of the general encoder that measures how alike images look; manifests mined with another one are
            refused.
        k: images in a gallery of the world; or (fewest, most).
        tau: similarities to the query that distractors exceed, a level of difficulty each.
        tau_quantile: the same as shares of the pairs of two identities, see `GalleryRule`.
        no_match: share of the world's galleries that do not hold the query, in training and in tests.
        per_query: training conversations of each query and level.
        eval_conversations: most conversations of each category and level to validate on, and to test on.
        seed: of the galleries.
        name: of the task, beside others.

    Raises:
        ValueError: not exactly one of galleries and world, or no level of difficulty.
    """

    def __init__(
        self,
        galleries: list[GallerySource] | None = None,
        world: Worlds | None = None,
        encoder: str = "general_mobilenetv3s050.world",
        k: int | tuple[int, int] = 5,
        tau: list[float] | None = None,
        tau_quantile: list[float] | None = None,
        no_match: float = 0.0,
        per_query: int = 1,
        eval_conversations: int = 200,
        seed: int = 0,
        name: str = "match",
    ) -> None:
        self.name = name
        worlds = default_worlds() if world == "default" else world or {}
        if bool(galleries) == bool(worlds):
            raise ValueError(
                f"data.galleries names {len(galleries or [])} manifests and data.world {len(worlds)} worlds. "
                "Give one of the two."
            )
        self.galleries, self.world, self.encoder = galleries or [], worlds, encoder
        rule = GalleryRule(k=k, tau=-1.0, no_match=no_match, seed=seed)
        self.rules = [replace(rule, tau=value) for value in tau or []]
        self.rules += [replace(rule, tau=None, tau_quantile=share) for share in tau_quantile or []]
        if self.world and not self.rules:
            raise ValueError("Neither data.tau nor data.tau_quantile is given. Give at least one level of difficulty.")
        self._of_world_only = {
            "k": k != 5,
            "tau": bool(tau),
            "tau_quantile": bool(tau_quantile),
            "no_match": no_match != 0,
            "per_query": per_query != 1,
            "eval_conversations": eval_conversations != 200,
        }
        self.per_query, self.eval_conversations = per_query, eval_conversations
        self.conversations: list[Conversations] = []
        self.no_match = False
        self._rows: dict[str, np.ndarray] = {}

    # ------------------------------------------------------------------ items

    def prepare(self) -> None:
        for world in self.world.values():
            world.prepare()

    def setup(self) -> None:
        """Load the conversations, or mine them with all processes and keep them for the next run.

        Raises:
            ValueError: mined with another encoder, images that are missing or changed, or identities that are in
                training and held out.
        """
        if self.conversations:
            return
        self.conversations = [self._loaded(source) for source in self.galleries]
        self.conversations += [self._of_world(category, world) for category, world in self.world.items()]
        refuse_shared_identities(self.conversations)
        self.no_match = any((conversations.column("answer") == 0).any() for conversations in self.conversations)
        idle = [f"data.{name}" for name, differs in self._of_world_only.items() if differs and self.galleries]
        if idle and rank() == 0:
            log.info("Not used, since manifests were mined with settings of their own: %s.", ", ".join(idle))

    def _loaded(self, source: GallerySource) -> Conversations:
        conversations = Conversations.load(Path(source.manifest).expanduser(), source.root)
        conversations.check(self.encoder, images=rank() == 0)
        return conversations

    def _of_world(self, category: str, world: World) -> Conversations:
        """Mined with all processes, and kept beside the worlds for the next run."""
        made_from: list[object] = [MINING_VERSION, category, world.folder, card(self.encoder).weights.sha256]
        made_from += [[asdict(rule) for rule in self.rules]]
        made_from += [self.per_query, self.eval_conversations]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
        path = home() / "conversations" / f"{world.folder}-{key}.parquet"
        if all(from_all_ranks(path.is_file())):
            return Conversations.load(path)
        limits = {"val": self.eval_conversations, "test": self.eval_conversations}
        mined = make_conversations(
            index_of(world), self.encoder, self.rules, category, at_most=limits, per_query=self.per_query
        )
        if rank() == 0:
            mined.save(path)
        return mined

    def rows(self, split: str) -> np.ndarray:
        """(N, 2) int64 collection and number of every conversation of a split."""
        if not self.conversations:
            raise RuntimeError("The conversations are not there yet. Call setup() before asking for their rows.")
        if split not in self._rows:
            parts = [
                np.stack([np.full(len(own), number), own], axis=1)
                for number, conversations in enumerate(self.conversations)
                for own in [np.flatnonzero(conversations.column("split") == split)]
            ]
            self._rows[split] = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)
        return self._rows[split]

    def size(self, split: str) -> int:
        return len(self.rows(split))

    def at(self, split: str, row: int) -> tuple[Path, Conversation]:
        """A conversation, and the folder of its images."""
        collection, number = self.rows(split)[row].tolist()
        return self.conversations[collection].root, self.conversations[collection][number]

    def images(self, *splits: str) -> Iterator[KeptImage]:
        found: dict[KeptImage, None] = {}
        for conversations in self.conversations:
            for conversation in conversations.select(np.isin(conversations.column("split"), splits)):
                for ref in (*conversation.gallery, conversation.query):
                    found[KeptImage(conversations.root / ref.path, (Instance(conversation.category, ref.box),))] = None
        yield from found

    @property
    def groups(self) -> Sequence[str]:
        """The categories."""
        return list(dict.fromkeys(str(conversations.meta["category"]) for conversations in self.conversations))

    @property
    def levels(self) -> Sequence[str]:
        """Levels of difficulty, the easiest first as they were given."""
        columns = [conversations.column("level") for conversations in self.conversations]
        found = [str(level) for column in columns for level in np.unique(column)]
        given = [rule.level for rule in self.rules if rule.level in found]
        return [*given, *sorted(set(found) - set(given))]

    def describe(self) -> str:
        return "; ".join(
            f"{conversations.meta['category']} "
            + ", ".join(f"{(conversations.column('split') == split).sum():,} {split}" for split in _SPLITS)
            for conversations in self.conversations
        )

    # ------------------------------------------------------------------ conversations and answers

    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        collection, number = self.rows(split)[key.row].tolist()
        root, conversation = self.conversations[collection].root, self.conversations[collection][number]
        refs = (*conversation.gallery, conversation.query)
        it = f"(conversation {number} of {conversation.category})"  # in errors: several may lack the same image
        try:
            opened, keys = images.open([root / ref.path for ref in refs])
        except UnreadableImage as error:
            return Skipped(f"{error} {it}")
        return Example(
            messages=gallery_question(opened[:-1], opened[-1], conversation.category, self.no_match),
            answer=option(conversation.category, conversation.answer),
            item=conversation,
            keys=keys,
            instances=tuple((Instance(conversation.category, ref.box),) for ref in refs),
            image_names=tuple(f"{ref.path} {it}" for ref in refs),
            name=conversation.query.path,
        )

    def options(self, item: Conversation) -> Options:
        k = len(item.gallery)
        right = item.answer - 1 if item.answer else k
        return Options(options(item.category, k, self.no_match), right, item.category, item.level)

    def parse(self, text: str, item: Conversation) -> int | None:
        number = parse_choice(text, item.category, len(item.gallery))
        if number == 0:
            return len(item.gallery)
        return None if number is None else number - 1

    def baselines(self, model: Answering) -> Sequence[str]:
        return ["general", *["expert"] * (set(self.groups) <= set(model.vector_experts))]

    def baseline(self, name: str, batch: VLMBatch, features: TowerFeatures) -> list[int | None]:
        if name == "general":
            chosen = [int(np.argmax(conversation.similarities)) for conversation in batch.items]
        else:
            chosen = by_expert(batch, features)
        return [place if c.answer else None for place, c in zip(chosen, batch.items, strict=True)]

    def further_scores(self, examples: dict[str, float]) -> Scores:
        if not self.no_match or not examples["accuracy"]:
            return {}
        return {ScoreName("no_match"): 1 - examples["general"] / examples["accuracy"]}

    # ------------------------------------------------------------------ checks

    def check(self, stage: str) -> None:
        if stage not in STAGES:
            return
        verb, split = STAGES[stage]
        if not self.size(split):
            skipped = [conversations.meta["skipped"].get(split) for conversations in self.conversations]
            remedy = "data.tau, data.tau_quantile or data.k" if self.world else "--tau, --tau_quantile or --k and mine"
            raise ValueError(
                f"There is no conversation to {verb} with: all queries of the {split} split were skipped "
                f"({skipped}). Lower {remedy}{'' if self.world else ' again'}, or add images."
            )
        if rank() > 0:
            return
        self._name_empty(split)
        if stage == "fit":
            for sentence in (sentence for conversations in self.conversations for sentence in conversations.lacking()):
                log.warning("%s", sentence)
            if not self.size("test"):
                log.warning("There is no conversation in the test split: nothing is going to be tested after training.")

    def _name_empty(self, split: str) -> None:
        """Warn of levels of a category that take no part in a score."""
        there = set()
        for conversations in self.conversations:
            own = conversations.select(conversations.column("split") == split)
            there |= {(str(own.meta["category"]), str(level)) for level in np.unique(own.column("level"))}
        for category, level in product(self.groups, self.levels):
            if (category, level) not in there:
                skipped = [
                    c.meta["skipped"].get(split, {}) for c in self.conversations if c.meta["category"] == category
                ]
                reasons = [own[level] for own in skipped if level in own] or "none"
                log.warning(
                    "%s has no conversation at %s in the %s split; queries skipped: %s", category, level, split, reasons
                )


def by_expert(batch: VLMBatch, features: TowerFeatures) -> list[int]:
    """Place of the gallery image that is most similar to the query, to the expert alone (eq. 2).

    Of images with several instances the most similar pair counts; an image without one is similar to none.
    """
    vectors: dict[int, list[torch.Tensor]] = {}
    for own in features.experts.values():
        for image, vector in zip(own.image.tolist(), own.vectors[:, 0].float(), strict=True):
            vectors.setdefault(image, []).append(vector)
    chosen, first = [], 0
    for conversation in batch.items:
        query = first + len(conversation.gallery)
        owners = [image for image in range(first, query) for _ in vectors.get(image, ())]
        likeness = np.full(len(conversation.gallery), -np.inf)
        if owners and query in vectors:
            gallery = torch.stack([vector for image in range(first, query) for vector in vectors.get(image, ())])
            pairs = gallery @ torch.stack(vectors[query]).mT
            np.maximum.at(likeness, np.array(owners) - first, pairs.amax(dim=1).float().cpu().numpy())
        chosen.append(int(likeness.argmax()))
        first = query + 1
    return chosen


def default_worlds() -> dict[str, World]:
    """The world of every category that has one."""
    return {name: category.world() for name, category in CATEGORIES.items() if category.world is not None}


def index_of(world: World) -> IdentityIndex:
    """The images of a procedural world, rendered if they are not there yet."""
    return without_useless_cameras(read_sources([Source(str(world.prepare()), world.READER)]))
