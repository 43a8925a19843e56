"""Evaluator and evaluate: the scores of any tasks, each under its own name where there are several."""

from pathlib import Path

import pytest
import torch

from tests.vlm.colours import NameColour, Square, Squares, WhichColour, squares
from tests.vlm.rig import stage, trainer
from tests.vlm.scripted import Scripted, batch_of, features_of
from zoo.scores import ScoreName, Scores
from zoo.vlm.data import TaskData
from zoo.vlm.evaluate import evaluate
from zoo.vlm.evaluator import Evaluator
from zoo.vlm.match import MatchStage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    return squares(tmp_path_factory.mktemp("squares"), val=3, test=7)


@pytest.fixture(scope="module")
def model() -> MatchStage:
    return stage(experts=None, fusion=None)


def sources(scores: Scores) -> set[str]:
    return {key.source for key in scores}


def test_several_tasks_are_told_apart_by_their_names():
    blue, red = (Square(Path(), colour, "small") for colour in ("blue", "red"))
    model = Scripted()
    evaluator = Evaluator([WhichColour({}), NameColour({})], "val", model, writes=False)
    model.choices, model.texts = [2, 2], []
    evaluator.update(0, batch_of([blue, red]), features_of())
    model.texts = ["It is blue."]
    evaluator.update(1, batch_of([blue]), features_of())
    evaluator.update(1, batch_of([]), features_of())
    found = evaluator.compute()
    assert found[ScoreName("accuracy", source="colour")] == 1 / 2
    assert found[ScoreName("accuracy", "small", source="colour")] == 1 / 2
    assert found[ScoreName("chrf", source="naming")] == pytest.approx(1)
    assert found[ScoreName("conversations", source="naming")] == 1 and sources(found) == {"colour", "naming"}
    assert not any(key.name == "written" for key in found), "it was not to write where it compares"


def test_one_task_needs_no_name():
    blue = Square(Path(), "blue", "small")
    model = Scripted()
    evaluator = Evaluator([WhichColour({})], "test", model, writes=True)
    model.choices, model.texts = [2], ["red"]
    evaluator.update(0, batch_of([blue]), features_of())
    found = evaluator.compute()
    assert sources(found) == {""}
    assert (found[ScoreName("accuracy")], found[ScoreName("written")], found[ScoreName("unparsed")]) == (1, 0, 0)


def test_a_stage_is_scored_as_the_trainer_scores_it(made, model, tmp_path):
    """On both tasks, and on each of them alone."""
    tasks = [WhichColour(made), NameColour(made)]
    together = dict(evaluate(model, tasks, batch_size=4, workers=0))
    assert sources(together) == {"colour", "naming"}
    trainer(tmp_path).test(model, TaskData(tasks, eval_batch_size=4, workers=0), verbose=False)
    assert together == model.scores
    assert together[ScoreName("conversations", source="colour")] == 7
    for task in tasks:
        alone = dict(evaluate(model, [task], batch_size=4, workers=0))
        assert alone == {
            key._replace(source=""): value for key, value in together.items() if key.source == task.name
        } and sources(alone) == {""}


def test_the_split_is_a_choice(made, model, tmp_path):
    found = dict(evaluate(model, [WhichColour(made)], split="val", batch_size=4, workers=0, trainer=trainer(tmp_path)))
    assert found[ScoreName("conversations")] == 3 and ScoreName("written") not in found, "only a test writes"
    with pytest.raises(ValueError, match="split is 'train'. Give val or test"):
        evaluate(model, [WhichColour(made)], split="train")


def test_nothing_of_the_stage_is_changed(made, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, [NameColour(made)], batch_size=4, workers=0)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_task_without_an_item_is_refused(made, model):
    with pytest.raises(ValueError, match="The task colour has no item in the test split to test with. Give it some"):
        evaluate(model, [WhichColour({"val": made["val"]}), NameColour(made)], workers=0)
    with pytest.raises(ValueError, match="The task naming has no item in the val split to validate with"):
        evaluate(model, [NameColour({"test": made["test"]})], split="val", workers=0)
