"""ConcatFusion: each token is projected together with the identity."""

from typing import Any

import torch
from torch import Tensor, nn

from fusion.identity import IdentityMLP
from zoo.contracts import FusionAdapter, FusionVariant


class ConcatFusion(FusionAdapter):
    """With f' = MLP(f_e), the update of token i is P [LayerNorm(f_i) ; f'], channels concatenated, P linear.

    P of a concatenation is the sum of what its two halves make of theirs, and so it is computed. Of several
    identities in an image, the mean update is taken.

    There is no attention here. Drawn instead is the length of the update before the gate that each identity alone
    would give each token, as a share of its sum over the image's tokens.

    Args:
        token_dim: D, width of an image token.
        identity_dim: E, width of an identity vector.
        hidden: width inside the MLP; null for that of a token.
        gate: multiply the update by a scalar that is learned from 0.
    """

    variants = {"concat": FusionVariant()}

    def __init__(self, token_dim: int, identity_dim: int, hidden: int | None = None, gate: bool = True) -> None:
        super().__init__(token_dim, identity_dim, gate)
        self._init_args = {"token_dim": token_dim, "identity_dim": identity_dim, "hidden": hidden, "gate": gate}
        self.mlp = IdentityMLP(identity_dim, hidden or token_dim, token_dim)
        self.norm = nn.LayerNorm(token_dim)
        self.of_token = nn.Linear(token_dim, token_dim)
        self.of_identity = nn.Linear(token_dim, token_dim, bias=False)

    def init_args(self) -> dict[str, Any]:
        return dict(self._init_args)

    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, Tensor | None]:
        tokens = self.of_token(self.norm(tokens.to(self.norm.weight.dtype)))
        vectors = self.of_identity(self.mlp(identity, mask))  # without a bias, an invalid one stays 0
        update = tokens + vectors.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        return update, self._shares(tokens, vectors, present, mask) if return_attention else None

    @staticmethod
    def _shares(tokens: Tensor, vectors: Tensor, present: Tensor, mask: Tensor) -> Tensor:
        """|t + v| of each token and identity, summing to 1 over the tokens of an image: (J, N, M)"""
        lengths = torch.cdist(tokens.float(), -vectors.float()) * (present[..., None] & mask[:, None])
        return lengths / lengths.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
