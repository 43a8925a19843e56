"""Packed images to fuse identities into, and the adapters' common parts written as plain loops."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusion import AdditiveFusion, ConcatFusion, CrossAttentionFusion
from fusion.identity import IdentityMLP
from zoo.contracts import FusionAdapter

D, E = 8, 6
ADAPTERS: dict[str, Callable[[int, int], FusionAdapter]] = {
    "additive": AdditiveFusion,
    "additive literal": partial(AdditiveFusion, similarity="plain_cosine", gate=False),
    "additive dot": partial(AdditiveFusion, similarity="dot", hidden=5),
    "additive rescaled": partial(AdditiveFusion, similarity="scaled_dot", rescale=True),
    "concat": ConcatFusion,
    "concat without gate": partial(ConcatFusion, hidden=5, gate=False),
    "cross-attention": CrossAttentionFusion,
    "cross-attention to patches": partial(CrossAttentionFusion, slots=1, heads=2, gate=False),
}


class Packed(NamedTuple):
    """What an adapter takes."""

    tokens: Tensor
    cu_seqlens: Tensor
    identity: Tensor
    mask: Tensor

    def image(self, number: int) -> "Packed":
        """One image alone."""
        start, end = self.cu_seqlens[number : number + 2].tolist()
        ends = torch.tensor([0, end - start])
        return Packed(self.tokens[start:end], ends, self.identity[number : number + 1], self.mask[number : number + 1])

    def rows(self, number: int) -> slice:
        return slice(*self.cu_seqlens[number : number + 2].tolist())


def packed(counts: tuple[int, ...] = (4, 1, 7, 3, 0, 5, 0), seed: int = 0) -> Packed:
    """Images of every kind, M = 3: all valid, one of several valid, none valid, no token, a single token, equal tokens,
    a token of zeros, an identity of zeros; what is invalid is nan or infinite."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(counts), D, generator=draw) * 3
    ends = torch.tensor([0, *counts]).cumsum(0)
    identity = torch.randn(len(counts), 3, E, generator=draw)
    mask = torch.rand(len(counts), 3, generator=draw) < 0.5
    if len(counts) == 7:
        mask[0], mask[1], mask[2], mask[3] = True, torch.tensor([False, True, False]), True, False
        mask[4], mask[5], mask[6] = True, torch.tensor([True, False, True]), False
        tokens[ends[2] : ends[2] + 2] = tokens[ends[2]].clone()
        tokens[ends[5]] = 0
        identity[2, 1] = 0
    identity[~mask] = float("nan")
    identity[:, 0][~mask[:, 0]] = float("inf")
    return Packed(tokens, ends, identity, mask)


def make(name: str, seed: int = 0) -> FusionAdapter:
    """An adapter none of whose parameters is at a value where a mistake would not show."""
    torch.manual_seed(seed)
    adapter = ADAPTERS[name](D, E)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        if adapter.gate is not None:
            adapter.gate.fill_(0.7)
    return adapter


# ---------------------------------------------------------------------- by hand, in float64


def layer_norm(vector: list[float], layer: nn.LayerNorm) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((v - mean) ** 2 for v in vector) / len(vector)
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [(v - mean) / math.sqrt(variance + layer.eps) * w + b for v, w, b in zip(vector, weight, bias, strict=True)]


def linear(vector: list[float], layer: nn.Linear) -> list[float]:
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [dot(row, vector) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def mlp(vector: list[float], layers: IdentityMLP) -> list[float]:
    length = math.sqrt(dot(vector, vector)) or 1.0
    inner = linear(layer_norm([v / length for v in vector], layers.norm), layers.enter)
    return linear([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in inner], layers.leave)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / lengths if lengths else 0.0


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def plus(*vectors: list[float]) -> list[float]:
    return [sum(values) for values in zip(*vectors, strict=True)]


def times(factor: float, vector: list[float]) -> list[float]:
    return [factor * value for value in vector]


ByHand = Callable[[list[list[float]], list[list[float]]], tuple[list[list[float]], list[list[float]]]]


def check_by_hand(adapter: FusionAdapter, by_hand: ByHand) -> None:
    """Compare update and attention with what plain loops make of one image's tokens and valid identities."""
    batch = packed()
    update, attention = adapter(*batch, return_attention=True)
    wanted_update, wanted_attention = torch.zeros_like(update), torch.zeros_like(attention)
    for number, valid in enumerate(batch.mask):
        tokens, identities = batch.tokens[batch.rows(number)].tolist(), batch.identity[number][valid].tolist()
        if not tokens or not identities:
            continue
        moved, attended = by_hand(tokens, identities)
        wanted_update[batch.rows(number)] = torch.tensor(moved)
        wanted_attention[batch.rows(number)] = wanted_attention[batch.rows(number)].masked_scatter(
            valid.expand(len(tokens), -1), torch.tensor(attended)
        )
    assert torch.allclose(update, wanted_update, atol=1e-5), (update - wanted_update).abs().max()
    assert torch.allclose(attention, wanted_attention, atol=1e-5), (attention - wanted_attention).abs().max()
    assert wanted_update.abs().sum() > 1 and wanted_attention.abs().sum() > 1
