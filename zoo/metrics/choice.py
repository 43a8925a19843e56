"""Multiple choice: which of the images in a gallery shows the identity of the query?"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.options import MetricOptions

UNPARSED = -1  # the prediction where no choice could be read out of an answer


class ChoiceAccuracy(Metric):
    """How often the right choice is made, overall and in groups, summed over all processes.

    An answer that no choice could be read out of counts as wrong. `compute` gives

    - `accuracy`: over all examples (micro);
    - `accuracy_macro`: the mean of the groups' accuracies, every group that has examples counting the same;
    - `unparsed`: the share of unparsed answers;
    - `examples`: how many there were;

    and `accuracy/{group}`, `unparsed/{group}`, `examples/{group}` of each group, nan where it has none. Without any
    example at all every share is nan, and training can go on. Give each example once: padding is not taken out again.

    Args:
        groups: names of the groups, such as categories.
        **kwargs: See `MetricOptions`.

    Example:
        >>> metric = ChoiceAccuracy(("person", "pet"))
        >>> metric.update(torch.tensor([2, -1, 3]), torch.tensor([2, 1, 3]), torch.tensor([0, 0, 1]))
        >>> {name: round(float(value), 2) for name, value in metric.compute().items() if "accuracy" in name}
        {'accuracy': 0.67, 'accuracy_macro': 0.75, 'accuracy/person': 0.5, 'accuracy/pet': 1.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, groups: Sequence[str], **kwargs: Unpack[MetricOptions]) -> None:
        super().__init__(**kwargs)
        if not groups or len(set(groups)) != len(groups):
            raise ValueError(f"groups is {tuple(groups)}; name at least one, each once.")
        self.groups = tuple(groups)
        # (G, 3): right, unparsed, examples
        self.add_state("counts", default=torch.zeros(len(groups), 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, answer: Tensor, group: Tensor) -> None:
        """Take in a batch.

        Args:
            predicted: `(B,)` integers, the choice made, from 0; -1 where none could be read.
            answer: `(B,)` integers, the right choice, from 0.
            group: `(B,)` integers, the place of each example's group in `groups`.

        Raises:
            ValueError: Shapes or types do not fit, or a number is out of range; the batch is left out.
        """
        self._check(predicted, answer, group)
        predicted, answer, group = (column.to(self.counts.device, torch.int64) for column in (predicted, answer, group))
        marks = torch.stack([predicted == answer, predicted == UNPARSED, torch.ones_like(group, dtype=torch.bool)], 1)
        self.counts.index_add_(0, group, marks.long())

    def compute(self) -> dict[str, Tensor]:
        """Name -> scalar float32, see the class."""
        counts = self.counts.double()
        shares = counts[:, :2] / counts[:, 2:]
        total = counts.sum(0)
        result = {
            "accuracy": total[0] / total[2],
            "accuracy_macro": shares[:, 0].nanmean(),
            "unparsed": total[1] / total[2],
            "examples": total[2],
        }
        for name, (accuracy, unparsed), examples in zip(self.groups, shares, counts[:, 2], strict=True):
            result |= {f"accuracy/{name}": accuracy, f"unparsed/{name}": unparsed, f"examples/{name}": examples}
        return {name: value.float() for name, value in result.items()}

    def _check(self, predicted: Tensor, answer: Tensor, group: Tensor) -> None:
        limits = {"predicted": (predicted, UNPARSED), "answer": (answer, 0), "group": (group, 0)}
        for name, (column, least) in limits.items():
            integer = not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
            if column.ndim != 1 or column.shape != group.shape or not integer:
                raise ValueError(
                    f"{name} is {column.dtype} {tuple(column.shape)} beside group {tuple(group.shape)}; give integers, "
                    "all of shape (B,)."
                )
            if (column < least).any():
                raise ValueError(f"{name} has {int(column.min())}; give {least} or more.")
        if (group >= len(self.groups)).any():
            raise ValueError(f"group has {int(group.max())}; there are {len(self.groups)} groups, numbered from 0.")
