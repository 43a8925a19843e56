"""CrossAttentionFusion: each token attends to several tokens made of the identity, or to the expert's patches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fusion.identity import IdentityMLP
from zoo.contracts import FusionAdapter, FusionVariant


class CrossAttentionFusion(FusionAdapter):
    """Image tokens ask, identity tokens answer: multi-head attention, softmax over the identity tokens of the image.

    The MLP makes `slots` identity tokens of each identity vector; those of several vectors, be they persons or patch
    tokens of the expert, stand side by side. The attention is the share of each vector, its slots summed, the mean of
    the heads; over the vectors of an image it sums to 1, so with a single one it is 1 everywhere.

    Args:
        token_dim: D, width of an image token.
        identity_dim: E, width of an identity vector.
        hidden: width inside the MLP; null for that of a token.
        slots: identity tokens for each vector. With one slot and one vector there is nothing to choose from, and every
            token gets the same update; with patch tokens, 1 is enough.
        heads: attention heads, a divisor of token_dim.
        gate: multiply the update by a scalar that is learned from 0.

    Raises:
        ValueError: heads that do not divide token_dim, or no slot.
    """

    variants = {
        "cross_attention": FusionVariant({"slots": 4, "heads": 4}),
        "patch_attention": FusionVariant({"slots": 1, "heads": 4}, patch_tokens=True),
    }

    def __init__(
        self,
        token_dim: int,
        identity_dim: int,
        hidden: int | None = None,
        slots: int = 4,
        heads: int = 4,
        gate: bool = True,
    ) -> None:
        super().__init__(token_dim, identity_dim, gate)
        if heads < 1 or token_dim % heads:
            raise ValueError(f"heads {heads} does not divide the token width {token_dim}. Choose a divisor, such as 1.")
        if slots < 1:
            raise ValueError(f"slots is {slots}; give each identity at least one token.")
        self._init_args: dict[str, Any] = {"token_dim": token_dim, "identity_dim": identity_dim, "hidden": hidden}
        self._init_args |= {"slots": slots, "heads": heads, "gate": gate}
        self.slots, self.heads = slots, heads
        self.mlp = IdentityMLP(identity_dim, hidden or token_dim, slots * token_dim)
        self.norm = nn.LayerNorm(token_dim)
        self.query = nn.Linear(token_dim, token_dim, bias=False)
        self.key = nn.Linear(token_dim, token_dim, bias=False)
        self.value = nn.Linear(token_dim, token_dim, bias=False)
        self.out = nn.Linear(token_dim, token_dim)

    def init_args(self) -> dict[str, Any]:
        return dict(self._init_args)

    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, Tensor | None]:
        answers = self.mlp(identity, mask).unflatten(-1, (self.slots, -1)).flatten(1, 2)
        query = self._split(self.query(self.norm(tokens.to(self.norm.weight.dtype))))
        key, value = self._split(self.key(answers)), self._split(self.value(answers))
        with torch.autocast(tokens.device.type, enabled=False):
            scores = query.float() @ key.float().mT / math.sqrt(query.shape[-1])
            silent = ~mask.repeat_interleave(self.slots, dim=1)[:, None, None]
            attention = scores.masked_fill(silent, torch.finfo(scores.dtype).min).softmax(dim=-1)
        update = self.out((attention.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        if not return_attention:
            return update, None
        return update, attention.mean(dim=1).unflatten(-1, (-1, self.slots)).sum(dim=-1)

    def _split(self, tokens: Tensor) -> Tensor:
        """(J, N, D) -> (J, H, N, D / H)"""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
