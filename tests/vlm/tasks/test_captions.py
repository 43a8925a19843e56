"""CaptionTask: images of a world and of scenes, each with what may be written of it."""

import pytest

from tests.vlm.scripted import Scripted, score
from zoo.data.captions import read_captions
from zoo.data.samplers import Key
from zoo.scores import ScoreName
from zoo.vlm.cache.towers import KeptImage
from zoo.vlm.tasks import CaptionTask, ImageReader, Skipped
from zoo.vlm.tasks.captions import CaptionedImage, attributes_text
from zoo.vlm.tasks.match import index_of
from zoo.vlm.tasks.writing import commonest_of
from zoo.world import Pets, Scenes

PETS = Pets(families=6, members=3, views=2, size=32)
SCENES = Scenes(scenes=12, size=48, families=6, members=3)


@pytest.fixture(scope="module")
def task() -> CaptionTask:
    made = CaptionTask(SCENES, {"pet": PETS})
    made.prepare()
    made.setup()
    return made


def test_items_are_the_scenes_then_the_instances_of_a_split(task):
    for split in ("train", "val", "test"):
        captions, index = read_captions(SCENES.prepare(), split), index_of(PETS)
        items = task.items(split)
        assert len(items) == task.size(split) == len(captions) + len(index.rows(split))
        scenes, pets = items[: len(captions)], items[len(captions) :]
        assert [item.path for item in scenes] == [captions.root / path for path in captions.paths]
        assert [item.answers for item in scenes] == list(captions.texts)
        assert {item.question for item in scenes} == {"Describe the scene."}
        assert {item.question for item in pets} == {"Describe the pet."}
        for row, item in zip(index.rows(split), pets, strict=True):
            assert item == CaptionedImage(
                index.root / str(index.paths[row]), "Describe the pet.", (attributes_text(index, row),)
            )
    assert task.describe() == f"captions of {task.size('train')} images"
    shown = {item.path for split in ("train", "test") for item in task.items(split)}
    assert {KeptImage(path) for path in shown} == set(task.images("train", "test"))
    assert not {item.path for item in task.items("train")} & {item.path for item in task.items("test")}


def test_attributes_are_a_list_of_those_that_are_known():
    index = index_of(PETS)
    row = int(index.rows("train")[0])
    text = attributes_text(index, row)
    assert text.startswith(f"species {index.attributes['species'][row]}, ") and "_" not in text
    assert text.count(", ") + 1 == sum(bool(column[row]) for column in index.attributes.values())


def test_one_of_several_captions_is_drawn_for_each_epoch(task):
    number, item = next((n, own) for n, own in enumerate(task.items("train")) if len(set(own.answers)) > 2)

    def answers(made: CaptionTask) -> list[str]:
        examples = [made.example("train", Key(epoch, number), ImageReader()) for epoch in range(30)]
        assert not any(isinstance(example, Skipped) for example in examples)
        return [example.answer for example in examples]

    drawn = answers(task)
    assert set(drawn) == set(item.answers), "each of them, at one time"
    assert drawn == answers(CaptionTask(SCENES, {"pet": PETS}, seed=0)), "by seed, epoch and row"
    assert drawn != answers(CaptionTask(SCENES, {"pet": PETS}, seed=1))
    example = task.example("train", Key(0, number), ImageReader())
    ((message,), path) = (example.messages, str(item.path))
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == item.question and example.item == item
    assert example.name == path and example.image_names == (path,) and example.instances == ()


def test_the_baselines_answer_with_captions_of_the_same_question_in_training(task):
    for item in (task.items("test")[0], task.items("test")[-1]):
        asked = [text for own in task.items("train") if own.question == item.question for text in own.answers]
        assert list(task.training_texts(item)) == asked and commonest_of(asked) in asked
    assert not task.training_texts(CaptionedImage(task.items("test")[0].path, "What is it?", ("a pet",)))


def test_captions_are_scored_beside_the_answers_that_look_at_nothing(task):
    pets = task.items("test")[-4:]
    written = [item.answers[0] for item in pets]
    found = score(task, Scripted(), [(pets, [0] * 4, written)])
    assert found[ScoreName("chrf")] == pytest.approx(1) and found[ScoreName("conversations")] == 4
    assert 0 < found[ScoreName("chrf_drawn")] < 1 and 0 < found[ScoreName("chrf_commonest")] < 1


def test_a_tokenizer_is_made_from_questions_and_captions(task):
    texts = set(task.texts())
    assert {"Describe the scene.", "Describe the pet."} < texts
    assert all(set(item.answers) <= texts for item in task.items("train"))


def test_a_missing_image_is_skipped_by_name(task, tmp_path):
    gone = CaptionTask(None, {})
    gone._items["train"] = [CaptionedImage(tmp_path / "gone.png", "What?", ("a cat",))]
    item = gone.example("train", Key(0, 0), ImageReader())
    assert isinstance(item, Skipped) and "gone.png: no such file" in item.reason
    assert gone.size("train") == 1 and list(gone.images("val")) == []
