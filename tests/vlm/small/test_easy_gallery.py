"""EasyGalleryTask: every query is of the instance that its answer names, and all is drawn by the key."""

from pathlib import Path

import pytest

from tests.vlm.rig import galleries, rows
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.small.easy_gallery import EasyGallery, EasyGalleryTask
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.prompts import option
from zoo.vlm.tasks.task import Skipped, TaskDataset
from zoo.world import Pets


def task_of(
    folder: Path, count: int = 40, queries: int = 3, same: float = 0.4, strange: float = 0.5
) -> EasyGalleryTask:
    """Galleries of two images of each of six pets; the name of a file is that of its pet and its number."""
    task = EasyGalleryTask(queries, same, strange, world={"pet": Pets()}, tau=[-1.0])
    task.conversations = [galleries(folder, "pet", [*rows("train", count), *rows("val", 2)], identities=6)]
    return task


def test_every_query_is_of_the_instance_that_its_answer_names(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    drawn = [task.draw(Key(epoch, row)) for epoch in range(4) for row in range(40)]
    assert drawn == [task.draw(Key(epoch, row)) for epoch in range(4) for row in range(40)], "by the key alone"
    (conversations,) = task.conversations
    instance = {
        path: ref.identity for c in conversations for ref in (c.query, *c.gallery) for path in [tmp_path / ref.path]
    }
    same = places = 0
    for gallery, queries, answers, _ in drawn:
        assert len({instance[path] for path in gallery}) == len(gallery), "no instance twice"
        assert len(queries) == len(answers) == 3
        for query, answer in zip(queries, answers, strict=True):
            assert instance[query] == instance[gallery[answer - 1]]
            same += query == gallery[answer - 1]
            places += answer == 1
    assert 0.4 <= same / (3 * len(drawn)) < 0.8  # some instances have no other query
    assert places / (3 * len(drawn)) == pytest.approx(1 / len(drawn[0][0]), abs=0.1)


def test_queries_are_turns_of_one_conversation(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    example = TaskDataset(task, "train", ImageReader())[Key(0, 0)]
    assert isinstance(example, Example)
    gallery, queries, answers, category = task.draw(Key(0, 0))
    turns = [message["content"] for message in example.messages if message["role"] == "assistant"]
    assert [*turns, example.answer] == [option(category, answer) for answer in answers]
    assert example.item == EasyGallery(answers, tuple(map(str, (*gallery, *queries))))
    assert len(example.keys) == len(example.image_names) == len(gallery) + 3


def test_a_gallery_with_an_image_that_is_missing_is_skipped_under_a_name_of_its_own(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    missing = task.draw(Key(0, 0))[0][0]
    missing.unlink()
    made = [TaskDataset(task, "train", ImageReader())[Key(0, row)] for row in range(40)]
    reasons = [item.reason for item in made if isinstance(item, Skipped)]
    assert len({*reasons}) == len(reasons) > 1 and all(missing.name in reason for reason in reasons)


def test_evaluation_is_that_of_matching(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    example = task.example("val", Key(0, 0), ImageReader())
    assert isinstance(example, Example) and example.item == task.at("val", 0)[1]
    assert [message["role"] for message in example.messages] == ["user"]


def test_a_gallery_without_a_query_is_refused() -> None:
    with pytest.raises(ValueError, match="data.queries is 0"):
        EasyGalleryTask(0, world={"pet": Pets()}, tau=[-1.0])
