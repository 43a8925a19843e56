"""ConversationData: galleries to be matched, as batches of a vision-language model."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from zoo.cards import card
from zoo.conversations.build import MINING, build
from zoo.conversations.leaks import refuse_shared_identities
from zoo.conversations.manifest import Conversations
from zoo.conversations.rule import GalleryRule
from zoo.data.cameras import without_useless_cameras
from zoo.data.index import IdentityIndex
from zoo.data.join import Source, read_sources
from zoo.data.samplers import ShardSampler, ShuffledSampler, StepSampler
from zoo.distributed import from_all_ranks, rank, world_size
from zoo.home import home
from zoo.training.resuming import ResumableData
from zoo.vlm.batch import VLMBatch
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.examples import Collate, ConversationDataset
from zoo.vlm.processor import VLMProcessor
from zoo.world import World

log = logging.getLogger(__name__)

_SPLIT = {"val_share": 0.1, "test_share": 0.3, "seed": 0}  # of layouts without a split of their own
_TO_DO = {"fit": ("train", "train"), "validate": ("validate", "val"), "test": ("test", "test")}  # stage -> verb, split


@dataclass(frozen=True)
class GallerySource:
    """Conversations that are there already.

    Args:
        manifest: .parquet or .jsonl, as `python -m recipes.conversations` writes it.
        root: folder of its images, where the manifest does not say.
    """

    manifest: str
    root: str | None = None


def index_of(wing: World) -> IdentityIndex:
    """The images of a wing of the procedural world, drawn if they are not there yet."""
    return without_useless_cameras(read_sources([Source(str(wing.prepare()), wing.READER)], _SPLIT, None))


class ConversationData(ResumableData):
    """In-context galleries for stage 1, mined from the procedural world or mined before.

    Args:
        galleries: manifests of conversations that are there already.
        world: category -> wing of the procedural world whose identities fill its galleries.
        encoder: card of the general encoder that says what looks alike; manifests mined with another one are refused.
        k: images in a gallery of the world; or (fewest, most).
        tau: similarities to the query that distractors exceed, a level of difficulty each.
        tau_quantile: the same as shares of the pairs of two identities, see `GalleryRule`.
        no_match: share of the world's galleries that do not hold the query, in training and in tests.
        per_query: training conversations of each query and level.
        eval_conversations: most conversations of each category and level to validate on, and to test on.
        batch_size: conversations in a global training batch.
        eval_batch_size: conversations in a batch of evaluation, on each process.
        steps_per_epoch: batches in an epoch; null for as many as the conversations fill.
        workers: processes that decode, on each process.
        max_unreadable: largest share of conversations to skip for unreadable images before giving up.
        seed: of galleries and of their order.
    """

    def __init__(
        self,
        galleries: list[GallerySource] | None = None,
        world: dict[str, World] | None = None,
        encoder: str = "general_mobilenetv3s050.world",
        k: int | tuple[int, int] = 5,
        tau: list[float] | None = None,
        tau_quantile: list[float] | None = None,
        no_match: float = 0.0,
        per_query: int = 1,
        eval_conversations: int = 200,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        steps_per_epoch: int | None = None,
        workers: int = 1,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if bool(galleries) == bool(world):
            raise ValueError(
                f"data.galleries names {len(galleries or [])} manifests and data.world {len(world or {})} wings. "
                "Give one of the two."
            )
        self.galleries, self.world, self.encoder = galleries or [], world or {}, encoder
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
        self.batch_size, self.eval_batch_size, self.steps_per_epoch = batch_size, eval_batch_size, steps_per_epoch
        self.workers, self.max_unreadable, self.seed = workers, max_unreadable, seed
        self.unreadable: dict[str, None] = {}  # an ordered set of "path: reason"
        self.unkept: set[Path] = set()  # images that the model has no features of, where it keeps them
        self.conversations: list[Conversations] = []

    # ------------------------------------------------------------------ conversations

    def prepare_data(self) -> None:
        """Draw the worlds if they are not there yet. Once a machine."""
        for wing in self.world.values():
            wing.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load the conversations, or mine them with all processes and keep them for the next run.

        Raises:
            ValueError: mined with another encoder, images that are missing or changed, identities that are in training
                and held out, or no conversation for what is to be done.
        """
        if not self.conversations:
            self.conversations = [self._loaded(source) for source in self.galleries]
            self.conversations += [self._of_world(category, wing) for category, wing in self.world.items()]
            refuse_shared_identities(self.conversations)
            self.no_match = any((conversations.column("answer") == 0).any() for conversations in self.conversations)
            if rank() == 0:
                self._name_idle()
        if stage in _TO_DO:
            what, split = _TO_DO[stage]
            if not len(self.rows(split)):
                skipped = [conversations.meta["skipped"].get(split) for conversations in self.conversations]
                remedy = (
                    "data.tau, data.tau_quantile or data.k" if self.world else "--tau, --tau_quantile or --k and mine"
                )
                raise ValueError(
                    f"There is no conversation to {what} with: all queries of the {split} split were skipped "
                    f"({skipped}). Lower {remedy}{'' if self.world else ' again'}, or add images."
                )
            self._name_empty(split)
        if stage == "fit" and rank() == 0:
            self._name_lacking()

    def _name_idle(self) -> None:
        """Say which settings do nothing, beside manifests."""
        idle = [f"data.{name}" for name, differs in self._of_world_only.items() if differs and self.galleries]
        if idle:
            log.info("Not used, since manifests were mined with settings of their own: %s.", ", ".join(idle))

    def _name_lacking(self) -> None:
        """Say before training what cannot be done after it."""
        for sentence in (sentence for conversations in self.conversations for sentence in conversations.lacking()):
            log.warning("%s", sentence)
        if not self.tests:
            log.warning("There is no conversation in the test split: nothing is going to be tested after training.")

    def _name_empty(self, split: str) -> None:
        """Say which levels of which category take no part in a score."""
        there = self.chance(split)
        for category, level in product(self.categories, self.levels) if rank() == 0 else []:
            if (category, level) not in there:
                own = [c.meta["skipped"].get(split, {}) for c in self.conversations if c.meta["category"] == category]
                skipped = [reasons[level] for reasons in own if level in reasons] or "none"
                log.warning(
                    "%s has no conversation at %s in the %s split; queries skipped: %s", category, level, split, skipped
                )

    def _loaded(self, source: GallerySource) -> Conversations:
        conversations = Conversations.load(Path(source.manifest).expanduser(), source.root)
        conversations.check(self.encoder, images=rank() == 0)
        return conversations

    def _of_world(self, category: str, wing: World) -> Conversations:
        """Mined with all processes, and kept beside the worlds for the next run."""
        made_from: list[Any] = [MINING, category, wing.folder, card(self.encoder).weights.sha256]
        made_from += [[asdict(rule) for rule in self.rules]]
        made_from += [self.per_query, self.eval_conversations]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
        path = home() / "conversations" / f"{wing.folder}-{key}.parquet"
        if all(from_all_ranks(path.is_file())):
            return Conversations.load(path)
        index = index_of(wing)
        limits = {"val": self.eval_conversations, "test": self.eval_conversations}
        mined = build(index, self.encoder, self.rules, category, at_most=limits, per_query=self.per_query)
        if rank() == 0:
            mined.save(path)
        return mined

    def rows(self, split: str) -> np.ndarray:
        """(N, 2) int64 collection and number of every conversation of a split."""
        parts = [
            np.stack([np.full(len(own), number), own], axis=1)
            for number, conversations in enumerate(self.conversations)
            for own in [np.flatnonzero(conversations.column("split") == split)]
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)

    def images(self, *splits: str) -> list[KeptImage]:
        """Every image of the conversations of some splits, once for each box."""
        found: dict[KeptImage, None] = {}
        for conversations in self.conversations:
            for conversation in conversations.select(np.isin(conversations.column("split"), splits)):
                for ref in (*conversation.gallery, conversation.query):
                    found[KeptImage(conversations.root / ref.path, conversation.category, ref.box)] = None
        return list(found)

    @property
    def categories(self) -> list[str]:
        """Categories of the conversations."""
        return list(dict.fromkeys(str(conversations.meta["category"]) for conversations in self.conversations))

    @property
    def levels(self) -> list[str]:
        """Levels of difficulty of the conversations, the easiest first as they were given."""
        columns = [conversations.column("level") for conversations in self.conversations]
        found = [str(level) for column in columns for level in np.unique(column)]
        given = [rule.level for rule in self.rules if rule.level in found]
        return [*given, *sorted(set(found) - set(given))]

    @property
    def tests(self) -> bool:
        """Whether there are conversations to test on."""
        return len(self.rows("test")) > 0

    @property
    def validates(self) -> bool:
        """Whether there are conversations to validate on."""
        return len(self.rows("val")) > 0

    def chance(self, split: str) -> dict[tuple[str, str], float]:
        """Category and level -> share of right answers that guessing gives."""
        shares: dict[tuple[str, str], list[float]] = {}
        for conversations in self.conversations:
            own = conversations.select(conversations.column("split") == split)
            for level, k in zip(own.column("level"), own.column("k"), strict=True):
                shares.setdefault((str(own.meta["category"]), str(level)), []).append(1 / (k + self.no_match))
        return {pair: fmean(values) for pair, values in shares.items()}

    def describe(self) -> str:
        """One line: how many conversations of each category in each split."""
        return "; ".join(
            f"{conversations.meta['category']} "
            + ", ".join(f"{(conversations.column('split') == s).sum():,} {s}" for s in ("train", "val", "test"))
            for conversations in self.conversations
        )

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader:
        dataset = ConversationDataset(self.conversations, self.rows("train"), self.no_match, self._decodes, self.unkept)
        sampler = ShuffledSampler(
            np.arange(len(dataset)), self.batch_size, self.seed, rank(), world_size(), self.steps_per_epoch
        )
        return self._train_loader(dataset, sampler)

    def _train_loader(self, dataset: Dataset, sampler: StepSampler) -> DataLoader:
        sampler.resume(**self.resume_at)
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world_size(),
            sampler=sampler,
            collate_fn=Collate(self._batcher, self._decodes),
            persistent_workers=self.workers > 0,
            **self._loading,
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._eval_loader("val") if len(self.rows("val")) else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        self._root.keep_features(split)
        dataset = ConversationDataset(self.conversations, self.rows(split), self.no_match, self._decodes, self.unkept)
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=ShardSampler(np.arange(len(dataset)), rank(), world_size()),
            collate_fn=Collate(self._batcher, self._decodes, for_generation=True),
            **self._loading,
        )

    @property
    def _root(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    @property
    def _batcher(self) -> VLMProcessor:
        return self._root.batcher

    @property
    def _decodes(self) -> bool:
        """Whether images have to be read: not where the model keeps their features."""
        return self._root.cache is None

    @property
    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.workers, "pin_memory": on_gpu}

    # ------------------------------------------------------------------ bad input

    def on_before_batch_transfer(self, batch: VLMBatch, dataloader_idx: int) -> VLMBatch:
        """Count the conversations that were left out.

        Raises:
            RuntimeError: more of them than `max_unreadable`, or a training batch of nothing else.
        """
        self.unreadable.update(dict.fromkeys(batch.skipped))
        total = sum(map(len, self.conversations)) / world_size()  # this rank's part
        if self.trainer is not None and self.trainer.training and not batch.examples:
            raise RuntimeError(
                f"None of the conversations of a training batch can be used: {'; '.join(batch.skipped[:5])}. "
                "Repair the images and mine the conversations again, or raise data.batch_size."
            )
        if len(self.unreadable) > self.max_unreadable * total:
            raise RuntimeError(
                f"{len(self.unreadable)} of {total:.0f} conversations have images that cannot be used (at most "
                f"{self.max_unreadable:.1%} are skipped): {'; '.join(list(self.unreadable)[:5])}. "
                "Repair the images and mine the conversations again, or raise data.max_unreadable."
            )
        return batch

    def teardown(self, stage: str) -> None:
        """Name what was skipped."""
        if self.unreadable:
            names = "\n  ".join(self.unreadable)
            log.warning("%d conversations were skipped:\n  %s", len(self.unreadable), names)
            self.unreadable.clear()
