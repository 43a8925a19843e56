"""ChoiceTask: one of several options is right."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.distributed import sum_over_ranks
from zoo.metrics import UNPARSED, ChoiceAccuracy
from zoo.scores import ScoreName, Scores
from zoo.vlm.batch import VLMBatch
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.task import Answering, Item, Scorer, Task


class Options(NamedTuple):
    """The question of one item.

    Args:
        texts: what the model may answer.
        right: place of the right one, from 0.
        group: such as the category; "" for none.
        level: of difficulty; "" for none.
    """

    texts: Sequence[str]
    right: int
    group: str = ""
    level: str = ""


class ChoiceTask(Task[Item]):
    """A task whose items have options. The model's choice is the option of the highest log-likelihood: the sum of the
    log-probabilities of its tokens, not divided by their number. What the model writes is scored beside it in tests.

    Scores: `accuracy`; `written`, and `unparsed` the share of texts that name no option; `chance`, what guessing gives;
    and those of `baselines`. Each is a mean over the groups, and given for every group and level of difficulty, too.
    `conversations` is how many there were.

    Subclasses implement `options`, and perhaps `groups`, `levels`, `parse` and `baselines`.
    """

    @abstractmethod
    def options(self, item: Item) -> Options:
        """What an item asks."""

    @property
    def groups(self) -> Sequence[str]:
        """The groups of all items."""
        return ("",)

    @property
    def levels(self) -> Sequence[str]:
        """The levels of difficulty of all items, from the easiest."""
        return ("",)

    def parse(self, text: str, item: Item) -> int | None:
        """Place of the option that a written answer names; None where it names none, or several."""
        named = [place for place, option in enumerate(self.options(item).texts) if option in text]
        return named[0] if len(named) == 1 else None

    def baselines(self, model: Answering) -> Sequence[str]:
        """Names of what a model is compared with, beside chance."""
        return ()

    def baseline(self, name: str, batch: VLMBatch, features: TowerFeatures) -> list[int | None]:
        """What a baseline chooses for each item of a batch; None where it is not asked."""
        raise NotImplementedError(f"{type(self).__name__}.baselines names {name!r}; `baseline` must give its choices.")

    def further_scores(self, examples: dict[str, float]) -> Scores:
        """Scores of the task's own, from the number of conversations that each answer was counted in."""
        return {}

    def scorer(self, split: str, model: Answering, writes: bool) -> "ChoiceScorer":
        return ChoiceScorer(self, model, writes)


class ChoiceScorer(Scorer):
    """Counts right choices of a model and of baselines, by group and level.

    Args:
        task: that is scored.
        model: that is asked.
        writes: whether it also writes its answers.
    """

    def __init__(self, task: ChoiceTask, model: Answering, writes: bool) -> None:
        self.task, self.writes = task, writes
        self.cells = {cell: number for number, cell in enumerate(product(task.groups, task.levels))}
        names = ["accuracy", *task.baselines(model), *["written"] * writes]
        cells = ["/".join(cell) for cell in self.cells]
        self.metrics = {name: ChoiceAccuracy(cells).to(model.device) for name in names}
        # Of n options, a guess takes the right one once in n times: summed for each cell.
        self.chance = torch.zeros(len(self.cells), dtype=torch.float64, device=model.device)

    def update(self, model: Answering, batch: VLMBatch, features: TowerFeatures) -> None:
        asked = [self.task.options(item) for item in batch.items]
        right = torch.tensor([options.right for options in asked])
        cells = torch.tensor([self.cells[options.group, options.level] for options in asked])
        scores = model.option_scores(batch, features, [options.texts for options in asked])
        self._count("accuracy", scores.argmax(dim=1).cpu(), right, cells)
        for options, cell in zip(asked, cells.tolist(), strict=True):
            self.chance[cell] += 1 / len(options.texts)
        for name in self.metrics.keys() - {"accuracy", "written"}:
            chosen = self.task.baseline(name, batch, features)
            counts = torch.tensor([place is not None for place in chosen])
            places = torch.tensor([UNPARSED if place is None else place for place in chosen])
            self._count(name, places[counts], right[counts], cells[counts])
        if self.writes:
            texts = model.write(batch, features, [text for options in asked for text in options.texts])
            named = [self.task.parse(text, item) for text, item in zip(texts, batch.items, strict=True)]
            self._count("written", torch.tensor([UNPARSED if n is None else n for n in named]), right, cells)

    def _count(self, name: str, chosen: Tensor, right: Tensor, cells: Tensor) -> None:
        self.metrics[name].update(chosen, right, cells)

    def compute(self) -> Scores:
        cells: dict[str, dict[tuple[str, str], float]] = {}
        scores: dict[ScoreName, float] = {}
        examples = {}
        for name, metric in self.metrics.items():
            values = {key: float(value) for key, value in metric.compute().items()}
            examples[name] = values["examples"]
            cells[name] = {cell: values[f"accuracy/{'/'.join(cell)}"] for cell in self.cells}
            if name == "accuracy":
                counts = [values[f"examples/{'/'.join(cell)}"] for cell in self.cells]
            elif name == "written":
                scores[ScoreName("unparsed")] = values["unparsed"]
        sums = sum_over_ranks(self.chance).tolist()
        shares = [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]
        cells = {"chance": dict(zip(self.cells, shares, strict=True))} | cells
        scores[ScoreName("conversations")] = examples["accuracy"]
        scores |= self.task.further_scores(examples)
        for name, own in cells.items():
            scores |= means_of(name, own)
        return scores


def means_of(name: str, cells: dict[tuple[str, str], float]) -> Scores:
    """A share over everything, of every group, of every level, and of each cell.

    Args:
        name: of the score.
        cells: group and level -> share, nan where there is no example: such cells are left out.

    Returns:
        the mean over the groups' means; the mean over a group's levels, and over a level's groups; and the cells.
    """
    known = {cell: share for cell, share in cells.items() if not math.isnan(share)}
    groups, levels = (list(dict.fromkeys(cell[axis] for cell in known)) for axis in (0, 1))
    by_group = {g: fmean(share for cell, share in known.items() if cell[0] == g) for g in groups}
    by_level = {level: fmean(share for cell, share in known.items() if cell[1] == level) for level in levels}
    scores = {ScoreName(name): fmean(by_group.values())} if known else {}
    scores |= {ScoreName(name, group=group): share for group, share in by_group.items() if group}
    scores |= {ScoreName(name, level=level): share for level, share in by_level.items() if level}
    return scores | {ScoreName(name, *cell): share for cell, share in known.items() if all(cell)}
