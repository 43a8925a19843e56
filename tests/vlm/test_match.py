"""MatchStage: what trains, what it learns from, and what its checkpoints hold."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from fusion import AdditiveFusion, CrossAttentionFusion
from tests.vlm.detectors import Quarter
from tests.vlm.rig import EXPERTS, attached, base, galleries, rows, stage, trainer
from zoo.categories import CATEGORIES, find_category
from zoo.module import Optim
from zoo.vlm.batch import VLMBatch
from zoo.vlm.data import ConversationData, GallerySource
from zoo.vlm.loading import load_vlm
from zoo.vlm.match import MatchStage
from zoo.vlm.processor import Detection

TRAINED = ("fused.projector.", "fused.adapters.")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 conversations of pets and 8 of objects to train on, 3 and 3 to validate and to test on."""
    root = tmp_path_factory.mktemp("photos")
    split = [*rows("train", 8), *rows("val", 3), *rows("test", 3)]
    for seed, category in enumerate(("pet", "object")):
        galleries(root / category, category, split, seed=seed).save(root / category / "manifest.parquet")
    return root


def data_in(folder: Path, **options: Any) -> ConversationData:
    sources = [GallerySource(str(folder / name / "manifest.parquet")) for name in ("pet", "object")]
    return ConversationData(sources, **{"batch_size": 4, "eval_batch_size": 4, "workers": 0, **options})


def first_batch(model: MatchStage, data: ConversationData, folder: Path) -> VLMBatch:
    attached(model, data, folder)
    return next(iter(data.train_dataloader()))


def copied(model: MatchStage) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------------- what trains


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fusion", [AdditiveFusion, CrossAttentionFusion, None])
def test_training_changes_projector_and_adapters_and_nothing_else(data_folder, tmp_path, fusion, before):
    experts = EXPERTS if fusion is not None else None
    model = stage(fusion=fusion, experts=experts, before_projector=before, optim=Optim(lr=1e-2, warmup=0))
    start: dict[str, torch.Tensor] = {}
    model.on_train_start = lambda: start.update(copied(model))  # type: ignore[method-assign]
    trainer(tmp_path).fit(model, data_in(data_folder))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    due = {name for name in start if name.startswith(TRAINED)}
    # A key's bias moves all scores of a softmax alike, so that it has no gradient.
    idle = {name for name in due if fusion is CrossAttentionFusion and "bias" in name}
    assert due - idle <= changed <= due and due
    assert sum(name.endswith(".gate") for name in changed) == len(experts or {})


def test_gates_have_a_group_of_their_own(data_folder, tmp_path):
    model = attached(stage(optim=Optim(lr=1e-4, weight_decay=0.1)), data_in(data_folder), tmp_path)
    gates = {id(adapter.gate) for adapter in model.fused.adapters.values()}
    groups = model.parameter_groups()
    (group,) = [g for g in groups if gates & {id(p) for p in g["params"]}]
    assert {id(p) for p in group["params"]} == gates and len(gates) == 2
    assert group["lr"] == pytest.approx(1e-2) and group["weight_decay"] == 0
    others = [g for g in groups if g is not group]
    assert {g["lr"] for g in others} == {1e-4} and {g["weight_decay"] for g in others} == {0.0, 0.1}


def test_the_loss_is_that_of_the_answers_tokens(data_folder, tmp_path):
    """With gates at 0: the logits of the base model, of all tokens, and the mean by hand over those to be learned."""
    model = stage()
    batch = first_batch(model, data_in(data_folder), tmp_path)
    step = copy.deepcopy(batch)
    loss = model.training_step(step, 0)
    assert "pixel_values" not in step.vision and not any(len(images.pixels) for images in step.experts.values())
    plain, _ = load_vlm(base())
    text = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text}
    with torch.no_grad():
        logits = plain(**text, **batch.vision).logits.log_softmax(-1)
    terms = []
    for row, (ids, labels) in enumerate(zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)):
        answer = [place for place, label in enumerate(labels) if label != -100]
        said = model.batcher.processor.tokenizer.decode([ids[place] for place in answer])
        noun = {"pet": "Pet", "object": "Product"}[batch.examples[row].category]
        assert said == f"[{noun} {batch.examples[row].answer}]<|im_end|>"
        terms += [-float(logits[row, place - 1, ids[place]]) for place in answer]
    assert float(loss) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_a_loss_that_is_not_finite_names_its_queries(data_folder, tmp_path):
    model = stage()
    batch = first_batch(model, data_in(data_folder), tmp_path)
    model.fused.projector.mlp[0].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="nan or infinite") as raised:
        model.training_step(batch, 0)
    assert all(example.query.path in str(raised.value) for example in batch.examples)


def test_gradient_checkpointing_computes_again_and_gives_the_same_gradients(data_folder, tmp_path):
    found = {}
    for again in (False, True):
        model = stage(gradient_checkpointing=again)
        batch = first_batch(model, data_in(data_folder), tmp_path)
        model.train()
        for adapter in model.fused.adapters.values():
            adapter.gate.data.fill_(0.5)
        calls: list[bool] = []
        layers = model.fused.vlm.model.language_model.layers
        for layer in layers:
            layer.self_attn.register_forward_pre_hook(lambda *_, c=calls: c.append(True))
        model.training_step(copy.deepcopy(batch), 0).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        found[again] = gradients, len(calls) / len(layers)
        assert not any(layer.self_attn.training for layer in layers), "dropout stays off"
        model.eval()
        calls.clear()
        with torch.no_grad():
            model.training_step(batch, 0)
        assert len(calls) == len(layers)
    assert found[False][1] == 1 and found[True][1] == 2
    for name, gradient in found[False][0].items():
        torch.testing.assert_close(found[True][0][name], gradient, msg=name)


def test_the_frozen_model_may_have_another_type_than_what_trains(data_folder, tmp_path):
    model = stage(dtype="bfloat16")
    losses = []
    model.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))  # type: ignore[method-assign]
    trainer(tmp_path, precision="bf16-mixed").fit(model, data_in(data_folder))
    assert len(losses) == 4 and all(loss < 20 for loss in losses)
    assert {p.dtype for p in model.fused.vlm.parameters()} == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if n.startswith(TRAINED)} == {torch.float32}


# ---------------------------------------------------------------------- what a checkpoint holds


@pytest.fixture(scope="module")
def checkpoint(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = trainer(folder)
    run.fit(stage(optim=Optim(lr=1e-2)), data_in(data_folder))
    run.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt"


def loaded(model: MatchStage, data: ConversationData, checkpoint: Path) -> MatchStage:
    trainer(checkpoint.parent).validate(model, data, ckpt_path=checkpoint, verbose=False)
    return model


def test_a_checkpoint_holds_what_was_trained_and_no_more(data_folder, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    model = loaded(stage(), data_in(data_folder), checkpoint)
    state = model.state_dict()
    assert set(content["state_dict"]) == {name for name in state if name.startswith(TRAINED)}
    for name, tensor in content["state_dict"].items():
        assert torch.equal(tensor, state[name]), name
    trained = sum(tensor.nbytes for tensor in content["state_dict"].values())
    whole = sum(tensor.nbytes for tensor in state.values())
    # The optimiser keeps two numbers more for each that trains.
    assert checkpoint.stat().st_size < 3 * trained + 100_000 < whole


def changed(checkpoint: Path, folder: Path, change: Any) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content["state_dict"])
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


GATE = "fused.adapters.pet.gate"
MISFITS = {
    "misspelt": (lambda s: s.update({f"{GATE}s": s.pop(GATE)}), f"1 missing, such as {GATE}; 1 left over"),
    "missing": (lambda s: s.pop(GATE), f"1 missing, such as {GATE}"),
    "left over": (lambda s: s.update({"fused.adapters.cow.gate": s[GATE]}), "1 left over, such as fused.adapters.cow"),
    "shape": (lambda s: s.update({GATE: torch.zeros(2)}), "1 of another shape"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_refused(case, data_folder, checkpoint, tmp_path):
    change, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        loaded(stage(), data_in(data_folder), changed(checkpoint, tmp_path, change))


OTHERS = {
    "base": ({"vlm": base(1)}, "trained with another vlm than .*base-1"),
    "expert": ({"experts": EXPERTS | {"pet": EXPERTS["object"]}}, "trained with another pet than object_mobilenet"),
    "type": ({"dtype": "bfloat16"}, "model.dtype"),
    "without": ({"experts": {"pet": EXPERTS["pet"]}}, "trained with an expert for object, and model.experts names pet"),
    "none": ({"experts": None, "fusion": None}, "model.experts names none"),
    "more": ({"experts": EXPERTS | {"face": "face_mobilenetv3s050.world"}}, "missing, such as fused.adapters.face"),
    "adapter": ({"fusion": CrossAttentionFusion}, "missing.*left over"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_other_frozen_parts_is_refused(case, data_folder, checkpoint):
    options, message = OTHERS[case]
    with pytest.raises(ValueError, match=message):
        loaded(stage(**options), data_in(data_folder), checkpoint)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_with_is_refused(data_folder, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["made_of"]
    torch.save(content, tmp_path / "silent.ckpt")
    with pytest.raises(ValueError, match="does not say which model and experts"):
        loaded(stage(), data_in(data_folder), tmp_path / "silent.ckpt")


def test_a_checkpoint_of_another_crop_rule_is_refused(data_folder, checkpoint, monkeypatch):
    """The same expert would see other parts of the images."""
    rule = find_category("object")
    monkeypatch.setitem(CATEGORIES, "object", replace(rule, crop=replace(rule.crop, margin=0.4)))
    with pytest.raises(ValueError, match="trained with another object than"):
        loaded(stage(), data_in(data_folder), checkpoint)


def corner(image: Image.Image) -> list[Detection]:
    """The upper left quarter, and a weak find of it all."""
    whole = (0.0, 0.0, float(image.width), float(image.height))
    return [Detection("dog", (0.0, 0.0, image.width / 2, image.height / 2), 0.9), Detection("dog", whole, 0.1)]


def test_an_expert_sees_what_the_detector_finds(data_folder, tmp_path):
    """The largest that is sure, in place of the whole image."""
    whole, found = stage(), stage(detector=corner)
    batches = [first_batch(model, data_in(data_folder), tmp_path) for model in (whole, found)]
    pixels = [batch.experts["object"].pixels for batch in batches]
    assert pixels[0].shape == pixels[1].shape and not torch.equal(*pixels)
    path, box = data_folder / "pet" / "00_0.jpg", find_category("object").crop
    image = Image.open(path)
    x, y, w, h = box.box([("dog", corner(image)[0].box)], *image.size)
    expected = image.crop((round(x), round(y), round(x + w), round(y + h)))
    assert found.batcher._crop("object", image, None, "it").tobytes() == expected.tobytes()
    assert "detector" not in found.hparams or found.hparams["detector"] is None


def test_a_detector_can_be_named_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MatchStage, "model")
    for given, expected in (("tests.vlm.detectors.Quarter", Quarter), ("null", type(None))):
        config = parser.parse_args(["--model.vlm=it", f"--model.detector={given}"])
        assert isinstance(parser.instantiate_classes(config).model.detector, expected)


def test_a_frozen_projector_is_not_kept_either(data_folder, tmp_path):
    model = stage(freeze=["fused.projector"], optim=Optim(lr=1e-2))
    run = trainer(tmp_path)
    run.fit(model, data_in(data_folder))
    run.save_checkpoint(tmp_path / "it.ckpt")
    assert all(n.startswith("fused.adapters.") for n in torch.load(tmp_path / "it.ckpt")["state_dict"])
    again = loaded(stage(freeze=["fused.projector"]), data_in(data_folder), tmp_path / "it.ckpt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


# ---------------------------------------------------------------------- parts that cannot be


def llama(folder: Path) -> str:
    AutoConfig.for_model("llama", hidden_size=32).save_pretrained(folder)
    return str(folder)


REFUSED = {
    "family": (lambda tmp: {"vlm": llama(tmp)}, "Unknown family 'llama'. Known: qwen2_vl"),
    "folder": (lambda tmp: {"vlm": str(tmp)}, "config.json is missing"),
    "category": (lambda tmp: {"experts": {"pett": EXPERTS["pet"]}}, "(?s)pett.*pet"),
    "card": (lambda tmp: {"experts": {"pet": "pet_mobilnet"}}, "pet_mobilnet"),
    "no encoder": (lambda tmp: {"experts": {"pet": base()}}, "experts.pet: .*VisionLanguageModel, no identity encoder"),
    "freeze": (lambda tmp: {"freeze": ["fused.projecter"]}, "names no parameter"),
    "budget": (lambda tmp: {"min_tokens": 9, "max_tokens": 4}, "leave no room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_cannot_be_are_refused_by_name(case, tmp_path):
    options, message = REFUSED[case]
    with pytest.raises((ValueError, KeyError), match=message):
        stage(**options(tmp_path)).configure_model()


def test_an_adapter_made_for_another_expert_says_which_widths_it_takes(data_folder, tmp_path):
    model = stage(fusion=lambda width, identity: AdditiveFusion(width, identity + 1))
    batch = first_batch(model, data_in(data_folder), tmp_path)
    width = next(iter(model.fused.experts.values())).embed_dim
    with pytest.raises(ValueError, match=rf"do not fit this AdditiveFusion: .*identity \(I, M, {width + 1}\)"):
        model.training_step(batch, 0)


# ---------------------------------------------------------------------- the real configuration


@pytest.mark.skipif("INSTANCE_ZOO_QWEN25VL" not in os.environ, reason="set INSTANCE_ZOO_QWEN25VL to a folder of it")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_step_of_the_real_configuration_with_narrow_layers(data_folder, tmp_path, attention):
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
    data = data_in(data_folder)
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
