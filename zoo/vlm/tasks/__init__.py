"""Tasks: how one kind of item becomes a conversation, and how a model's answers are scored.

- `Task`: the base. `ChoiceTask` asks for one of several options, `WritingTask` for a text.
- `MatchTask`: which image of a gallery shows the instance of a query (IIR-VLM, stage 1).
- `CaptionTask`: describe an image.

Training mixes tasks with weights (`zoo.vlm.data.TaskData`); evaluation takes any list of tasks (`zoo.vlm.evaluator`).
"""

from zoo.vlm.tasks.captions import CaptionTask
from zoo.vlm.tasks.choice import ChoiceTask
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.match import MatchTask
from zoo.vlm.tasks.task import Answering, Scorer, Skipped, Task
from zoo.vlm.tasks.writing import WritingTask

__all__ = [
    "Answering",
    "CaptionTask",
    "ChoiceTask",
    "ImageReader",
    "MatchTask",
    "Scorer",
    "Skipped",
    "Task",
    "WritingTask",
]
