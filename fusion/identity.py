"""From an expert's identity vector to the width of the image tokens."""

from torch import Tensor, nn
from torch.nn import functional as F


class IdentityMLP(nn.Module):
    """L2 norm, LayerNorm, Linear, GELU, Linear: f' = MLP(f_e) of IIR-VLM, section 3, which leaves its layers open.

    Its last layer starts like any other: from 0, the gradient of a cosine with f' would be singular.

    Args:
        identity_dim: E, width of an identity vector.
        hidden: width between the two linear layers.
        width: W, width of what comes out.
    """

    def __init__(self, identity_dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(identity_dim)
        self.enter = nn.Linear(identity_dim, hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, identity: Tensor, mask: Tensor) -> Tensor:
        """(J, M, E) vectors and (J, M) bool, which are valid -> (J, M, W), exactly 0 for the others."""
        vectors = F.normalize(identity[mask].float(), dim=-1).to(self.enter.weight.dtype)
        vectors = self.leave(F.gelu(self.enter(self.norm(vectors))))
        placed = vectors.new_zeros(*mask.shape, vectors.shape[-1])
        return placed.index_put((mask,), vectors)
