"""What all adapters have in common: packing, masks, gates, gradients, types, flags and cards."""

from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser

import zoo
from fusion import AdditiveFusion, ConcatFusion, CrossAttentionFusion
from tests.fusion.cases import ADAPTERS, D, E, Packed, make, packed
from zoo.contracts import FusionAdapter

each = pytest.mark.parametrize("name", ADAPTERS)
NOTHING = Packed(torch.zeros(0, D), torch.tensor([0]), torch.zeros(0, 1, E), torch.zeros(0, 1, dtype=torch.bool))
NONE_VALID = Packed(
    torch.randn(5, D), torch.tensor([0, 2, 5]), torch.full((2, 1, E), torch.nan), torch.zeros(2, 1, dtype=torch.bool)
)
NO_SLOT = Packed(torch.randn(5, D), torch.tensor([0, 2, 5]), torch.zeros(2, 0, E), torch.zeros(2, 0, dtype=torch.bool))
NO_TOKEN = Packed(torch.zeros(0, D), torch.tensor([0, 0]), torch.randn(1, 1, E), torch.ones(1, 1, dtype=torch.bool))
WITHOUT = {"no image": NOTHING, "none valid": NONE_VALID, "no identity": NO_SLOT, "no token": NO_TOKEN}


@each
@pytest.mark.parametrize("seed", range(3))
def test_packed_images_equal_one_by_one(name, seed):
    adapter, batch = make(name), packed((4, 1, 7, 3, 0, 5, 0) if seed == 0 else (6, 2, 0, 6, 9, 1), seed)
    update, attention = adapter(*batch, return_attention=True)
    for number in range(len(batch.mask)):
        alone, attended = adapter(*batch.image(number), return_attention=True)
        assert torch.allclose(update[batch.rows(number)], alone, atol=1e-6)
        assert torch.allclose(attention[batch.rows(number)], attended, atol=1e-6)


@each
def test_the_order_of_images_and_of_their_identities_does_not_matter(name):
    adapter, batch = make(name), packed()
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(0))
    shuffled = torch.tensor([2, 0, 1])
    moved = Packed(
        torch.cat([batch.tokens[batch.rows(int(i))] for i in order]),
        torch.nn.functional.pad(batch.cu_seqlens.diff()[order].cumsum(0), (1, 0)),
        batch.identity[order][:, shuffled],
        batch.mask[order][:, shuffled],
    )
    update, attention = adapter(*batch, return_attention=True)
    again, attended = adapter(*moved, return_attention=True)
    wanted = torch.cat([update[batch.rows(int(i))] for i in order])
    assert torch.allclose(again, wanted, atol=1e-6)
    drawn = torch.cat([attention[batch.rows(int(i))] for i in order])
    assert torch.allclose(attended, drawn[:, shuffled], atol=1e-6)


@each
def test_images_without_a_valid_identity_are_untouched_and_masked_rows_never_count(name):
    adapter, batch = make(name), packed()
    update, attention = adapter(*batch, return_attention=True)
    assert update.isfinite().all() and attention.isfinite().all()
    for number, valid in enumerate(batch.mask):
        assert valid.any() or (update[batch.rows(number)] == 0).all()
        assert (attention[batch.rows(number)][:, ~valid] == 0).all()
    other = batch._replace(identity=torch.where(batch.mask[..., None], batch.identity, 5.0))
    assert torch.equal(adapter(*other), update)
    update.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())
    touched = batch.mask.any(dim=1)[torch.repeat_interleave(torch.arange(7), batch.cu_seqlens.diff())]
    assert (update[touched].abs().sum(dim=1) > 0).all()


@each
def test_tokens_of_untouched_images_may_be_anything(name):
    adapter, batch = make(name), packed()
    tokens = batch.tokens.clone()
    tokens[batch.rows(3)] = torch.nan
    assert torch.equal(adapter(*batch._replace(tokens=tokens)), adapter(*batch))


@each
@pytest.mark.parametrize("case", WITHOUT)
def test_without_an_identity_the_update_is_zero_and_every_parameter_has_a_gradient(name, case):
    adapter, batch = make(name), WITHOUT[case]
    with torch.no_grad():
        next(adapter.mlp.parameters()).fill_(torch.inf)  # 0 times it would be nan
    update, attention = adapter(*batch, return_attention=True)
    assert update.shape == batch.tokens.shape and (update == 0).all()
    assert attention.shape == (len(batch.tokens), batch.mask.shape[1]) and (attention == 0).all()
    (update.sum() + batch.tokens.sum()).backward()
    for label, parameter in adapter.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), label


@pytest.mark.parametrize("cls", [AdditiveFusion, ConcatFusion, CrossAttentionFusion])
def test_a_gate_starts_shut_and_opens(cls):
    """The first step can move only the gate; all gradients are there, and from then on none is zero."""
    torch.manual_seed(0)
    adapter, batch = cls(D, E), packed()
    wanted = torch.randn(len(batch.tokens), D)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for step in range(3):
        update = adapter(*batch)
        assert step or (update == 0).all()
        optimizer.zero_grad()
        (update - wanted).square().sum().backward()
        for label, parameter in adapter.named_parameters():
            assert parameter.grad is not None, label
            if step == 0:
                assert (parameter.grad == 0).all() == (label != "gate"), label
            if step == 2:
                assert parameter.grad.abs().sum() > 0, label
        optimizer.step()


@each
def test_gradients_are_those_of_finite_differences(name):
    adapter, batch = make(name).eval(), packed()
    weights = torch.randn(len(batch.tokens), D)
    for label, parameter in adapter.named_parameters():
        adapter.zero_grad()
        (adapter(*batch) * weights).sum().backward()
        direction = torch.randn(parameter.shape)
        moved = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter.add_(step * direction)
                moved.append((adapter(*batch) * weights).sum().item())
                parameter.sub_(step * direction)
        wanted = (moved[0] - moved[1]) / 2e-2
        assert (parameter.grad * direction).sum().item() == pytest.approx(wanted, rel=0.03, abs=0.03), label


@each
@pytest.mark.parametrize("way", ["bf16 tokens", "bf16 adapter", "autocast"])
def test_half_precision_stays_near_float32(name, way):
    batch = packed()
    exact, drawn = make(name)(*batch, return_attention=True)
    adapter = make(name).bfloat16() if way == "bf16 adapter" else make(name)
    if way != "autocast":
        batch = batch._replace(tokens=batch.tokens.bfloat16(), identity=batch.identity.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        update, attention = adapter(*batch, return_attention=True)
    assert update.dtype == batch.tokens.dtype and attention.dtype == torch.float32
    assert torch.allclose(update.float(), exact, atol=0.1 * exact.abs().max().item())
    assert torch.allclose(attention, drawn, atol=0.1)
    update.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())


@each
def test_softmax_is_taken_in_float32_also_in_half_precision(name):
    """With thousands of tokens, shares in bfloat16 would not sum to 1."""
    adapter = make(name).bfloat16()
    tokens, mask = torch.randn(4096, D).bfloat16(), torch.ones(1, 1, dtype=torch.bool)
    _, attention = adapter(tokens, torch.tensor([0, 4096]), torch.randn(1, 1, E), mask, return_attention=True)
    whole = attention.double().sum() if "cross" not in name else attention.double().mean()
    assert whole.item() == pytest.approx(1, abs=1e-5)


class Probe(FusionAdapter):
    """Of another author, who trusts what the contract promises: the mean of an image's tokens and its identities."""

    def update_images(self, tokens, present, identity, mask, return_attention):
        assert present.any(dim=1).all() and mask.any(dim=1).all()
        assert (tokens[~present] == 0).all() and (identity[~mask] == 0).all()
        return (tokens.sum(dim=1) + identity.sum(dim=1)[:, :1])[:, None].expand_as(tokens), None


def test_an_adapter_of_another_author_writes_only_the_formula():
    batch = packed()
    update, attention = Probe(D, E, gate=False)(*batch, return_attention=True)
    assert (attention == 0).all()
    for number, valid in enumerate(batch.mask):
        wanted = batch.tokens[batch.rows(number)].sum(dim=0) + batch.identity[number][valid].sum(dim=0)[0]
        assert torch.allclose(update[batch.rows(number)], wanted * valid.any(), atol=1e-5)


class Root:
    """Takes an adapter as a recipe's root does."""

    def __init__(self, fusion: Callable[[int, int], FusionAdapter] | None = None) -> None:
        self.adapter = fusion(D, E) if fusion is not None else None


@pytest.mark.parametrize("typed", ["{}", "fusion.{}"])
@pytest.mark.parametrize("cls", [AdditiveFusion, ConcatFusion, CrossAttentionFusion])
def test_one_flag_swaps_adapters(cls, typed):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Root, "model")
    flags = ["--model.fusion", typed.format(cls.__name__), "--model.fusion.hidden", "32"]
    adapter = parser.instantiate_classes(parser.parse_args(flags)).model.adapter
    assert type(adapter) is cls and adapter.mlp.enter.out_features == 32
    assert adapter(*packed()).shape == packed().tokens.shape
    assert parser.instantiate_classes(parser.parse_args(["--model.fusion", "null"])).model.adapter is None


@each
def test_an_adapter_is_saved_and_loaded(name, tmp_path):
    adapter = make(name).eval()
    zoo.save(adapter, tmp_path / "adapter")
    assert torch.equal(zoo.load(tmp_path / "adapter")(*packed()), adapter(*packed()))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("tokens", torch.zeros(20, 9), r"takes tokens \(T, 8\)"),
        ("identity", torch.zeros(7, 3, 5), r"identity \(I, M, 6\)"),
        ("identity", torch.zeros(7, E), r"identity \(7, 6\)"),
        ("mask", torch.ones(7, 3), r"mask \(7, 3\) torch.float32"),
        ("mask", torch.ones(7, 2, dtype=torch.bool), "do not fit"),
        ("cu_seqlens", torch.arange(7), "6 images in cu_seqlens"),
        ("cu_seqlens", torch.arange(8), "runs from 0 to 7, but there are 20 tokens"),
        ("cu_seqlens", torch.tensor([1, 4, 5, 12, 15, 15, 20, 20]), "Start it at 0"),
    ],
)
def test_what_does_not_fit_is_refused(part, value, message):
    with pytest.raises(ValueError, match=message):
        ConcatFusion(D, E)(*packed()._replace(**{part: value}))
