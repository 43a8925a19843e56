"""Conversations as examples and batches, and what becomes of those that cannot be used."""

import logging
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.vlm.rig import attached, corrupt, data_of, galleries, rows, scores_of, stage
from zoo.conversations.manifest import Conversations, hashes
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.data import ConversationData, GallerySource
from zoo.vlm.examples import Blank, Collate, ConversationDataset, Unread, open_image


def test_batches_hold_gallery_then_query_of_each_conversation(tmp_path):
    data = data_of(
        galleries(tmp_path, "pet", [*rows("train", 2), ("train", "tau=0.5", 5, 4), ("train", "tau=0.5", 1, 1)])
    )
    model = attached(stage(), data, tmp_path)
    batch = next(iter(data.train_dataloader()))
    assert [len(c.gallery) for c in batch.examples].count(3) == 2 and len(batch.examples) == 4
    first = 0
    for conversation in batch.examples:
        refs = (*conversation.gallery, conversation.query)
        for place, ref in enumerate(refs, start=first):
            image = open_image(tmp_path / ref.path)
            expected = model.batcher._experts([_example(image)], [image], ["it"], True)["pet"].pixels[0]
            assert torch.equal(batch.experts["pet"].pixels[place], expected), ref.path
        first += len(refs)
    assert first == len(batch.keys) == len(batch.image_tokens) and batch.experts["object"].pixels.shape[0] == 0


def _example(image: Image.Image) -> Example:
    return Example([{"role": "user", "content": [{"type": "image", "image": image}]}], "", None, ("it",), ("pet",))


def test_without_pixels_a_batch_is_otherwise_the_same(tmp_path):
    data = data_of(galleries(tmp_path, "pet", rows("train", 4)))
    model = attached(stage(), data, tmp_path)
    whole, blank = (
        Collate(model.batcher, decode)(
            [
                ConversationDataset(data.conversations, data.rows("train"), False, decode)[Key(0, row)]
                for row in range(4)
            ]
        )
        for decode in (True, False)
    )
    for name in ("input_ids", "attention_mask", "labels", "image_tokens"):
        assert torch.equal(getattr(whole, name), getattr(blank, name)), name
    assert torch.equal(whole.vision["image_grid_thw"], blank.vision["image_grid_thw"])
    assert "pixel_values" in whole.vision and "pixel_values" not in blank.vision
    assert whole.keys == blank.keys and whole.experts["pet"].keys == blank.experts["pet"].keys
    assert open_image(tmp_path / "00_0.jpg", decode=False) == Blank((48, 32))


def test_unread_conversations_say_why(tmp_path):
    data = data_of(galleries(tmp_path, "pet", rows("train", 2)))
    data.setup("fit")
    (tmp_path / data.conversations[0][0].query.path).unlink()
    item = ConversationDataset(data.conversations, data.rows("train"), False)[Key(0, 0)]
    assert isinstance(item, Unread) and re.search(r"_1.jpg: no such file", item.reason)


# ---------------------------------------------------------------------- images that cannot be used


def used(conversations: Conversations) -> dict[str, list[int]]:
    """Path of an image -> numbers of the conversations that show it."""
    found: dict[str, list[int]] = {}
    for number, conversation in enumerate(conversations):
        for ref in (*conversation.gallery, conversation.query):
            found.setdefault(ref.path, []).append(number)
    return found


@pytest.mark.parametrize(("cached", "workers"), [(False, 0), (True, 1)])
def test_a_corrupt_image_takes_its_conversations_along_and_no_others(cached, workers, tmp_path, caplog):
    """Also one whose size can still be read, so that only a tower finds out."""
    root = tmp_path / "photos"
    made = galleries(root, "pet", rows("test", 30), identities=40)
    cache = str(tmp_path / "cache") if cached else False
    data = data_of(made, max_unreadable=0.5, workers=workers)
    data.setup("test")
    path, lost = next((path, numbers) for path, numbers in used(made).items() if len(numbers) == 3)
    whole = scores_of(tmp_path, data, cache=False)
    assert whole["test/conversations"] == 30
    corrupt(root / path)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data, cache=cache)
    assert scores["test/conversations"] == 30 - len(lost)
    assert "3 conversations were skipped" in caplog.text and caplog.text.count(f"{path}: ") == 3
    assert all(f"(conversation {number} of pet)" in caplog.text for number in lost)
    made.select(np.setdiff1d(np.arange(30), lost)).save(root / "kept.parquet")
    (root / path).unlink()  # of no conversation any more
    alone = ConversationData([GallerySource(str(root / "kept.parquet"))], eval_batch_size=4, workers=0)
    again = scores_of(tmp_path, alone)
    assert again == pytest.approx(scores)


def test_an_evaluation_batch_of_nothing_else_is_left_out(tmp_path):
    made = galleries(tmp_path, "pet", rows("test", 9), identities=40)
    data = data_of(made, max_unreadable=1.0, eval_batch_size=4)
    data.setup("test")
    corrupt(tmp_path / made[8].query.path)  # alone in its batch
    assert scores_of(tmp_path, data)["test/conversations"] == 8


@pytest.mark.parametrize("cached", [False, True])
def test_images_outside_of_the_token_budget_take_their_conversations_along(cached, tmp_path, caplog):
    made = galleries(tmp_path, "pet", rows("test", 20), identities=40)
    found = used(made)
    line, long = [path for path, numbers in found.items() if len(numbers) == 2][:2]
    Image.new("RGB", (900, 3), "red").save(tmp_path / line)
    Image.new("RGB", (600, 28), "red").save(tmp_path / long)
    lost = {*found[line], *found[long]}
    options = {"cache": str(tmp_path / "cache") if cached else False, "min_tokens": 4, "max_tokens": 6}
    made = _hashed_again(made)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data_of(made, max_unreadable=0.5), **options)
    assert scores["test/conversations"] == 20 - len(lost) and f"{len(lost)} conversations were skipped" in caplog.text
    assert re.search(rf"{line} .*hardly more than a line", caplog.text)
    assert re.search(rf"{long} .*outside the budget of 4 to 6", caplog.text)
    assert all(f"(conversation {number} of pet)" in caplog.text for number in lost)


def _hashed_again(made: Conversations) -> Conversations:
    found, table = hashes(made.root, list(made.images())), made._table.to_pylist()
    for row in table:
        row["query_sha256"] = found[row["query_path"]]
        row["gallery_sha256"] = [found[path] for path in row["gallery_paths"]]
    return Conversations(made.root, pa.Table.from_pylist(table, made._table.schema), made.meta)


@pytest.mark.parametrize(("cached", "workers"), [(False, 1), (True, 0)])
def test_a_box_outside_of_its_image_takes_its_conversation_along(cached, workers, tmp_path, caplog):
    made = galleries(tmp_path / "photos", "pet", rows("test", 12), identities=12)
    table = made._table.to_pylist()
    table[5]["query_box"] = [90.0, 0.0, 20.0, 20.0]
    table[7]["query_box"] = [4.0, 4.0, 20.0, 20.0]
    made = Conversations(made.root, pa.Table.from_pylist(table, made._table.schema), made.meta)
    cache = str(tmp_path / "cache") if cached else False
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data_of(made, max_unreadable=0.1, workers=workers), cache=cache)
    assert scores["test/conversations"] == 11
    said = f"{made[5].query.path} (conversation 5 of pet): the box (90.0, 0.0, 20.0, 20.0) holds nothing"
    assert caplog.text.count(said) == 1
