import math

import torch

from tests.fusion.cases import D, E, check_by_hand, dot, layer_norm, make, mlp, plus, times


def test_update_is_a_projection_of_the_token_and_the_identity_side_by_side():
    for name in ("concat", "concat without gate"):
        adapter = make(name)
        gate = 1.0 if adapter.gate is None else adapter.gate.item()
        halves = zip(adapter.of_token.weight.tolist(), adapter.of_identity.weight.tolist(), strict=True)
        projection = [token + identity for token, identity in halves]  # (D, 2 D)
        assert len(projection[0]) == 2 * D

        def project(token, vector, adapter=adapter, projection=projection):
            both = layer_norm(token, adapter.norm) + vector
            return plus([dot(row, both) for row in projection], adapter.of_token.bias.tolist())

        def by_hand(tokens, identities, adapter=adapter, gate=gate, project=project):
            vectors = [mlp(identity, adapter.mlp) for identity in identities]
            alone = [[project(token, vector) for vector in vectors] for token in tokens]
            moved = [times(gate / len(vectors), plus(*of_token)) for of_token in alone]
            lengths = [[math.sqrt(dot(v, v)) for v in of_token] for of_token in alone]
            sums = plus(*lengths)
            return moved, [[v / total for v, total in zip(row, sums, strict=True)] for row in lengths]

        check_by_hand(adapter, by_hand)


def test_another_identity_changes_the_update_of_every_token_alike():
    """P is linear, so there is nothing between a token and the identity but their sum."""
    adapter, mask = make("concat without gate"), torch.ones(1, 1, dtype=torch.bool)
    tokens, ends = torch.randn(5, D), torch.tensor([0, 5])
    one, two = (adapter(tokens, ends, torch.randn(1, 1, E), mask) for _ in range(2))
    change = two - one
    assert change.norm() > 0.1 and torch.allclose(change, change[:1].expand_as(change), atol=1e-5)
    assert not torch.allclose(one, one[:1].expand_as(one), atol=0.1)
