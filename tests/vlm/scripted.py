"""A model whose answers are given, for the tests of scorers."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.scores import Scores
from zoo.vlm.batch import ExpertCrops, VLMBatch
from zoo.vlm.evaluator import Evaluator
from zoo.vlm.fused import ExpertFeatures, TowerFeatures
from zoo.vlm.tasks import Task


class Scripted:
    """Chooses and writes what it was given for the next batch.

    Args:
        vector_experts: categories whose expert gives one identity vector a crop.
    """

    device = torch.device("cpu")

    def __init__(self, vector_experts: Collection[str] = ()) -> None:
        self.vector_experts = vector_experts
        self.choices: Sequence[int] = ()
        self.texts: Sequence[str] = ()

    def option_scores(self, batch: VLMBatch, features: TowerFeatures, options: Sequence[Sequence[str]]) -> Tensor:
        """The options of each prompt, the one that is to be chosen above the others."""
        out = torch.full((len(options), max(map(len, options))), -torch.inf)
        for row, (texts, choice) in enumerate(zip(options, self.choices, strict=True)):
            out[row, : len(texts)] = -5 - torch.rand(len(texts))
            out[row, choice] = -1.0
        return out

    def write(self, batch: VLMBatch, features: TowerFeatures, longest: Sequence[str], spare: int = 4) -> list[str]:
        self.longest, self.spare = tuple(longest), spare
        return list(self.texts)


def batch_of(items: Sequence[Any], images: int = 0, experts: dict[str, ExpertCrops] | None = None) -> VLMBatch:
    """A batch of items, without tokens or pixels.

    Args:
        items: of a task.
        images: in all of them.
        experts: category -> its crops.
    """
    none = torch.zeros(len(items), 1, dtype=torch.int64)
    counts = torch.ones(images, dtype=torch.int64)
    return VLMBatch(none, none, none, {}, {}, counts, experts or {}, ("",) * images, tuple(items))


def features_of(**experts: ExpertFeatures) -> TowerFeatures:
    """What the experts gave, and nothing of the vision tower."""
    return TowerFeatures(torch.zeros(0), torch.zeros(0), experts)


def score(
    task: Task,
    model: Scripted,
    batches: Sequence[tuple[Sequence[Any], Sequence[int], Sequence[str]]],
    features: TowerFeatures | None = None,
    writes: bool = True,
) -> Scores:
    """Scores of one evaluation.

    Args:
        task: that is scored.
        model: that answers.
        batches: items, the place of the option that the model chooses for each, and what it writes.
        features: of the experts.
        writes: whether the model writes.
    """
    evaluator = Evaluator([task], "test", model, writes)
    for items, model.choices, model.texts in batches:
        evaluator.update(0, batch_of(items), features or features_of())
    return evaluator.compute()
