"""WritingTask: the model writes a text, which is compared with references."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import cast
from zlib import crc32

import torch
from torchmetrics.text import CHRFScore

from zoo.distributed import sum_over_ranks
from zoo.scores import ScoreName, Scores
from zoo.vlm.batch import VLMBatch
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.task import Answering, Item, Scorer, Task


class WritingTask(Task[Item]):
    """A task whose items have reference texts.

    Scores, each from 0 to 1: `chrf`, the overlap of character n-grams with the best reference (Popovic, "chrF:
    character n-gram F-score for automatic MT evaluation", WMT 2015; n up to 6, without words); and the same of two
    answers that look at no image: `chrf_commonest`, the reference that is the most frequent one in training, and
    `chrf_drawn`, one of training drawn at random. An exact text of fewer than 6 characters scores less than 1.
    `conversations` is how many there were.

    Subclasses implement `references` and `training_texts`.

    Attributes:
        longest: most tokens that are written.
    """

    longest = 64

    @abstractmethod
    def references(self, item: Item) -> Sequence[str]:
        """The texts of which any is right."""

    @abstractmethod
    def training_texts(self, item: Item) -> Sequence[str]:
        """All texts that are right in training for the question that this item asks; the same object every time."""

    def metric(self) -> str:
        return "chrf"

    def scorer(self, split: str, model: Answering, writes: bool) -> "WritingScorer":
        return WritingScorer(self, model)


class WritingScorer(Scorer):
    """Compares what a model writes, and what two baselines give, with references.

    Args:
        task: that is scored.
        model: that is asked.
    """

    def __init__(self, task: WritingTask, model: Answering) -> None:
        self.task = task
        self.metrics = {
            name: CHRFScore(n_word_order=0).to(model.device) for name in ("chrf", "chrf_commonest", "chrf_drawn")
        }
        self.count = torch.zeros((), dtype=torch.int64, device=model.device)
        self._commonest: dict[int, str] = {}

    def update(self, model: Answering, batch: VLMBatch, features: TowerFeatures) -> None:
        references = [list(self.task.references(item)) for item in batch.items]
        written = model.write(batch, features, (), spare=self.task.longest)
        known = [self.task.training_texts(item) for item in batch.items]
        answers = {
            "chrf": written,
            "chrf_commonest": [self._commonest_of(texts) for texts in known],
            "chrf_drawn": [drawn_from(texts, own) for texts, own in zip(known, references, strict=True)],
        }
        for name, texts in answers.items():
            self.metrics[name].update(texts, references)
        self.count += len(batch.items)

    def _commonest_of(self, texts: Sequence[str]) -> str:
        if id(texts) not in self._commonest:
            self._commonest[id(texts)] = commonest_of(texts)
        return self._commonest[id(texts)]

    def compute(self) -> Scores:
        count = float(sum_over_ranks(self.count))
        scores = {ScoreName("conversations"): count}
        for name, metric in self.metrics.items():
            scores[ScoreName(name)] = float(cast(torch.Tensor, metric.compute()))
        return scores


def commonest_of(texts: Sequence[str]) -> str:
    """The most frequent of some texts, the first of equals; "" of none."""
    return Counter(texts).most_common(1)[0][0] if texts else ""


def drawn_from(texts: Sequence[str], references: Sequence[str]) -> str:
    """One of some texts, drawn by an item's references, whatever its batch and process; "" of none."""
    return texts[crc32("\n".join(references).encode()) % len(texts)] if texts else ""
