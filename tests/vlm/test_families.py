"""Tests with the published Qwen2.5-VL read its config and processor files (no weights are needed) from the folder in
the environment variable INSTANCE_ZOO_QWEN25VL, and are skipped without it."""

import copy
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from fusion import AdditiveFusion
from tests.vlm.rig import EXPERTS, data_of, galleries, rows, stage, trainer
from tests.vlm.tiny import FAMILIES, picture, tiny_folder, tiny_vlm
from zoo.backbones import TimmEncoder
from zoo.vlm.batch import Example, Instance
from zoo.vlm.families import FAMILIES as ENTRIES
from zoo.vlm.families import PassThrough, family_of
from zoo.vlm.fused import FusedVLM
from zoo.vlm.loading import load_vlm
from zoo.vlm.processor import VLMProcessor

# Of several sizes, among them parts of windows of Qwen2.5-VL.
PICTURES = [picture(50, 20), picture(33, 37), picture(20, 44), picture(16, 16)]


@pytest.fixture(scope="module")
def untouched() -> dict[str, tuple[Any, Any]]:
    return {name: tiny_vlm(name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def parts(request: pytest.FixtureRequest, untouched: dict[str, tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Family, a model of one's own, its processor."""
    model, processor = untouched[request.param]
    return ENTRIES[request.param], copy.deepcopy(model), processor


def asked(family: Any, processor: Any, pictures: list[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Token fields and image fields of two prompts by Hugging Face's processor, padded on the left: the first prompt
    has all images but one."""
    several = [len(pictures) - 1, 1]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": "Which one?"}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for n in several
    ]
    options = family.image_options(processor, None, None)
    fields = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, padding_side="left", images_kwargs=options
    )
    vision = {name: fields[name] for name in ("pixel_values", "image_grid_thw") if name in fields}
    return {name: value for name, value in fields.items() if name not in vision}, vision


@torch.no_grad()
def test_the_parts_by_hand_are_the_model(parts: tuple[Any, Any, Any]) -> None:
    """fp32 on a CPU: bit-equal where it was measured; 1e-5 leaves room for other matrix kernels."""
    family, model, processor = parts
    text, vision = asked(family, processor, PICTURES)
    wanted = model(**text, **vision).logits
    written = model.generate(**text, **vision, max_new_tokens=8, do_sample=False)
    projector = family.take_projector(model)
    tokens = family.tower_tokens(model, vision)
    features = family.project(projector, tokens)
    counts = family.image_tokens(model.config, vision)

    assert (tokens.shape[1], features.shape[1]) == family.widths(model.config)
    assert family.patches(model.config, vision).sum() == len(tokens)
    assert counts.sum() == len(features) == (text["input_ids"] == family.placeholder(processor)).sum()

    with family.answer(model, features, counts) as stand_in:
        torch.testing.assert_close(model(**text, **vision).logits, wanted, rtol=0, atol=1e-5)
        cached = {**text, **vision, **stand_in}
        torch.testing.assert_close(model(**cached).logits, wanted, rtol=0, atol=1e-5)
        assert torch.equal(model.generate(**cached, max_new_tokens=8, do_sample=False), written)
    with family.answer(model, 2 * features, counts):
        assert not torch.allclose(model(**text, **vision).logits, wanted, atol=1e-2), "features make no difference"

    family.put_projector(model, projector)
    assert torch.equal(model(**text, **vision).logits, wanted)


@torch.no_grad()
def test_packed_images_are_kept_apart(parts: tuple[Any, Any, Any]) -> None:
    family, model, processor = parts
    _, vision = asked(family, processor, PICTURES)
    other = [*PICTURES[:1], picture(33, 37, seed=1), *PICTURES[2:]]
    _, changed = asked(family, processor, other)
    projector = family.take_projector(model)
    patches = family.patches(model.config, vision).tolist()
    counts = family.image_tokens(model.config, vision).tolist()
    packed = family.tower_tokens(model, vision).split(patches)
    projected = family.project(projector, torch.cat(packed)).split(counts)
    again = family.tower_tokens(model, changed).split(patches)
    for number in range(len(PICTURES)):
        assert torch.equal(packed[number], again[number]) == (number != 1)
        alone = family.tower_tokens(model, picked(vision, number))
        torch.testing.assert_close(packed[number], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(projected[number], family.project(projector, alone), rtol=0, atol=1e-5)


def picked(vision: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The image fields of one image."""
    if "image_grid_thw" not in vision:
        return {"pixel_values": vision["pixel_values"][number : number + 1]}
    grid = vision["image_grid_thw"]
    pixels = vision["pixel_values"].split(grid.prod(-1).tolist())[number]
    return {"pixel_values": pixels, "image_grid_thw": grid[number : number + 1]}


def test_tokens_are_in_the_order_of_the_image(untouched: dict[str, tuple[Any, Any]]) -> None:
    """Qwen2.5-VL's tower reorders groups of tokens into windows: without position and attention, what is left of a
    token is its own patch, so that the tokens must come as the patches came."""
    model = copy.deepcopy(untouched["qwen2_5_vl"][0])
    family = family_of(model.config)
    _, vision = asked(family, untouched["qwen2_5_vl"][1], PICTURES)
    family.take_projector(model)
    visual = model.model.visual
    for block in visual.blocks:
        for last in (block.attn.proj, block.mlp.down_proj):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    wanted = visual.patch_embed(vision["pixel_values"])
    torch.testing.assert_close(family.tower_tokens(model, vision), wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def test_text_without_images(parts: tuple[Any, Any, Any]) -> None:
    family, model, processor = parts
    text = processor.tokenizer(["Which one?"], return_tensors="pt")
    wanted = model(**text).logits
    projector = family.take_projector(model)
    tokens = family.tower_tokens(model, {})
    features = family.project(projector, tokens)
    assert (tuple(tokens.shape), tuple(features.shape)) == tuple((0, width) for width in family.widths(model.config))
    with family.answer(model, features, torch.zeros(0, dtype=torch.int64)) as stand_in:
        assert torch.equal(model(**text, **stand_in).logits, wanted)


def test_only_the_projector_and_what_is_before_it_get_gradients(parts: tuple[Any, Any, Any]) -> None:
    family, model, processor = parts
    model.requires_grad_(False)
    projector = family.take_projector(model).requires_grad_(True)
    text, vision = asked(family, processor, PICTURES)
    tokens = family.tower_tokens(model, vision)
    assert not tokens.requires_grad
    tokens.requires_grad_(True)
    features = family.project(projector, tokens)
    with family.answer(model, features, family.image_tokens(model.config, vision)):
        model(**text, **vision).logits.square().sum().backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum(1) > 0).all(), "some token reaches no answer"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_tower_that_trains_gets_gradients(parts: tuple[Any, Any, Any]) -> None:
    family, model, processor = parts
    family.take_projector(model)
    tokens = family.tower_tokens(model, asked(family, processor, PICTURES)[1])
    assert tokens.requires_grad


def test_the_model_is_its_own_again_after_an_answer(parts: tuple[Any, Any, Any]) -> None:
    family, model, _ = parts
    features, inner = torch.zeros(3, family.widths(model.config)[1]), model.model
    family.take_projector(model)
    stand_in = model.get_submodule(family.projector)
    stand_in.deepstack = [features]
    method = inner.get_image_features.__func__
    with pytest.raises(RuntimeError), family.answer(model, features, torch.tensor([3])):
        first = inner.get_image_features
        with family.answer(model, features, [3]):
            assert inner.get_image_features is not first
        assert inner.get_image_features is first
        raise RuntimeError
    assert inner.get_image_features.__func__ is method and "get_image_features" not in vars(inner)


def test_misuse_is_refused(parts: tuple[Any, Any, Any]) -> None:
    family, model, processor = parts
    _, vision = asked(family, processor, PICTURES)
    with pytest.raises(ValueError, match="still in this .* Call take_projector"):
        family.tower_tokens(model, vision)
    projector = family.take_projector(model)
    with pytest.raises(ValueError, match="taken already"):
        family.take_projector(model)
    features = family.project(projector, family.tower_tokens(model, vision))
    with (
        pytest.raises(ValueError, match=f"{len(features)} features do not fill the 5 tokens of 2 images"),
        family.answer(model, features, [2, 3]),
    ):
        pass


def test_deepstack_features_are_those_of_the_same_images(untouched: dict[str, tuple[Any, Any]]) -> None:
    model, processor = copy.deepcopy(untouched["qwen3_vl"][0]), untouched["qwen3_vl"][1]
    family = family_of(model.config)
    text, vision = asked(family, processor, PICTURES)
    projector = family.take_projector(model)
    features = torch.zeros(3, family.widths(model.config)[1])
    with pytest.raises(ValueError, match="of these 3 tokens are missing.*cannot come from a cache"):
        family.answer(model, features, [3]).__enter__()
    with torch.no_grad():
        features = family.project(projector, family.tower_tokens(model, vision))
    counts = family.image_tokens(model.config, vision)
    with pytest.raises(ValueError, match="of these 3 tokens are missing"):
        family.answer(model, features[:3], [3]).__enter__()
    with torch.no_grad(), family.answer(model, features, counts):
        wanted = model(**text, **vision).logits
    stand_in = model.get_submodule(family.projector)
    for layer in stand_in.deepstack:  # a tensor in transformers 5.17, one for each image in 5.23
        for part in [layer] if isinstance(layer, Tensor) else layer:
            part.zero_()
    with torch.no_grad(), family.answer(model, features, counts):
        assert not torch.allclose(model(**text, **vision).logits, wanted, atol=1e-3), "DeepStack makes no difference"


def test_lora_targets_are_the_linear_layers_of_the_language_model(parts: tuple[Any, Any, Any]) -> None:
    family, model, _ = parts
    blocks = model.get_submodule(family.language_modules[0])
    linear = {name.rpartition(".")[2] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    assert linear == set(family.lora_targets)


def test_the_parts_cover_the_model(parts: tuple[Any, Any, Any]) -> None:
    family, model, _ = parts
    places = (family.tower, family.projector, *family.language_modules)
    assert all(name.startswith(places) for name, _ in model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_families_are_sent_to_other_processes_by_name() -> None:
    assert all(pickle.loads(pickle.dumps(family)) is family for family in ENTRIES.values())


def test_a_tower_that_an_entry_does_not_fit_is_refused() -> None:
    config = AutoConfig.for_model("llava", vision_config={"model_type": "pixtral"}, text_config={"model_type": "llama"})
    with pytest.raises(ValueError, match="llava with a vision tower 'pixtral' is not supported"):
        family_of(config)


# ---------------------------------------------------------------------- an entry of another project


class OtherConfig(LlavaConfig):
    model_type = "other_vlm"


class OtherVLM(LlavaForConditionalGeneration):
    config_class = OtherConfig


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    """The folder of a model of a family that the zoo and transformers know until the end of the test."""
    model, processor = tiny_vlm("llava")
    config = OtherConfig(**{name: value for name, value in model.config.to_dict().items() if name != "model_type"})
    network = OtherVLM(config)
    network.load_state_dict(model.state_dict())
    network.generation_config = model.generation_config
    network.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with (
        patch.dict(ENTRIES, other_vlm=replace(ENTRIES["llava"], name="other_vlm")),
        patch.dict(CONFIG_MAPPING._extra_content),
        patch.dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING._extra_content),
    ):
        AutoConfig.register("other_vlm", OtherConfig)
        AutoModelForImageTextToText.register(OtherConfig, OtherVLM)
        yield str(tmp_path / "other")


@torch.no_grad()
def test_an_entry_of_another_project_is_enough_to_fuse_its_models(other: str) -> None:
    vlm, processor = load_vlm(other)
    assert isinstance(vlm, OtherVLM) and vlm.config.model_type == "other_vlm"
    expert = TimmEncoder("mobilenetv3_small_050", size=32).eval()
    fused = FusedVLM(vlm, {"pet": expert}, AdditiveFusion).eval()
    assert fused.family is ENTRIES["other_vlm"] is pickle.loads(pickle.dumps(fused.family))
    batcher = VLMProcessor(processor, fused.family, vlm.config, experts={"pet": expert.transform})
    content = [{"type": "image", "image": picture(40, 32)}, {"type": "text", "text": "Which one?"}]
    message = {"role": "user", "content": content}
    batch = batcher([Example([message], "[Pet 1]", "it", ("it",), ((Instance("pet"),),))])
    plain = load_vlm(tiny_folder("llava"))[0]
    fields = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text, **batch.vision}
    wanted = plain(**fields).logits[:, :-1][batch.labels[:, 1:] != -100]
    features = fused.run_towers(batch)
    torch.testing.assert_close(fused.answer_logits(batch, features)[0], wanted, rtol=1e-5, atol=1e-5)
    gate = fused.adapters["pet"].gate
    assert isinstance(gate, nn.Parameter)
    gate.fill_(0.5)
    assert not torch.allclose(fused.answer_logits(batch, features)[0], wanted, atol=1e-4)


def test_a_stage_trains_a_model_of_another_project(other: str, tmp_path: Path) -> None:
    """With features that are kept, and written answers."""
    data = data_of(galleries(tmp_path / "pet", "pet", [*rows("train", 4), *rows("test", 4)]))
    model = stage(vlm=other, experts={"pet": EXPERTS["pet"]}, cache=str(tmp_path / "features"))
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(model, data)
    assert run.global_step == 1 and model.fused.family.name == "other_vlm"
    scores = run.test(model, data, verbose=False)[0]
    assert scores["test/conversations"] == 4 and {"test/accuracy", "test/written"} <= set(scores)


def test_without_an_entry_it_is_unknown(other: str) -> None:
    del ENTRIES["other_vlm"]
    with pytest.raises(ValueError, match="Unknown family 'other_vlm'. Known: .* A new one is an entry in"):
        load_vlm(other)


# ---------------------------------------------------------------------- the published Qwen2.5-VL

QWEN = os.environ.get("INSTANCE_ZOO_QWEN25VL", "")
published = pytest.mark.skipif(not QWEN, reason="INSTANCE_ZOO_QWEN25VL names no folder")


@published
def test_the_published_configuration() -> None:
    """Qwen2.5-VL-7B on the meta device, from the folder in INSTANCE_ZOO_QWEN25VL; skipped without it."""
    config = AutoConfig.from_pretrained(QWEN)
    family = family_of(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert family.widths(config) == (1280, 3584)
    projector: Any = family.take_projector(model)
    assert (projector.mlp[0].in_features, projector.mlp[-1].out_features) == (4 * 1280, 3584)
    assert isinstance(model.get_submodule(family.projector), PassThrough)
    blocks = model.get_submodule(family.language_modules[0])
    linear = [name.rpartition(".")[2] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    assert set(linear) == set(family.lora_targets) and len(linear) == 7 * 28


@published
@torch.no_grad()
def test_the_published_configuration_made_small() -> None:
    """Two layers, the published processor and token ids, from INSTANCE_ZOO_QWEN25VL; skipped without it."""
    config = AutoConfig.from_pretrained(QWEN)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 2, 256, 64
    text.num_attention_heads, text.num_key_value_heads = 2, 1
    text.layer_types = text.layer_types[:2]
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 2, 64, 4, 48
    vision.out_hidden_size, vision.fullatt_block_indexes = 256, [1]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    family, processor = family_of(config), AutoProcessor.from_pretrained(QWEN)
    fields, images = asked(family, processor, [picture(230, 120), picture(84, 300), picture(150, 140)])
    wanted = model(**fields, **images).logits
    projector = family.take_projector(model)
    features = family.project(projector, family.tower_tokens(model, images))
    with family.answer(model, features, family.image_tokens(config, images)):
        torch.testing.assert_close(model(**fields, **images).logits, wanted, rtol=0, atol=1e-5)
