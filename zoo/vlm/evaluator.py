"""Evaluator: scores a model on a list of tasks, each by its own metric and beside its own trivial baselines."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lightning import Trainer

from zoo.scores import Scores
from zoo.vlm.batch import VLMBatch
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks.task import Answering, Task

if TYPE_CHECKING:
    from zoo.vlm.answer_stage import AnswerStage


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
        if batch.items:
            self.scorers[task].update(self.model, batch, features)

    def compute(self) -> Scores:
        """The scores of all tasks; of several tasks, each score names its task as its source."""
        several = len(self.tasks) > 1
        return {
            key._replace(source=task.name) if several else key: value
            for task, scorer in zip(self.tasks, self.scorers, strict=True)
            for key, value in scorer.compute().items()
        }


def evaluate(
    stage: "AnswerStage",
    tasks: Sequence[Task],
    split: str = "test",
    batch_size: int = 32,
    workers: int = 1,
    trainer: Trainer | None = None,
) -> Scores:
    """Score a stage on any tasks.

    Args:
        stage: trained or not.
        tasks: one or more.
        split: val or test.
        batch_size: conversations in a batch, on each process.
        workers: processes that decode, on each process.
        trainer: on which devices; None for one that logs nothing.

    Raises:
        ValueError: another split, or a task without an item in it.
    """
    from zoo.vlm.data import TaskData

    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}. Give val or test.")
    data = TaskData(list(tasks), eval_batch_size=batch_size, workers=workers)
    with TemporaryDirectory() as folder:
        trainer = trainer or Trainer(
            default_root_dir=folder, logger=False, enable_checkpointing=False, enable_model_summary=False
        )
        run = trainer.validate if split == "val" else trainer.test
        run(stage, data, verbose=False)
    return stage.scores
