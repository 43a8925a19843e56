import math

import pytest
import torch

from fusion import CrossAttentionFusion
from tests.fusion.cases import D, E, check_by_hand, dot, layer_norm, linear, make, mlp, packed, plus, softmax, times


@pytest.mark.parametrize("name", ["cross-attention", "cross-attention to patches"])
def test_update_is_multi_head_attention_to_the_identity_tokens(name):
    adapter = make(name)
    gate, width = 1.0 if adapter.gate is None else adapter.gate.item(), D // adapter.heads

    def by_hand(tokens, identities):
        wide = [mlp(identity, adapter.mlp) for identity in identities]
        answers = [vector[s * D : (s + 1) * D] for vector in wide for s in range(adapter.slots)]
        moved, attended = [], []
        for token in tokens:
            query, joined = linear(layer_norm(token, adapter.norm), adapter.query), []
            shares = [0.0] * len(identities)
            for head in range(adapter.heads):
                part = slice(head * width, (head + 1) * width)
                keys = [linear(answer, adapter.key)[part] for answer in answers]
                values = [linear(answer, adapter.value)[part] for answer in answers]
                weights = softmax([dot(query[part], key) / math.sqrt(width) for key in keys])
                joined += plus(*(times(w, v) for w, v in zip(weights, values, strict=True)))
                for place, weight in enumerate(weights):
                    shares[place // adapter.slots] += weight / adapter.heads
            moved.append(times(gate, linear(joined, adapter.out)))
            attended.append(shares)
        return moved, attended

    check_by_hand(adapter, by_hand)


def test_attention_of_each_token_sums_to_one_over_the_valid_identities():
    batch = packed()
    _, attention = make("cross-attention")(*batch, return_attention=True)
    for number in range(len(batch.mask)):
        rows = attention[batch.rows(number)]
        assert torch.allclose(rows.sum(dim=1), batch.mask[number].any().float().expand(len(rows)), atol=1e-6)


def test_with_one_slot_and_one_vector_every_token_gets_the_same_update_but_not_with_four():
    torch.manual_seed(0)
    tokens, ends, mask = torch.randn(5, D), torch.tensor([0, 5]), torch.ones(1, 1, dtype=torch.bool)
    for slots in (1, 4):
        update = CrossAttentionFusion(D, E, slots=slots, gate=False)(tokens, ends, torch.randn(1, 1, E), mask)
        assert torch.allclose(update, update[:1].expand_as(update), atol=1e-7) == (slots == 1)


@pytest.mark.parametrize(
    ("options", "message"), [({"heads": 3}, "heads 3 does not divide the token width 8"), ({"slots": 0}, "slots is 0")]
)
def test_what_cannot_be_split_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CrossAttentionFusion(D, E, **options)
