"""FusedVLM: what is added, what stays the same, and what an answer scores."""

from functools import partial

import pytest
import torch
from torch import nn

from fusion import AdditiveFusion, ConcatFusion, CrossAttentionFusion
from tests.vlm.tiny import FAMILIES, picture, tiny_vlm
from zoo.backbones import TimmEncoder
from zoo.vlm.batch import Example, VLMBatch
from zoo.vlm.fused import FusedVLM, exact_logits, per_image
from zoo.vlm.processor import VLMProcessor

ADAPTERS = (AdditiveFusion, ConcatFusion, CrossAttentionFusion)


def expert(size: int = 32, seed: int = 0) -> TimmEncoder:
    torch.manual_seed(seed)
    return TimmEncoder("mobilenetv3_small_050", size=size).eval()


def example(images: int, category: str | None = "pet", seed: int = 0, answer: str = "[Pet 1]") -> Example:
    content: list[dict] = [{"type": "image", "image": picture(32, 40, seed + n)} for n in range(images)]
    content.append({"type": "text", "text": "Which one is the query?"})
    keys = tuple(f"{seed}-{n}" for n in range(images))
    return Example([{"role": "user", "content": content}], answer, seed, keys, (category,) * images)


def fused_of(
    family: str, experts: dict | None = None, fusion: object = None, **options: object
) -> tuple[FusedVLM, VLMProcessor]:
    vlm, processor = tiny_vlm(family)
    experts = experts if experts is not None else {"pet": expert()}
    fused = FusedVLM(vlm, experts, fusion, **options)  # type: ignore[arg-type]
    transforms = {category: encoder.transform for category, encoder in experts.items()}
    return fused.eval(), VLMProcessor(processor, fused.family, vlm.config, experts=transforms)


def open_gates(fused: FusedVLM, value: float = 0.5) -> None:
    for adapter in fused.adapters.values():
        adapter.gate.data.fill_(value)


def logits_of(fused: FusedVLM, batch: VLMBatch) -> torch.Tensor:
    with torch.no_grad():
        return fused.answer_logits(batch, fused.see(batch))[0]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fusion", [None, *ADAPTERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_gate_at_zero_the_logits_are_the_base_models(family: str, fusion: object, before: bool) -> None:
    fused, batcher = fused_of(family, fusion=fusion, before_projector=before)
    batch = batcher([example(2), example(1, seed=5)])
    base, _ = tiny_vlm(family)
    with torch.no_grad():
        whole = base(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.text, **batch.vision
        ).logits[:, :-1]
    expected = whole[batch.labels[:, 1:] != -100]
    torch.testing.assert_close(logits_of(fused, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ADAPTERS)
def test_an_open_gate_changes_the_answer(fusion: type) -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=fusion)
    batch = batcher([example(2)])
    closed = logits_of(fused, batch)
    open_gates(fused)
    assert not torch.allclose(logits_of(fused, batch), closed, atol=1e-4)


@pytest.mark.parametrize("fusion", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_conversations_one_by_one(family: str, fusion: type) -> None:
    fused, batcher = fused_of(family, fusion=fusion)
    open_gates(fused)
    examples = [example(3), example(1, seed=7), example(2, category=None, seed=9)]
    together = logits_of(fused, batcher(examples))
    apart = torch.cat([logits_of(fused, batcher([one])) for one in examples])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_an_image_hears_of_itself_only() -> None:
    fused, batcher = fused_of("qwen2_5_vl", fusion=partial(AdditiveFusion, rescale=True))
    open_gates(fused)
    one, other = batcher([example(2)]), batcher([example(2)])
    other.experts["pet"].pixels[1] = 255 - other.experts["pet"].pixels[1]
    with torch.no_grad():
        first, second = (fused.image_features(batch, fused.see(batch)) for batch in (one, other))
    tokens = int(one.image_tokens[0])
    torch.testing.assert_close(first[:tokens], second[:tokens], rtol=0, atol=0)
    assert not torch.allclose(first[tokens:], second[tokens:], atol=1e-5)


def test_updates_of_several_experts_are_summed_from_the_same_tokens() -> None:
    experts = {"pet": expert(), "person": expert(48, seed=1)}
    fused, batcher = fused_of("qwen2_5_vl", experts, AdditiveFusion)
    batch = batcher([example(2)])
    # The second image is of a pet and of a person.
    batch.experts["person"].image = torch.tensor([1])
    batch.experts["person"].pixels = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    seen = fused.see(batch)
    parts = {}
    for category in ("pet", "person"):
        open_gates(fused, 0.0)
        fused.adapters[category].gate.data.fill_(0.7)
        parts[category] = fused._updates(seen.tokens, seen.patches, batch, seen)
    open_gates(fused, 0.7)
    both = fused._updates(seen.tokens, seen.patches, batch, seen)
    torch.testing.assert_close(both, parts["pet"] + parts["person"])
    assert (parts["person"][: int(seen.patches[0])] == 0).all() and parts["person"].abs().sum() > 0


def test_an_expert_without_an_image_still_gets_a_gradient() -> None:
    fused, batcher = fused_of("qwen2_5_vl", {"pet": expert(), "face": expert()}, AdditiveFusion)
    fused.train()
    batch = batcher([example(2)])
    logits, labels = fused.answer_logits(batch, fused.see(batch))
    nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in fused.named_parameters():
        trains = name.startswith(("projector.", "adapters."))
        assert (parameter.grad is not None) == trains == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert fused.adapters["pet"].gate.grad != 0
    assert all((parameter.grad == 0).all() for parameter in fused.adapters["face"].parameters())


def test_what_is_frozen_stays_in_eval_mode() -> None:
    fused, _ = fused_of("qwen2_5_vl", fusion=AdditiveFusion)
    fused.train()
    assert fused.adapters["pet"].training and fused.projector.training
    assert not any(module.training for part in (fused.vlm, fused.experts) for module in part.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_option_scores_are_log_likelihoods_of_whole_sequences(family: str) -> None:
    """The prompt's kept keys and values give what reading prompt and option together gives, also where padded."""
    fused, batcher = fused_of(family, fusion=AdditiveFusion)
    open_gates(fused)
    tokenizer = batcher.processor.tokenizer
    examples = [example(3), example(1, seed=7)]
    texts = [["[Pet 1]", "[Pet 2]", "[Product 10]"], ["[Pet 1]", "[None]"]]
    ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in row] for row in texts]
    longest = max(len(option) for row in ids for option in row)
    options = torch.full((2, 3, longest), -1)
    for b, row in enumerate(ids):
        for o, option in enumerate(row):
            options[b, o, : len(option)] = torch.tensor(option)
    batch = batcher(examples, for_generation=True)
    scores = fused.option_scores(batch, fused.see(batch), options)
    assert scores[1, 2] == -torch.inf
    for b, row in enumerate(texts):
        for o, text in enumerate(row):
            alone = batcher([Example(examples[b].messages, text, 0, examples[b].keys, examples[b].categories)])
            logits = logits_of(fused, alone).log_softmax(-1)
            expected = sum(logits[place, token] for place, token in enumerate(ids[b][o]))
            torch.testing.assert_close(scores[b, o], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_options_are_told_apart_in_float32(autocast: bool) -> None:
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
    vlm, processor = tiny_vlm("qwen2_5_vl")
    fused, batcher = fused_of("qwen2_5_vl", fusion=None)
    fused.vlm.bfloat16()
    with torch.no_grad():
        fused.vlm.get_output_embeddings().weight.mul_(30)
    batch = batcher([example(2)], for_generation=True)
    options = torch.arange(60).view(1, 60, 1)
    scores = fused.option_scores(batch, fused.see(batch), options)
    with torch.no_grad():
        hidden = fused.hidden(batch, fused.image_features(batch, fused.see(batch)))[:, -1]
        weight = fused.vlm.get_output_embeddings().weight
        expected = (hidden.double() @ weight.double().T).log_softmax(-1)[:, :60]
    assert expected.abs().max() > 8
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-3)


def test_crops_are_laid_beside_each_other_per_image() -> None:
    identities = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    packed, mask = per_image(identities, torch.tensor([2, 0, 2, 2]), count=4)
    assert packed.shape == (4, 6, 3) and mask.sum(1).tolist() == [2, 0, 6, 0]
    assert packed[2, :, 0].tolist() == [0, 0, 2, 2, 3, 3] and packed[0, :2, 0].tolist() == [1, 1]


def test_no_crop_at_all() -> None:
    packed, mask = per_image(torch.zeros(0, 1, 3), torch.zeros(0, dtype=torch.int64), count=2)
    assert packed.shape == (2, 1, 3) and not mask.any()
