"""ChoiceTask: every score against a count by hand, on a model whose answers are given."""

import math

import pytest
import torch

from tests.vlm.colours import COLOURS, Square, WhichColour
from tests.vlm.scripted import Scripted, batch_of, features_of, score
from zoo.data.samplers import Key
from zoo.scores import ScoreName, Scores
from zoo.vlm.batch import Example, VLMBatch
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.tasks import Answering, ChoiceTask, ImageReader
from zoo.vlm.tasks.choice import Options, means_of


class Given(ChoiceTask[Options]):
    """Its items are the questions themselves; groups and levels are those of the test."""

    name = "given"
    groups = ("pet", "object", "face")
    levels = ("easy", "hard")

    def size(self, split: str) -> int:
        return 0

    def example(self, split: str, key: Key, images: ImageReader) -> Example:
        raise NotImplementedError

    def options(self, item: Options) -> Options:
        return item


class WithFirst(Given):
    """Compared with the answer that always takes the first option, where that is written in lower case."""

    def baselines(self, model: Answering) -> tuple[str, ...]:
        return ("first",)

    def baseline(self, name: str, batch: VLMBatch, features: TowerFeatures) -> list[int | None]:
        return [0 if item.texts[0].islower() else None for item in batch.items]

    def further_scores(self, examples: dict[str, float]) -> Scores:
        return {ScoreName("asked"): examples["first"] / examples["accuracy"]}


def question(group: str, level: str, right: int, texts: str = "a b") -> Options:
    return Options(texts.split(), right, group, level)


def named(scores: Scores) -> dict[str, float]:
    return {str(key): value for key, value in scores.items()}


def test_accuracy_and_chance_by_hand():
    """Also over a batch that nothing is left of, and of questions with two options and with three."""
    first = [question("pet", "easy", 0), question("pet", "easy", 1), question("object", "easy", 2, "a b c")]
    second = [question("pet", "hard", 1, "a b c")]
    batches = [(first, [0, 0, 2], ["a", "b", "c"]), ([], [], []), (second, [1], ["no"])]
    found = named(score(Given(), Scripted(), batches))
    expected = {
        "accuracy": {"pet/easy": 1 / 2, "object/easy": 1, "pet/hard": 1},
        "written": {"pet/easy": 1, "object/easy": 1, "pet/hard": 0},
        "chance": {"pet/easy": 1 / 2, "object/easy": 1 / 3, "pet/hard": 1 / 3},
    }
    for name, cells in expected.items():
        for cell, share in cells.items():
            assert found[f"{cell}/{name}"] == pytest.approx(share), (cell, name)
        pet = (cells["pet/easy"] + cells["pet/hard"]) / 2
        assert found[f"pet/{name}"] == pytest.approx(pet)
        assert found[name] == pytest.approx((pet + cells["object/easy"]) / 2)
        assert found[f"easy/{name}"] == pytest.approx((cells["pet/easy"] + cells["object/easy"]) / 2)
        assert found[f"hard/{name}"] == pytest.approx(cells["pet/hard"])
    assert found["conversations"] == 4 and found["unparsed"] == pytest.approx(1 / 4)


def test_a_mean_over_groups_does_not_weigh_the_larger_one_more():
    items = [question("pet", "easy", 0)] * 9 + [question("object", "easy", 0)]
    found = named(score(Given(), Scripted(), [(items, [0] * 9 + [1], [""] * 10)]))
    assert found["pet/accuracy"] == 1 and found["object/accuracy"] == 0 and found["accuracy"] == 0.5


def test_empty_cells_are_left_out_of_every_mean():
    items = [question("pet", "easy", 0), question("pet", "hard", 1), question("object", "hard", 1)]
    found = named(score(Given(), Scripted(), [(items, [0, 0, 1], [""] * 3)]))
    assert found["pet/accuracy"] == 0.5 and found["object/accuracy"] == 1 and found["accuracy"] == 0.75
    assert found["easy/accuracy"] == 1 and found["hard/accuracy"] == 0.5
    assert not any("face" in name or "object/easy" in name for name in found)
    assert not any(math.isnan(value) for value in found.values())


def test_means_by_hand():
    cells = {("pet", "easy"): 1.0, ("pet", "hard"): 0.0, ("face", "easy"): 0.5, ("face", "hard"): math.nan}
    expected = {
        ScoreName("accuracy"): 0.5,
        ScoreName("accuracy", group="pet"): 0.5,
        ScoreName("accuracy", group="face"): 0.5,
        ScoreName("accuracy", level="easy"): 0.75,
        ScoreName("accuracy", level="hard"): 0.0,
        ScoreName("accuracy", "pet", "easy"): 1.0,
        ScoreName("accuracy", "pet", "hard"): 0.0,
        ScoreName("accuracy", "face", "easy"): 0.5,
    }
    assert means_of("accuracy", cells) == expected
    assert means_of("accuracy", {("", ""): 0.25}) == {ScoreName("accuracy"): 0.25}, "neither groups nor levels"
    assert means_of("accuracy", {("", ""): math.nan}) == {}


def test_a_baseline_counts_where_it_is_asked_only():
    items = [question("pet", "easy", 0), question("pet", "easy", 1), question("pet", "easy", 0, "A B")]
    found = named(score(WithFirst(), Scripted(), [(items, [1, 1, 1], [])], writes=False))
    assert found["first"] == found["pet/easy/first"] == 1 / 2 and found["asked"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(1 / 3) and "written" not in found and "unparsed" not in found


def test_a_baseline_without_choices_is_named():
    class Forgotten(Given):
        def baselines(self, model: Answering) -> tuple[str, ...]:
            return ("general",)

    with pytest.raises(NotImplementedError, match="Forgotten.baselines names 'general'"):
        Forgotten().baseline("general", batch_of([]), features_of())


def test_a_written_answer_counts_where_it_names_one_option():
    task = WhichColour({})
    square = Square(None, "blue", "small")  # type: ignore[arg-type]
    assert [task.parse(text, square) for text in ("blue", "It is green.", "red or blue", "yellow", "")] == [
        2, 1, None, None, None
    ]  # fmt: skip


def test_no_more_is_written_than_the_longest_option_takes():
    model = Scripted()
    square = Square(None, "blue", "small")  # type: ignore[arg-type]
    score(WhichColour({}), model, [([square], [2], ["blue"])])
    assert model.longest == tuple(COLOURS) and model.spare == 4


def test_of_options_that_are_fewer_the_rest_is_never_chosen():
    """A batch of questions with two and with four options."""
    torch.manual_seed(0)
    items = [question("pet", "easy", 1), question("pet", "easy", 3, "a b c d")]
    assert named(score(Given(), Scripted(), [(items, [1, 3], [])], writes=False))["accuracy"] == 1
