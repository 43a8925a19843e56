"""Scores any stage that answers on any list of tasks, outside of a recipe."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory

from lightning import Trainer

from zoo.scores import Scores
from zoo.vlm.answer_stage import AnswerStage
from zoo.vlm.data import TaskData
from zoo.vlm.tasks.task import Task


def evaluate(
    stage: AnswerStage,
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
    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}. Give val or test.")
    names = [task.name for task in tasks]
    data = TaskData(list(tasks), evaluate=names, eval_batch_size=batch_size, workers=workers)
    with TemporaryDirectory() as folder:
        trainer = trainer or Trainer(
            default_root_dir=folder, logger=False, enable_checkpointing=False, enable_model_summary=False
        )
        run = trainer.validate if split == "val" else trainer.test
        run(stage, data, verbose=False)
    return stage.scores
