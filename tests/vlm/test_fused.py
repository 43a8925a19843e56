"""FusedVLM: what is added, what stays the same, and what an answer scores."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fusion import AdditiveFusion, ConcatFusion, CrossAttentionFusion
from tests.vlm.rig import stage
from tests.vlm.tiny import FAMILIES, picture, tiny_vlm
from zoo.backbones import TimmEncoder
from zoo.contracts import FusionAdapter
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.fused import FusedVLM, exact_logits, per_image
from zoo.vlm.processor import Detection, VLMProcessor

ADAPTERS = (AdditiveFusion, ConcatFusion, CrossAttentionFusion)


def expert(size: int = 32, seed: int = 0) -> TimmEncoder:
    torch.manual_seed(seed)
    return TimmEncoder("mobilenetv3_small_050", size=size).eval()


def example(images: int, *categories: str, seed: int = 0, answer: str = "[Pet 1]") -> Example:
    """With an instance of each category in every image."""
    content: list[dict[str, Any]] = [{"type": "image", "image": picture(32, 40, seed + n)} for n in range(images)]
    content.append({"type": "text", "text": "Which one is the query?"})
    keys = tuple(f"{seed}-{n}" for n in range(images))
    instances = (tuple(map(Instance, categories)),) * images
    return Example([{"role": "user", "content": content}], answer, seed, keys, instances)


def fused_of(
    family: str,
    experts: dict[str, TimmEncoder] | None = None,
    fusion: Callable[[int, int], FusionAdapter] | None = None,
    before_projector: bool = True,
) -> tuple[FusedVLM, VLMProcessor]:
    """A model of a family with an expert of pets unless others are given, frozen as in stage 1, and its processor."""
    vlm, processor = tiny_vlm(family)
    experts = experts if experts is not None else {"pet": expert()}
    fused = FusedVLM(vlm, experts, fusion, before_projector)
    for part in (fused.vlm, fused.experts):
        part.requires_grad_(False)
    transforms = {category: encoder.transform for category, encoder in experts.items()}
    return fused.eval(), VLMProcessor(processor, fused.family, vlm.config, experts=transforms)


def open_gates(fused: FusedVLM, value: float = 0.5) -> None:
    for adapter in fused.adapters.values():
        adapter.gate.data.fill_(value)


def logits_of(fused: FusedVLM, batch: VLMBatch) -> torch.Tensor:
    with torch.no_grad():
        return fused.answer_logits(batch, fused.run_towers(batch))[0]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fusion", [None, *ADAPTERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_gate_at_zero_the_logits_are_the_base_models(
    family: str, fusion: type[FusionAdapter] | None, before: bool
) -> None:
    fused, batcher = fused_of(family, fusion=fusion, before_projector=before)
    batch = batcher([example(2, "pet"), example(1, "pet", seed=5)])
    base, _ = tiny_vlm(family)
    with torch.no_grad():
        whole = base(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.text, **batch.vision
        ).logits[:, :-1]
    expected = whole[batch.labels[:, 1:] != -100]
    torch.testing.assert_close(logits_of(fused, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ADAPTERS)
def test_an_open_gate_changes_the_answer(fusion: type[FusionAdapter]) -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=fusion)
    batch = batcher([example(2, "pet")])
    closed = logits_of(fused, batch)
    open_gates(fused)
    assert not torch.allclose(logits_of(fused, batch), closed, atol=1e-4)


@pytest.mark.parametrize("fusion", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_conversations_one_by_one(family: str, fusion: type[FusionAdapter]) -> None:
    fused, batcher = fused_of(family, fusion=fusion)
    open_gates(fused)
    examples = [example(3, "pet"), example(1, "pet", seed=7), example(2, seed=9)]
    together = logits_of(fused, batcher(examples))
    apart = torch.cat([logits_of(fused, batcher([one])) for one in examples])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_an_image_receives_its_own_identity_only() -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=partial(AdditiveFusion, rescale=True))
    open_gates(fused)
    one, other = batcher([example(2, "pet")]), batcher([example(2, "pet")])
    other.experts["pet"].pixels[1] = 255 - other.experts["pet"].pixels[1]
    with torch.no_grad():
        first, second = (fused.image_features(batch, fused.run_towers(batch)) for batch in (one, other))
    tokens = int(one.image_tokens[0])
    torch.testing.assert_close(first[:tokens], second[:tokens], rtol=0, atol=0)
    assert not torch.allclose(first[tokens:], second[tokens:], atol=1e-5)


def test_updates_of_several_experts_are_summed_from_the_same_tokens() -> None:
    experts = {"pet": expert(), "person": expert(48, seed=1)}
    fused, batcher = fused_of("qwen2_5_vl", experts, AdditiveFusion)
    # The second image is of a pet and of a person.
    batch = batcher([replace(example(2), instances=((Instance("pet"),), (Instance("pet"), Instance("person"))))])
    features = fused.run_towers(batch)
    parts = {}
    for category in ("pet", "person"):
        open_gates(fused, 0.0)
        fused.adapters[category].gate.data.fill_(0.7)
        parts[category] = fused._updates(features.tokens, features.patches, features)
    open_gates(fused, 0.7)
    both = fused._updates(features.tokens, features.patches, features)
    torch.testing.assert_close(both, parts["pet"] + parts["person"])
    assert (parts["person"][: int(features.patches[0])] == 0).all() and parts["person"].abs().sum() > 0


def test_an_expert_without_an_image_still_gets_a_gradient() -> None:
    fused, batcher = fused_of("qwen2_5_vl", {"pet": expert(), "face": expert()}, AdditiveFusion)
    fused.train()
    batch = batcher([example(2, "pet")])
    logits, labels = fused.answer_logits(batch, fused.run_towers(batch))
    nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in fused.named_parameters():
        trains = name.startswith(("projector.", "adapters."))
        assert (parameter.grad is not None) == trains == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert fused.adapters["pet"].gate.grad != 0
    assert all((parameter.grad == 0).all() for parameter in fused.adapters["face"].parameters())


def test_what_a_stage_freezes_has_no_gradient_and_stays_in_eval_mode() -> None:
    model = stage()
    model.configure_model()
    fused = model.train().fused
    assert fused.adapters["pet"].training and fused.projector.training
    assert not any(module.training for part in (fused.vlm, fused.experts) for module in part.modules())
    for name, parameter in fused.named_parameters():
        assert parameter.requires_grad == name.startswith(("projector.", "adapters.")), name


@pytest.mark.parametrize("trains", [False, True])
def test_experts_give_a_gradient_where_they_train(trains: bool) -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=AdditiveFusion)
    fused.experts.requires_grad_(trains)
    vectors = fused.run_towers(batcher([example(2, "pet")])).experts["pet"].vectors
    assert vectors.requires_grad == trains


@pytest.mark.parametrize("family", FAMILIES)
def test_option_scores_are_log_likelihoods_of_whole_sequences(family: str) -> None:
    """The prompt's kept keys and values give what reading prompt and option together gives, also where padded."""
    fused, batcher = fused_of(family, fusion=AdditiveFusion)
    open_gates(fused)
    tokenizer = batcher.processor.tokenizer
    examples = [example(3, "pet"), example(1, "pet", seed=7)]
    texts = [["[Pet 1]", "[Pet 2]", "[Product 10]"], ["[Pet 1]", "[None]"]]
    ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in row] for row in texts]
    longest = max(len(option) for row in ids for option in row)
    options = torch.full((2, 3, longest), -1)
    for b, row in enumerate(ids):
        for o, option in enumerate(row):
            options[b, o, : len(option)] = torch.tensor(option)
    batch = batcher(examples, for_generation=True)
    scores = fused.option_scores(batch, fused.run_towers(batch), options)
    assert scores[1, 2] == -torch.inf
    for b, row in enumerate(texts):
        for o, text in enumerate(row):
            alone = batcher([replace(examples[b], answer=text)])
            logits = logits_of(fused, alone).log_softmax(-1)
            expected = sum(logits[place, token] for place, token in enumerate(ids[b][o]))
            torch.testing.assert_close(scores[b, o], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_options_are_compared_in_float32(autocast: bool) -> None:
    """Logits about 20 of a bfloat16 head are 0.125 apart: the same hidden states give more than that."""
    torch.manual_seed(0)
    head = nn.Linear(64, 40_000, bias=autocast).bfloat16()
    head.weight.data *= 20
    hidden = torch.randn(2, 3, 64).bfloat16()
    exact = hidden.double() @ head.weight.double().T + (head.bias.double() if autocast else 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = exact_logits(head, hidden)
    assert found.dtype == torch.float32 and (head(hidden).double() - exact).abs().max() > 0.05
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_option_scores_of_a_bfloat16_model_do_not_round_its_logits() -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=None)
    fused.vlm.bfloat16()
    with torch.no_grad():
        fused.vlm.get_output_embeddings().weight.mul_(30)
    batch = batcher([example(2, "pet")], for_generation=True)
    options = torch.arange(60).view(1, 60, 1)
    scores = fused.option_scores(batch, fused.run_towers(batch), options)
    with torch.no_grad():
        hidden = fused.hidden(batch, fused.image_features(batch, fused.run_towers(batch)))[:, -1]
        weight = fused.vlm.get_output_embeddings().weight
        expected = (hidden.double() @ weight.double().T).log_softmax(-1)[:, :60]
    assert expected.abs().max() > 8
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fusion", ADAPTERS)
def test_an_image_without_an_instance_keeps_its_features(fusion: type[FusionAdapter], before: bool) -> None:
    """F = f to the last bit, whether no instance is given or a detector has not found it; other images change."""
    fused, batcher = fused_of("qwen2_5_vl", fusion=fusion, before_projector=before)
    pet = (Instance("pet"),)
    given = replace(example(3), instances=(pet, (), pet))
    bare, _ = fused_of("qwen2_5_vl", experts={})
    open_gates(fused)
    plain, batch = batcher([example(3)]), batcher([given])
    detected = iter([[Detection("cat", (2.0, 2.0, 20.0, 20.0), 0.9)], []])
    batcher.detector = lambda image: next(detected)
    undetected = batcher([given])
    assert undetected.experts["pet"].absent == (given.keys[2],)
    with torch.no_grad():
        base = bare.image_features(plain, bare.run_towers(plain)).split(plain.image_tokens.tolist())
        for made, changed in ((batch, {0, 2}), (undetected, {0})):
            found = fused.image_features(made, fused.run_towers(made)).split(made.image_tokens.tolist())
            assert {n for n in range(3) if not torch.equal(found[n], base[n])} == changed


def test_several_instances_of_an_image_are_several_vectors() -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=AdditiveFusion)
    boxes = [(0.0, 0.0, 20.0, 20.0), (5.0, 10.0, 20.0, 20.0)]
    two = tuple(Instance("pet", box) for box in boxes)
    batch = batcher([replace(example(2), instances=(two[:1], two))])
    features = fused.run_towers(batch)
    assert features.experts["pet"].image.tolist() == [0, 1, 1] and features.experts["pet"].vectors.shape[:2] == (3, 1)
    attended = fused.attention(batch, features)["pet"].split(features.patches.tolist())
    assert (attended[0][:, 1] == 0).all() and (attended[1] > 0).all()


def test_crops_are_laid_beside_each_other_per_image() -> None:
    identities = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    packed, mask = per_image(identities, torch.tensor([2, 0, 2, 2]), count=4)
    assert packed.shape == (4, 6, 3) and mask.sum(1).tolist() == [2, 0, 6, 0]
    assert packed[2, :, 0].tolist() == [0, 0, 2, 2, 3, 3] and packed[0, :2, 0].tolist() == [1, 1]


def test_no_crop_at_all() -> None:
    packed, mask = per_image(torch.zeros(0, 1, 3), torch.zeros(0, dtype=torch.int64), count=2)
    assert packed.shape == (2, 1, 3) and not mask.any()
