"""Evaluator: scores a model on a list of tasks, each by its own metric and beside its own trivial baselines."""

from collections.abc import Sequence

from zoo.scores import Scores
from zoo.vlm.batch import VLMBatch
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.task import Answering, Task


class Evaluator:
    """One evaluation of a model on tasks, whose batches come task by task.

    Args:
        tasks: that are set up.
        split: val or test.
        model: that is scored.
        writes: whether it also writes its answers, where comparing options would do.
    """

    def __init__(self, tasks: Sequence[Task], split: str, model: Answering, writes: bool) -> None:
        self.tasks, self.model = tasks, model
        self.scorers = [task.scorer(split, model, writes) for task in tasks]

    def update(self, task: int, batch: VLMBatch, features: TowerFeatures) -> None:
        """Ask the model the prompts of a batch.

        Args:
            task: number of the task that they are of.
            batch: prompts for generation; nothing happens where all of them were left out.
            features: of the same batch.
        """
        if not batch.items:
            return
        if task >= len(self.scorers):
            raise RuntimeError("The batch is of no task. Run the stage with a data module of tasks, such as TaskData.")
        self.scorers[task].update(self.model, batch, features)

    def compute(self) -> Scores:
        """The scores of all tasks; of several tasks, each score names its task as its source."""
        several = len(self.tasks) > 1
        return {
            key._replace(source=task.name) if several else key: value
            for task, scorer in zip(self.tasks, self.scorers, strict=True)
            for key, value in scorer.compute().items()
        }
