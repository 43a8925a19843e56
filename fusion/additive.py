"""AdditiveFusion: the tokens of an image share the identity out among them."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.identity import IdentityMLP
from zoo.contracts import FusionAdapter, FusionVariant

Similarity = Literal["cosine", "plain_cosine", "dot", "scaled_dot"]

_FIRST_SCALE, _LAST_SCALE = 1 / 0.07, 100.0  # as in CLIP (Radford et al., 2021, section 2.5)


class AdditiveFusion(FusionAdapter):
    """The adapter of IIR-VLM (eqs. 3 and 4): with f' = MLP(f_e), A = softmax over the tokens of one image of
    Sim(f_i, f'), the update of token i is A_i f'.

    Several identities in an image are softmaxed each for itself, and their updates summed. The attention is A.

    Args:
        token_dim: D, width of an image token.
        identity_dim: E, width of an identity vector.
        hidden: width inside the MLP; null for that of a token.
        similarity: cosine times a learned scale, which starts at 1 / 0.07 and ends at 100; plain_cosine, the letter
            of eq. 3, whose softmax over hundreds of tokens is nearly uniform; dot; or scaled_dot, divided by
            sqrt(D). All in float32.
        rescale: multiply the update by the number of tokens of its image. By the letter of eq. 4 it shrinks as they
            become more.
        gate: multiply the update by a scalar that is learned from 0; false for the letter of eq. 4.

    Raises:
        ValueError: an unknown similarity.
    """

    variants = {
        "additive": FusionVariant({"similarity": "cosine", "rescale": True}),
        "additive_unscaled": FusionVariant({"similarity": "cosine", "rescale": False}),
        "additive_literal": FusionVariant({"similarity": "plain_cosine", "rescale": False, "gate": False}),
    }

    def __init__(
        self,
        token_dim: int,
        identity_dim: int,
        hidden: int | None = None,
        similarity: Similarity = "cosine",
        rescale: bool = False,
        gate: bool = True,
    ) -> None:
        super().__init__(token_dim, identity_dim, gate)
        if similarity not in get_args(Similarity):
            raise ValueError(f"Unknown similarity {similarity!r}. Known: {', '.join(get_args(Similarity))}.")
        self._init_args: dict[str, Any] = {"token_dim": token_dim, "identity_dim": identity_dim, "hidden": hidden}
        self._init_args |= {"similarity": similarity, "rescale": rescale, "gate": gate}
        self.similarity, self.rescale = similarity, rescale
        self.mlp = IdentityMLP(identity_dim, hidden or token_dim, token_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE))) if similarity == "cosine" else None

    def init_args(self) -> dict[str, Any]:
        return dict(self._init_args)

    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, Tensor]:
        vectors = self.mlp(identity, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = vectors.float()
            scores = self._similarity(tokens.float(), vectors)
            # Not -inf: only finite numbers keep their gradients finite.
            scores = scores.masked_fill(~present[..., None], torch.finfo(scores.dtype).min)
            attention = scores.softmax(dim=1) * mask[:, None]
            update = attention @ vectors
            return update * present.sum(dim=1)[:, None, None] if self.rescale else update, attention

    def _similarity(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        """(J, N, D) and (J, M, D) -> (J, N, M)"""
        match self.similarity:
            case "dot":
                return tokens @ vectors.mT
            case "scaled_dot":
                return tokens @ vectors.mT / math.sqrt(self.token_dim)
            case _:
                scores = F.normalize(tokens, dim=-1) @ F.normalize(vectors, dim=-1).mT
                return scores if self.log_scale is None else scores * self._scale(self.log_scale)

    def _scale(self, log_scale: nn.Parameter) -> Tensor:
        if self.training:  # held at its end instead of cut off there, where it would have no gradient to return by
            with torch.no_grad():
                log_scale.clamp_(max=math.log(_LAST_SCALE))
        return log_scale.float().exp()
