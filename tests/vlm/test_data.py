"""TaskData: how tasks are mixed, and what a batch holds."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from tests.vlm.colours import NameColour, WhichColour, squares
from tests.vlm.rig import attached, data_of, galleries, rows, stage, trainer
from zoo.data.samplers import Key
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.data import JoinedDataset, TaskData, collate, shares
from zoo.vlm.tasks import ImageReader, MatchTask, Task
from zoo.vlm.tasks.match import GallerySource
from zoo.vlm.tasks.task import TaskDataset

# ---------------------------------------------------------------------- shares of a batch


@pytest.mark.parametrize(
    ("weights", "batch_size", "processes", "expected"),
    [
        ({"a": 1}, 8, 2, {"a": 8}),
        ({"a": 1, "b": 1}, 8, 1, {"a": 4, "b": 4}),
        ({"a": 1, "b": 2}, 6, 1, {"a": 2, "b": 4}),
        ({"a": 1, "b": 2}, 8, 1, {"a": 3, "b": 5}),  # 2.67 and 5.33: the larger remainder is rounded up
        ({"a": 1, "b": 1, "c": 1}, 8, 2, {"a": 4, "b": 2, "c": 2}),  # 1.33 each on a process
        ({"a": 0.15, "b": 0.85}, 64, 1, {"a": 10, "b": 54}),
        ({"a": 0.15, "b": 0.85}, 64, 4, {"a": 8, "b": 56}),  # 2.4 of 16 on a process
        ({"a": 0.01, "b": 0.99}, 64, 4, {"a": 4, "b": 60}),  # one on every process
        ({"a": 0.01, "b": 0.01, "c": 0.98}, 8, 2, {"a": 2, "b": 2, "c": 4}),
        ({"a": 0, "b": 3}, 8, 4, {"a": 0, "b": 8}),
    ],
)
def test_shares_by_hand(weights, batch_size, processes, expected):
    assert shares(weights, batch_size, processes) == expected


@pytest.mark.parametrize(
    ("weights", "batch_size", "processes", "message"),
    [
        ({"a": 1}, 7, 2, "batch_size is 7, for 1 tasks on 2 processes. Choose a multiple of 2, at least 2"),
        ({"a": 1, "b": 1, "c": 0}, 4, 4, "for 2 tasks on 4 processes. Choose a multiple of 4, at least 8"),
        ({"a": 1}, 0, 1, "batch_size is 0"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(weights, batch_size, processes, message):
    with pytest.raises(ValueError, match=message):
        shares(weights, batch_size, processes)


# ---------------------------------------------------------------------- a mixture of tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    galleries(root / "photos", "pet", [*rows("train", 10), *rows("test", 3)]).save(root / "manifest.parquet")
    return root


def tasks_in(folder: Path) -> list[Task]:
    """14 squares to train on, of which two tasks make conversations; and 10 galleries."""
    made = squares(folder, train=14, val=4, test=5)
    return [WhichColour(made), MatchTask([GallerySource(str(folder / "manifest.parquet"))]), NameColour(made)]


def mixture(folder: Path, **options: Any) -> TaskData:
    weights = {"colour": 2.0, "match": 1.0, "naming": 1.0}
    return TaskData(tasks_in(folder), **{"weights": weights, "batch_size": 8, "workers": 0, **options})


def drawn(data: TaskData, epoch: int, first: int = 0) -> list[list[tuple[str, int]]]:
    """Task and number of each conversation of the training batches of an epoch, on this process."""
    loader = data.train_dataloader()
    sampler, parts, size = loader.sampler, loader.dataset, loader.batch_size
    sampler.set_epoch(epoch)
    assert isinstance(parts, JoinedDataset) and size is not None
    ends = [0, *parts.ends.tolist()]
    found = []
    for key in sampler:
        part = int(np.searchsorted(parts.ends, key.row, side="right"))
        found.append((parts.parts[part].task.name, key.row - ends[part]))
    return [found[start : start + size] for start in range(0, len(found), size)][first:]


@pytest.fixture
def one(folder: Path, tmp_path: Path) -> TaskData:
    data = mixture(folder)
    attached(stage(experts=None, fusion=None), data, tmp_path)
    return data


def connected(one: TaskData, folder: Path, **options: Any) -> TaskData:
    """Other data for the same model."""
    data = mixture(folder, **options)
    data.setup()
    data.connect(one.model)
    return data


def test_every_batch_holds_the_tasks_by_weight(one, folder):
    """An epoch is as long as the task that fills most batches; an item comes again when all others of its task have."""
    batches = [batch for epoch in range(5) for batch in drawn(one, epoch)]
    assert len(batches) == 5 * 7, "14 squares for naming, two in each batch"
    assert all(Counter(name for name, _ in batch) == {"colour": 4, "match": 2, "naming": 2} for batch in batches)
    for name, size in (("colour", 14), ("match", 10), ("naming", 14)):
        rows_of = [row for batch in batches for task, row in batch if task == name]
        assert all(sorted(rows_of[s : s + size]) == list(range(size)) for s in range(0, len(rows_of) - size, size))


def test_a_batch_is_made_of_the_examples_of_all_tasks(one):
    loader = one.train_dataloader()
    batch = next(iter(loader))
    assert [type(item).__name__ for item in batch.items] == ["Square"] * 4 + ["Conversation"] * 2 + ["Square"] * 2
    keys = list(loader.sampler)[:8]
    assert [loader.dataset[key].item for key in keys] == list(batch.items)
    named = [loader.dataset[Key(0, row)] for row in (0, 13, 14, 23, 24, 37)]
    texts = [example.messages[0]["content"][-1]["text"] for example in named]
    assert (
        texts
        == ["Which colour is it?"] * 2 + ["Which pet is the query? Answer with one bracket."] * 2 + ["What is it?"] * 2
    ), "rows are numbered task after task"


def test_the_order_is_a_function_of_seed_and_epoch(one, folder):
    assert drawn(one, 0) == drawn(connected(one, folder), 0) != drawn(one, 1)
    assert drawn(one, 0) != drawn(connected(one, folder, seed=1), 0)


def test_a_mixture_goes_on_where_it_was_interrupted(one, folder):
    whole = {epoch: drawn(one, epoch) for epoch in (1, 2)}
    resumed = connected(one, folder)
    resumed.load_state_dict({"epoch": 1, "step": 3})
    assert drawn(resumed, 1) == whole[1][3:] and drawn(resumed, 2) == whole[2]


def test_two_processes_share_the_batches_of_one(one, folder, monkeypatch):
    whole = drawn(one, 1)
    monkeypatch.setattr("zoo.vlm.data.world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("zoo.vlm.data.rank", lambda rank=rank: rank)
        parts.append(drawn(one, 1))
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, first, second in zip(whole, *parts, strict=True):
        assert Counter(name for name, _ in first) == {"colour": 2, "match": 1, "naming": 1}
        assert sorted(first + second) == sorted(batch)
    monkeypatch.setattr("zoo.vlm.data.world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of 3"):
        one.train_dataloader()


def test_a_run_goes_on_with_the_batch_after_the_last(folder, tmp_path):
    """From the middle of its second epoch, as the trainer resumes it."""

    def items(**options: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        model = stage(experts=None, fusion=None)
        model.on_train_batch_start = lambda batch, number: found.append(batch.items)  # type: ignore[method-assign]
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        run = trainer(tmp_path, max_epochs=2, limit_val_batches=0, enable_checkpointing=True, callbacks=[keep])
        run.fit(model, mixture(folder, batch_size=4, steps_per_epoch=3), **options)
        return found

    whole = items()
    assert len(whole) == 6 and items(ckpt_path=tmp_path / "step=4.ckpt") == whole[4:]


def test_a_weight_of_0_leaves_a_task_to_evaluation(folder, tmp_path):
    data = mixture(folder, weights={"colour": 1.0})
    attached(stage(experts=None, fusion=None), data, tmp_path)
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, TaskDataset) and loader.dataset.task.name == "colour"
    assert data.weights == {"colour": 1.0, "match": 0.0, "naming": 0.0}
    assert [task.name for task in data.scored("test")] == ["colour", "match", "naming"]
    assert [loader.dataset.task.name for loader in data.test_dataloader()] == ["colour", "match", "naming"]
    assert [task.name for task in data.scored("val")] == ["colour", "naming"], "there is no gallery to validate on"
    assert len(data.val_dataloader()) == 2


def test_tasks_are_evaluated_that_are_named(folder, tmp_path):
    data = mixture(folder, evaluate=["naming"])
    attached(stage(experts=None, fusion=None), data, tmp_path)
    assert [task.name for task in data.scored("test")] == ["naming"] and data.tests and data.validates


def test_features_are_kept_of_what_trains_or_is_evaluated(folder):
    made = squares(folder, train=14, val=4, test=5)
    shown = {split: [item.path for item in own] for split, own in made.items()}
    photos = MatchTask([GallerySource(str(folder / "manifest.parquet"))])
    data = TaskData([WhichColour(made), NameColour(made), photos], {"colour": 1}, ["naming"])
    data.setup()
    kept = {split: [image.path for image in data.images(split)] for split in shown}
    assert kept == shown, "squares to train on by one task, to evaluate on by the other; no gallery"
    assert [image.path for image in data.images("train", "val")] == shown["train"] + shown["val"]
    both = TaskData([WhichColour(made), NameColour(made)])
    both.setup()
    assert [image.path for image in both.images("test")] == shown["test"], "each image once"


@pytest.mark.parametrize(("stage_name", "split"), [("fit", "train"), ("validate", "val"), ("test", "test")])
def test_tasks_that_are_used_must_have_items(stage_name, split, folder):
    """Those that train, and those that are named for evaluation; of others, one that has some is enough."""
    made = squares(folder, train=4, val=4, test=4)
    some, none = WhichColour(made), NameColour({name: own for name, own in made.items() if name != split})
    message = f"The task naming has no item in the {split} split"
    refused = [TaskData([none]), TaskData([some, none], evaluate=["naming"])]
    accepted = [TaskData([some, none], {"colour": 1.0}), TaskData([some, none], {"colour": 1.0}, ["colour"])]
    if stage_name == "fit":
        refused, accepted = [TaskData([none]), TaskData([some, none])], accepted
    for data in refused:
        with pytest.raises(ValueError, match=message):
            data.setup(stage_name)
    for data in accepted:
        data.setup(stage_name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"color": 1.0}}, "data.weights names 'color'. The tasks are colour, match, naming"),
        ({"evaluate": ["matching"]}, "data.evaluate names 'matching'"),
        ({"weights": {"colour": -1.0}}, "Give numbers of 0 or more, one above 0"),
        ({"weights": {"colour": 0.0}}, "Give numbers of 0 or more, one above 0"),
    ],
)
def test_weights_and_names_that_fit_no_task_are_refused(options, message, folder):
    with pytest.raises(ValueError, match=message):
        mixture(folder, **options)


def test_tasks_must_have_their_own_names(folder):
    for tasks, names in (([], "none"), ([WhichColour({}), WhichColour({})], "colour, colour")):
        with pytest.raises(ValueError, match=f"The tasks are {names}. Give at least one, each with its own name"):
            TaskData(tasks)


def test_loaders_without_a_model_are_refused_in_words(folder):
    data = mixture(folder)
    data.setup()
    with pytest.raises(RuntimeError, match=r"no model is connected. .*data.connect\(model\) first"):
        data.train_dataloader()


# ---------------------------------------------------------------------- batches


def test_batches_hold_gallery_then_query_of_each_conversation(tmp_path):
    made = galleries(tmp_path, "pet", [*rows("train", 2), ("train", "tau=0.5", 5, 4), ("train", "tau=0.5", 1, 1)])
    data = data_of(made)
    model = attached(stage(), data, tmp_path)
    batch = next(iter(data.train_dataloader()))
    assert [len(c.gallery) for c in batch.items].count(3) == 2 and len(batch.items) == 4
    first = 0
    for conversation in batch.items:
        refs = (*conversation.gallery, conversation.query)
        for place, ref in enumerate(refs, start=first):
            (image,), _ = ImageReader().open([tmp_path / ref.path])
            alone = model.batcher([_example(image)]).experts["pet"].pixels[0]
            assert torch.equal(batch.experts["pet"].pixels[place], alone), ref.path
        first += len(refs)
    assert first == len(batch.keys) == len(batch.image_tokens) and batch.experts["object"].pixels.shape[0] == 0


def _example(image: Image.Image) -> Example:
    message = {"role": "user", "content": [{"type": "image", "image": image}]}
    return Example([message], "", None, ("it",), ((Instance("pet"),),))


def test_without_pixels_a_batch_is_otherwise_the_same(tmp_path):
    data = data_of(galleries(tmp_path, "pet", rows("train", 4)))
    model = attached(stage(), data, tmp_path)
    whole, blank = (
        collate(
            model.batcher,
            [data.tasks[0].example("train", Key(0, row), ImageReader(decode)) for row in range(4)],
            with_pixels=decode,
        )
        for decode in (True, False)
    )
    for name in ("input_ids", "attention_mask", "labels", "image_tokens"):
        assert torch.equal(getattr(whole, name), getattr(blank, name)), name
    assert torch.equal(whole.vision["image_grid_thw"], blank.vision["image_grid_thw"])
    assert "pixel_values" in whole.vision and "pixel_values" not in blank.vision
    assert whole.keys == blank.keys and whole.experts["pet"].keys == blank.experts["pet"].keys


def test_batches_go_on_where_they_were_interrupted(tmp_path):
    data = data_of(galleries(tmp_path, "pet", rows("train", 10)), batch_size=2, steps_per_epoch=4)
    attached(stage(), data, tmp_path)

    def queries(loader: Any, epoch: int) -> list[list[str]]:
        loader.sampler.set_epoch(epoch)
        return [[c.query.path for c in batch.items] for batch in loader]

    loader = data.train_dataloader()
    whole = [queries(loader, epoch) for epoch in range(3)]
    data.load_state_dict({"epoch": 1, "step": 3})
    resumed = data.train_dataloader()
    assert queries(resumed, 1) == whole[1][3:] and queries(resumed, 2) == whole[2]


def test_unusable_images_of_any_task_are_left_out(tmp_path):
    """In one batch of a mixture: of two tasks that show the same broken square."""
    galleries(tmp_path / "photos", "pet", rows("train", 4)).save(tmp_path / "manifest.parquet")
    data = mixture(tmp_path, batch_size=56, steps_per_epoch=1)
    attached(stage(experts=None, fusion=None), data, tmp_path)
    broken = data.tasks[0].squares["train"][3].path  # type: ignore[attr-defined]
    broken.write_bytes(b"no image")
    batch: VLMBatch = next(iter(data.train_dataloader()))
    # 28, 14 and 14 of 14, 4 and 14: the square comes twice as a choice and once to be named.
    assert len(batch.items) == 56 - 3 and len(batch.skipped) == 3
    assert all(str(broken) in reason for reason in batch.skipped)
