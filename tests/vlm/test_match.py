"""MatchStage and MatchData: stage 1 as its recipe runs it."""

import logging
import os
import re

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.trainer.states import TrainerFn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tests.vlm.detectors import Quarter
from tests.vlm.rig import attached, base, data_of, galleries, rows, scores_of, stage, trainer
from zoo.data.images import read_image
from zoo.scores import ScoreName
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.tasks import MatchTask
from zoo.vlm.tasks.match import GallerySource
from zoo.vlm.tasks.prompts import options
from zoo.world import Pets

SPLIT = [*rows("train", 12), *rows("val", 5), *rows("test", 9)]


# ---------------------------------------------------------------------- the stage


def test_it_is_compared_with_the_same_training_without_experts():
    trained, control = stage(), stage(experts=None, fusion=None)
    assert trained.label == "stage 1 with experts" and control.label == "stage 1 without experts"
    expected = {"fusion": None, "experts": {}, "init_from": None, "vlm": base()}
    assert trained.control == expected and control.control == {}
    assert trained.variant(**trained.control).label == control.label


def test_a_detector_can_be_named_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MatchStage, "model")
    for given, expected in (("tests.vlm.detectors.Quarter", Quarter), ("null", type(None))):
        config = parser.parse_args(["--model.vlm=it", f"--model.detector={given}"])
        assert isinstance(parser.instantiate_classes(config).model.detector, expected)


def test_a_gallery_is_matched_in_one_call(tmp_path):
    """As the options of the same conversation are scored in a test."""
    made = galleries(tmp_path, "pet", rows("test", 1, k=4))
    data = data_of(made)
    model = attached(stage(), data, tmp_path).eval()
    for adapter in model.fused.adapters.values():
        adapter.gate.data.fill_(0.5)
    conversation = made[0]
    *gallery, query = [read_image(tmp_path / ref.path) for ref in (*conversation.gallery, conversation.query)]
    with torch.no_grad():
        shares = model.match(gallery, query, "pet")
        (batch,) = data.test_dataloader()[0]
        scores = model.option_scores(batch, model.run_towers(batch), [options("pet", 4)])[0]
    assert shares == pytest.approx(scores.softmax(0).tolist(), abs=1e-6)
    assert sum(shares) == pytest.approx(1) and len(shares) == 4
    with pytest.raises(ValueError, match="Unknown category"):
        model.match(gallery, query, "pets")


# ---------------------------------------------------------------------- its data


def test_data_of_manifests_are_one_task(tmp_path):
    data = data_of(galleries(tmp_path, "pet", SPLIT), seed=3)
    data.setup("fit")
    (task,) = data.tasks
    assert isinstance(task, MatchTask) and data.scored("test") == [task]
    assert data.describe() == "pet 12 train, 5 val, 9 test" and data.tests and data.validates
    assert data.seed == 3 and len(data.images("train", "test")) == len(made_of(task, "train", "test"))


def made_of(task: MatchTask, *splits: str) -> set[str]:
    conversations = [task.at(split, row)[1] for split in splits for row in range(task.size(split))]
    return {ref.path for one in conversations for ref in (one.query, *one.gallery)}


def test_what_is_asked_for_must_be_one_thing():
    with pytest.raises(ValueError, match="Give one of the two"):
        MatchData()
    with pytest.raises(ValueError, match="Give one of the two"):
        MatchData([GallerySource("a.parquet")], {"pet": Pets(families=4)}, tau=[0.5])


@pytest.mark.parametrize(
    ("stage_name", "verb", "split"),
    [("fit", "train", "train"), (TrainerFn.VALIDATING, "validate", "val"), (TrainerFn.TESTING, "test", "test")],
)
def test_a_split_without_conversations_is_named(stage_name, verb, split, tmp_path):
    others = [row for row in SPLIT if row[0] != split]
    data = data_of(galleries(tmp_path, "pet", others))
    with pytest.raises(
        ValueError, match=f"no conversation to {verb} with: .* of the {split} split .*--k and mine again"
    ):
        data.setup(stage_name)


def test_before_training_it_is_logged_that_nothing_can_be_tested(tmp_path, caplog):
    for name, split in (("some", SPLIT), ("none", rows("train", 4))):
        data = data_of(galleries(tmp_path / name, "pet", split))
        with caplog.at_level(logging.WARNING, logger="zoo"):
            caplog.clear()
            data.setup("fit")
        assert data.tests == (name == "some")
        assert caplog.text.count("no conversation in the test split: nothing is going to be tested") == (name == "none")


def test_too_few_identities_to_test_are_named_before_training(caplog):
    data = MatchData(world={"pet": Pets(families=4, members=4, views=2, size=32)}, k=8, tau=[-1.0])
    data.prepare_data()
    with caplog.at_level(logging.WARNING, logger="zoo"):
        data.setup("fit")
    assert re.search(r"no pet conversation in the test split: it has \d identities, and a gallery needs 8", caplog.text)
    assert not data.tests


def test_a_world_whose_test_identities_are_too_few_is_named():
    few = Pets(families=3, members=2, views=2, size=32)
    data = MatchData(world={"pet": few}, k=20, tau=[-1.0])
    data.prepare_data()
    with pytest.raises(
        ValueError, match=r"no conversation to test with: .*too few above tau.*Lower data.tau, data.*data.k"
    ):
        data.setup("test")


def test_a_level_without_conversations_is_named_and_the_others_are_scored(tmp_path, caplog):
    hard = [("train", "tau=0.8", 3, 1), ("val", "tau=0.8", 3, 1)]
    data = data_of(galleries(tmp_path, "pet", [*SPLIT, *hard]))
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data)
    assert caplog.text.count("pet has no conversation at tau=0.8 in the test split") == 1
    assert caplog.text.count("has no conversation") == 1
    assert "test/pet/tau=0.5/accuracy" in scores and not any("tau=0.8" in name for name in scores)
    assert not any(np.isnan(value) for value in scores.values())


# ---------------------------------------------------------------------- a model that really answers


def test_a_test_of_a_real_model_adds_up(tmp_path):
    split = [("test", "tau=0.5", k, answer) for k, answer in ((3, 1), (5, 0), (1, 1), (2, 2), (12, 11), (4, 3))]
    data = data_of(galleries(tmp_path, "pet", split, identities=20))
    model = stage(experts={"pet": "pet_mobilenetv3s050.world"})
    scores = trainer(tmp_path).test(model, data, verbose=False)[0]
    assert scores["test/conversations"] == 6 and scores["test/unparsed"] == 1, "random weights write no bracket"
    assert scores["test/chance"] == pytest.approx(np.mean([1 / (k + 1) for k in (3, 5, 1, 2, 12, 4)]))
    assert {"test/pet/tau=0.5/accuracy", "test/expert", "test/general", "test/written"} <= set(scores)
    (task,) = data.tasks
    hits = [int(np.argmax(c.similarities)) + 1 == c.answer for c in task.conversations[0] if c.answer]
    assert scores["test/general"] == pytest.approx(np.mean(hits))
    assert {f"test/{key}": value for key, value in model.scores.items()} == scores
    assert model.scores[ScoreName("accuracy", "pet", "tau=0.5")] == scores["test/pet/tau=0.5/accuracy"]


# ---------------------------------------------------------------------- the real configuration


@pytest.mark.skipif("INSTANCE_ZOO_QWEN25VL" not in os.environ, reason="set INSTANCE_ZOO_QWEN25VL to a folder of it")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_step_of_the_real_configuration_with_narrow_layers(tmp_path, attention):
    """Its processor, tokenizer, chat template and vocabulary; two layers of random weights."""
    source = os.environ["INSTANCE_ZOO_QWEN25VL"]
    config = AutoConfig.from_pretrained(source)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 128, 128, 2
    text.num_attention_heads, text.num_key_value_heads = 1, 1  # a head of 128, as it is
    text.layer_types = text.layer_types[:2]
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 2, 80, 96, 1
    vision.out_hidden_size, vision.fullatt_block_indexes = 128, [1]
    folder = tmp_path / "narrow"
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    model = stage(vlm=str(folder), dtype="bfloat16", attention=attention, gradient_checkpointing=True, max_tokens=256)
    data = data_of(
        galleries(tmp_path / "pet", "pet", [*rows("train", 8), *rows("test", 3)]),
        galleries(tmp_path / "object", "object", [*rows("train", 8), *rows("test", 3)], seed=1),
    )
    run = trainer(tmp_path, precision="bf16-mixed", max_steps=1)
    run.fit(model, data)
    assert run.global_step == 1 and torch.isfinite(run.callback_metrics["train/loss"])
    tokenizer = model.batcher.processor.tokenizer
    batch = next(iter(data.train_dataloader()))
    kept = batch.input_ids[0][batch.attention_mask[0].bool()]
    assert tokenizer.decode(kept).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user"
    )
    (scores,) = run.test(model, data, verbose=False)
    assert scores["test/conversations"] == 6 and 0 <= scores["test/accuracy"] <= 1
