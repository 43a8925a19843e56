"""TaskData: tasks as batches of a vision-language model."""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from zoo.data.samplers import Key, MixedSampler, ShardSampler, ShuffledSampler, StepSampler
from zoo.distributed import rank, world_size
from zoo.training.resuming import ResumableData
from zoo.vlm.batch import Example, VLMBatch
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.task import STAGES, Skipped, Task, TaskDataset

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


class ConversationModel(Protocol):
    """What the data ask of the model, see `VLMStage`."""

    batcher: VLMProcessor
    unkept: Collection[Path]

    @property
    def decodes(self) -> bool:
        """Whether images have to be read."""

    def keep_features(self, *splits: str) -> None:
        """Called before a loader to evaluate with is made."""


class TaskData(ResumableData):
    """Conversations of one task or of several.

    A training batch holds a fixed number of conversations of each task, by its weight. Which ones is a function of
    (seed, epoch, step), whatever the number of processes and workers. Evaluation has a loader for each task.

    Args:
        tasks: what is trained on and evaluated.
        weights: task -> its weight in a training batch; null for equal weights. 0 leaves a task to evaluation.
        evaluate: names of the tasks to evaluate; null for all that have something to evaluate.
        batch_size: conversations in a global training batch.
        eval_batch_size: conversations in a batch of evaluation, on each process.
        steps_per_epoch: batches in an epoch; null for as many as the largest task fills.
        workers: processes that decode, on each process.
        max_unreadable: largest share of conversations to skip for unreadable images before giving up.
        seed: of the order.

    Raises:
        ValueError: no task, two of one name, or weights and names that fit no task.
    """

    def __init__(
        self,
        tasks: list[Task],
        weights: dict[str, float] | None = None,
        evaluate: list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        steps_per_epoch: int | None = None,
        workers: int = 1,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"The tasks are {', '.join(names) or 'none'}. Give at least one, each with its own name.")
        for option, given in (("weights", weights or {}), ("evaluate", evaluate or [])):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(f"data.{option} names {unknown[0]!r}. The tasks are {', '.join(names)}.")
        self.tasks, self.evaluate = tasks, evaluate
        self.weights = {name: 1.0 for name in names} if weights is None else {n: weights.get(n, 0.0) for n in names}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"data.weights is {weights}. Give numbers of 0 or more, one above 0.")
        self.batch_size, self.eval_batch_size, self.steps_per_epoch = batch_size, eval_batch_size, steps_per_epoch
        self.workers, self.max_unreadable, self.seed = workers, max_unreadable, seed
        self.unreadable: dict[str, None] = {}  # an ordered set of "path: reason"
        self._model: ConversationModel | None = None

    def connect(self, model: ConversationModel) -> None:
        """Take what loaders need of the model, see `zoo.module.Connect`."""
        self._model = model

    @property
    def model(self) -> ConversationModel:
        """
        Raises:
            RuntimeError: no model is connected.
        """
        if self._model is None:
            raise RuntimeError(
                "Loaders need the model's processor, and no model is connected. Run them by a Trainer, or call "
                "data.connect(model) first."
            )
        return self._model

    # ------------------------------------------------------------------ tasks

    def prepare_data(self) -> None:
        """Make what the tasks are read from, where it is not there yet. Once a machine."""
        for task in self.tasks:
            task.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Set the tasks up.

        Raises:
            ValueError: a task that has nothing for what is to be done.
        """
        for task in self.tasks:
            task.setup()
        if stage is not None:
            for task in self._used(stage):
                task.check(stage)

    def _used(self, stage: str) -> list[Task]:
        """Those that must have items: what trains, or what is named to be evaluated. Of tasks that are not named, one
        with items is enough."""
        if stage == "fit":
            return [task for task in self.tasks if self.weights[task.name]]
        if stage in STAGES and self.evaluate is None:
            return self.scored(STAGES[stage][1]) or self.tasks
        return self._evaluated()

    def _evaluated(self) -> list[Task]:
        return [task for task in self.tasks if self.evaluate is None or task.name in self.evaluate]

    def scored(self, split: str) -> list[Task]:
        """The tasks that have something to evaluate in val or test, in the order of their loaders."""
        return [task for task in self._evaluated() if task.size(split)]

    def images(self, *splits: str) -> list[KeptImage]:
        """Every image of some splits that is trained on or evaluated, once for each set of instances."""
        found: dict[KeptImage, None] = {}
        for task in self.tasks:
            evaluated = task in self._evaluated()
            used = [split for split in splits if (self.weights[task.name] if split == "train" else evaluated)]
            found |= dict.fromkeys(task.images(*used))
        return list(found)

    @property
    def busy_workers(self) -> int:
        """No loader keeps a core busy: a vision-language model takes far longer over an image than a loader does. With
        two threads on two cores, a step of stage 1 lasts 0.36 s instead of 0.55 s."""
        return 0

    @property
    def tests(self) -> bool:
        """Whether there are conversations to test on."""
        return bool(self.scored("test"))

    @property
    def validates(self) -> bool:
        """Whether there are conversations to validate on."""
        return bool(self.scored("val"))

    def describe(self) -> str:
        """One line: the tasks and how many items they have."""
        return "; ".join(task.describe() for task in self.tasks)

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader:
        counts = shares(self.weights, self.batch_size, world_size())
        parts = [task for task in self.tasks if counts[task.name]]
        samplers = [
            ShuffledSampler(
                np.arange(task.size("train")), counts[task.name], self.seed, rank(), world_size(), self.steps_per_epoch
            )
            for task in parts
        ]
        sampler: StepSampler = samplers[0] if len(samplers) == 1 else MixedSampler(samplers, self.steps_per_epoch)
        sampler.resume(**self.resume_at)
        datasets = [TaskDataset(task, "train", self._reader()) for task in parts]
        return DataLoader(
            datasets[0] if len(datasets) == 1 else JoinedDataset(datasets),
            batch_size=self.batch_size // world_size(),
            sampler=sampler,
            collate_fn=partial(collate, self.model.batcher, with_pixels=self.model.decodes),
            persistent_workers=self.workers > 0,
            **self._loading(),
        )

    def val_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("val") if self.validates else []

    def test_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("test")

    def _eval_loaders(self, split: str) -> list[DataLoader]:
        """One for each of the `scored` tasks."""
        self.model.keep_features(split)
        make = partial(collate, self.model.batcher, with_pixels=self.model.decodes, for_generation=True)
        return [
            DataLoader(
                TaskDataset(task, split, self._reader()),
                batch_size=self.eval_batch_size,
                sampler=ShardSampler(np.arange(task.size(split)), rank(), world_size()),
                collate_fn=make,
                **self._loading(),
            )
            for task in self.scored(split)
        ]

    def _reader(self) -> ImageReader:
        return ImageReader(self.model.decodes, self.model.unkept)

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
        if not batch.skipped:
            return batch
        total = sum(task.size(split) for task in self.tasks for split in _SPLITS) / world_size()  # this rank's part
        if self.trainer is not None and self.trainer.training and not batch.items:
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


class JoinedDataset(Dataset[Example | Skipped]):
    """Several data sets, their rows numbered one after another, as `MixedSampler` draws them."""

    def __init__(self, parts: Sequence[TaskDataset]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: Key) -> Example | Skipped:
        part = int(np.searchsorted(self.ends, key.row, side="right"))
        first = int(self.ends[part - 1]) if part else 0
        return self.parts[part][Key(key.epoch, key.row - first)]


def shares(weights: Mapping[str, float], batch_size: int, processes: int) -> dict[str, int]:
    """How many conversations of each task a global batch holds: the largest remainders are rounded up, each task with a
    weight has one on every process, and every process has equally many.

    Args:
        weights: task -> weight.
        batch_size: of the global batch.
        processes: that share it.

    Raises:
        ValueError: a batch that the processes cannot share evenly, or that has no room for every task.
    """
    rows, rest = divmod(batch_size, processes)
    asked = {name: weight / sum(weights.values()) * rows for name, weight in weights.items() if weight > 0}
    if batch_size < 1 or rest or rows < len(asked):
        raise ValueError(
            f"data.batch_size is {batch_size}, for {len(asked)} tasks on {processes} processes. Choose a multiple of "
            f"{processes}, at least {processes * len(asked)}."
        )
    counts = {name: max(1, int(share)) for name, share in asked.items()}
    by_remainder = sorted(asked, key=lambda name: asked[name] - int(asked[name]), reverse=True)
    while sum(counts.values()) < rows:
        name = max(by_remainder, key=lambda name: asked[name] - counts[name])
        counts[name] += 1
    while sum(counts.values()) > rows:
        name = max(counts, key=lambda name: (counts[name] > 1, counts[name] - asked[name]))
        counts[name] -= 1
    return {name: processes * counts.get(name, 0) for name in weights}


def collate(
    batcher: VLMProcessor,
    items: Sequence[Example | Skipped],
    with_pixels: bool = True,
    for_generation: bool = False,
) -> VLMBatch:
    """Examples -> a batch, without those that cannot be used.

    Args:
        batcher: of the model.
        items: of a dataset.
        with_pixels: False where features are cached.
        for_generation: prompts only, padded on the left.
    """
    examples, skipped = [], []
    for item in items:
        reason = item.reason if isinstance(item, Skipped) else batcher.unfit(item)
        if reason is not None:
            skipped.append(reason)
        elif isinstance(item, Example):
            examples.append(item)
    if not examples:
        return VLMBatch.empty(skipped)
    return batcher(examples, with_pixels=with_pixels, for_generation=for_generation, skipped=skipped)
