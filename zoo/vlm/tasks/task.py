"""Task: how one kind of item becomes a conversation, and how a model's answers are scored."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.samplers import Key
from zoo.scores import Scores
from zoo.vlm.batch import Example, VLMBatch
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.images import ImageReader

#: stage of a run -> what it does, and the split that it does it with
STAGES = {"fit": ("train", "train"), "validate": ("validate", "val"), "test": ("test", "test")}

#: what a task's conversations are made from
Item = TypeVar("Item")


class Skipped(NamedTuple):
    """An item that makes no example, since one of its images cannot be used: "path: reason"."""

    reason: str


class Answering(Protocol):
    """What a scorer asks of a model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vector_experts(self) -> Collection[str]:
        """Categories whose expert gives one identity vector a crop."""

    def option_scores(self, batch: VLMBatch, features: TowerFeatures, options: Sequence[Sequence[str]]) -> Tensor:
        """(B, O) log-likelihood of every option of every prompt, -inf where a prompt has fewer than O."""

    def write(self, batch: VLMBatch, features: TowerFeatures, longest: Sequence[str], spare: int = 4) -> list[str]:
        """The text that the model writes after each prompt: at most as many tokens as the longest of these texts
        takes, and `spare` more."""


class Scorer(ABC):
    """Gathers the answers of one evaluation of one task, over all processes."""

    @abstractmethod
    def update(self, model: Answering, batch: VLMBatch, features: TowerFeatures) -> None:
        """Ask the model the prompts of a batch, and take in its answers."""

    @abstractmethod
    def compute(self) -> Scores:
        """The scores, the task's own metric and its trivial baselines, the same on every process."""


class Task(ABC, Generic[Item]):
    """One kind of conversation.

    A task knows its items and their splits, makes a conversation of each, and scores the answers. Mixed with others it
    is trained on, beside others it is evaluated on; see `zoo.vlm.data.TaskData`.

    Subclasses set `name` and implement what is abstract. Whatever they draw at random is a function of the key.
    """

    name: str

    def prepare(self) -> None:
        """Make on disk what the items come from, such as a rendered world. Called on one process of each machine."""

    def setup(self) -> None:
        """Read the items. Called on every process, after `prepare`; calling it again changes nothing."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of items of train, val or test."""

    @abstractmethod
    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        """The conversation of an item.

        Args:
            split: train, val or test.
            key: the number of the item in its split, and the epoch.
            images: opens the images.
        """

    @abstractmethod
    def scorer(self, split: str, model: Answering, writes: bool) -> Scorer:
        """What scores the answers of an evaluation.

        Args:
            split: val or test.
            model: that is going to be asked.
            writes: whether the model is to write its answers, where comparing options would do.
        """

    def metric(self) -> str:
        """Name of the score, over everything, that checkpoints are compared by; larger is better."""
        return "accuracy"

    def images(self, *splits: str) -> Iterator[KeptImage]:
        """Every image of the examples of some splits, for the feature cache."""
        yield from ()

    def texts(self) -> Iterator[str]:
        """What the model reads and writes, for the tokenizer of a model that is trained from scratch."""
        yield from ()

    def describe(self) -> str:
        """One line: how many items there are."""
        counts = ", ".join(f"{self.size(split):,} {split}" for split in ("train", "val", "test"))
        return f"{self.name} {counts}"

    def check(self, stage: str) -> None:
        """Log what is missing, before it matters.

        Args:
            stage: fit, validate or test.

        Raises:
            ValueError: there is no item for the stage.
        """
        verb, split = STAGES.get(stage, ("", ""))
        if split and not self.size(split):
            raise ValueError(
                f"The task {self.name} has no item in the {split} split to {verb} with. Give it some, or leave it out."
            )


class TaskDataset(Dataset[Example | Skipped]):
    """The examples of one split of a task, by key.

    Args:
        task: that is set up.
        split: train, val or test.
        images: opens the images.
    """

    def __init__(self, task: Task, split: str, images: ImageReader) -> None:
        self.task, self.split, self.images = task, split, images

    def __len__(self) -> int:
        return self.task.size(self.split)

    def __getitem__(self, key: Key) -> Example | Skipped:
        return self.task.example(self.split, key, self.images)
