"""WritingTask: chrF against torchmetrics and by hand, beside the answers that look at no image."""

from collections.abc import Sequence
from zlib import crc32

import pytest
from torchmetrics.functional.text import chrf_score

from tests.vlm.scripted import Scripted, score
from zoo.data.samplers import Key
from zoo.scores import ScoreName
from zoo.vlm.batch import Example
from zoo.vlm.tasks import ImageReader, WritingTask
from zoo.vlm.tasks.writing import commonest_of


class Given(WritingTask[tuple[str, ...]]):
    """Its items are the references themselves."""

    name = "given"
    longest = 7

    def size(self, split: str) -> int:
        return 0

    def example(self, split: str, key: Key, images: ImageReader) -> Example:
        raise NotImplementedError

    def references(self, item: tuple[str, ...]) -> Sequence[str]:
        return item

    def training_texts(self, item: tuple[str, ...]) -> Sequence[str]:
        return KNOWN


KNOWN = ("a black cat", "a black cat", "a grey mouse")
REFERENCES = [("a black cat", "a cat that sits"), ("a white dog",), ("a red mug", "a mug"), ("two dogs",)]
WRITTEN = ["a black cat", "a white cat", "", "three dogs run"]


def scores_of(sizes: Sequence[int]) -> dict[str, float]:
    """Scores of the references, in batches of these sizes."""
    batches, first = [], 0
    for size in sizes:
        part = slice(first, first + size)
        batches.append((REFERENCES[part], [0] * size, WRITTEN[part]))
        first += size
    return {str(key): value for key, value in score(Given(), Scripted(), batches).items()}


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2)])
def test_scores_are_those_of_torchmetrics(sizes):
    """The baselines too, whatever the batches."""
    found = scores_of(sizes)
    drawn = [KNOWN[crc32("\n".join(own).encode()) % len(KNOWN)] for own in REFERENCES]
    expected = {"chrf": WRITTEN, "chrf_commonest": ["a black cat"] * 4, "chrf_drawn": drawn}
    for name, texts in expected.items():
        by_torchmetrics = chrf_score(texts, [list(own) for own in REFERENCES], n_word_order=0)
        assert found[name] == pytest.approx(float(by_torchmetrics), abs=1e-6), name
    assert found["conversations"] == 4 and set(found) == {*expected, "conversations"}


def test_chrf_by_hand():
    """The mean over n of the F-scores of n-grams; torchmetrics counts those n as 0 that the texts are too short for."""
    for text, references, by_length in (
        ("a black cat", ("mug", "a black cat"), (1, 1, 1, 1, 1, 1)),
        ("mug", ("cup", "mug"), (1, 1, 1, 0, 0, 0)),
        ("ab", ("ac",), (1 / 2, 0, 0, 0, 0, 0)),
        ("xyz", ("mug",), (0, 0, 0, 0, 0, 0)),
    ):
        found = score(Given(), Scripted(), [([references], [0], [text])])
        assert found[ScoreName("chrf")] == pytest.approx(sum(by_length) / 6, abs=1e-6), text


def test_the_metric_of_a_run_is_chrf_and_the_model_writes_as_much_as_the_task_allows():
    model = Scripted()
    score(Given(), model, [(REFERENCES[:1], [0], WRITTEN[:1])], writes=False)
    assert Given().metric() == "chrf" and (model.longest, model.spare) == ((), 7)


def test_the_commonest_text():
    assert commonest_of(["cat", "dog", "dog", "cow"]) == "dog"
    assert commonest_of(["cat", "dog"]) == "cat", "the first of equals"
    assert commonest_of([]) == ""
