import math

import pytest
import torch

from fusion import AdditiveFusion
from tests.fusion.cases import D, E, check_by_hand, cosine, dot, make, mlp, packed, plus, softmax, times


@pytest.mark.parametrize("name", ["additive", "additive literal", "additive dot", "additive rescaled"])
def test_update_is_equations_3_and_4(name):
    adapter = make(name)
    gate = 1.0 if adapter.gate is None else adapter.gate.item()
    scale = 1.0 if adapter.log_scale is None else math.exp(adapter.log_scale.item())

    def similarity(token, vector):
        return {
            "cosine": scale * cosine(token, vector),
            "plain_cosine": cosine(token, vector),
            "dot": dot(token, vector),
            "scaled_dot": dot(token, vector) / math.sqrt(D),
        }[adapter.similarity]

    def by_hand(tokens, identities):
        vectors = [mlp(identity, adapter.mlp) for identity in identities]
        shares = [softmax([similarity(token, vector) for token in tokens]) for vector in vectors]
        factor = gate * (len(tokens) if adapter.rescale else 1)
        moved = [
            plus(*(times(factor * share[i], v) for share, v in zip(shares, vectors, strict=True)))
            for i in range(len(tokens))
        ]
        return moved, [[share[i] for share in shares] for i in range(len(tokens))]

    check_by_hand(adapter, by_hand)


@pytest.mark.parametrize("name", ["additive", "additive literal", "additive dot", "additive rescaled"])
def test_attention_of_each_identity_sums_to_one_over_its_image(name):
    batch = packed()
    _, attention = make(name)(*batch, return_attention=True)
    assert (attention >= 0).all()
    for number in range(len(batch.mask)):
        rows = batch.rows(number)
        wanted = batch.mask[number] & (rows.stop > rows.start)
        assert torch.allclose(attention[rows].sum(dim=0), wanted.float(), atol=1e-6)


def test_scale_starts_as_in_clip_and_is_held_at_100():
    adapter = AdditiveFusion(D, E)
    assert adapter.log_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        adapter.gate.fill_(1)
        adapter.log_scale.fill_(9.0)
    adapter.train()
    update = adapter(*packed())
    assert adapter.log_scale.exp().item() == pytest.approx(100)
    update.square().sum().backward()
    assert adapter.log_scale.grad != 0, "it must find its way back"


def test_rescaling_makes_the_update_independent_of_the_resolution():
    """An image whose tokens all come twice."""
    torch.manual_seed(0)
    adapters = {rescale: AdditiveFusion(D, E, gate=False, rescale=rescale) for rescale in (False, True)}
    tokens, identity, mask = torch.randn(5, D), torch.randn(1, 1, E), torch.ones(1, 1, dtype=torch.bool)
    for rescale, adapter in adapters.items():
        once = adapter(tokens, torch.tensor([0, 5]), identity, mask)
        twice = adapter(tokens.repeat(2, 1), torch.tensor([0, 10]), identity, mask)[:5]
        assert torch.allclose(twice, once if rescale else once / 2, atol=1e-6)


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="'euclid'. Known: cosine, plain_cosine, dot, scaled_dot"):
        AdditiveFusion(D, E, similarity="euclid")
