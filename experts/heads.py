"""Classification heads: they teach an encoder the training identities and are then left behind."""

from abc import abstractmethod

import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor

from zoo import ZooModule


class IdentityHead(ZooModule):
    """A classifier over the training identities, built as `factory(num_identities, embed_dim)`."""

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, embed_dim) embeddings after the neck, (B,) classes -> scalar loss, in float32."""


class ArcFaceHead(IdentityHead):
    """Additive angular margin (Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", eq. 3).

    Args:
        num_identities: number of classes.
        embed_dim: width of the embeddings.
        scale: length of the logits' hypersphere; 64 for very many faces, 30 for few identities.
        margin: angle added to the true class, in radians.
    """

    def __init__(self, num_identities: int, embed_dim: int, scale: float = 30.0, margin: float = 0.5) -> None:
        super().__init__()
        self.loss = ArcFaceLoss(num_identities, embed_dim, margin=margin * 180 / torch.pi, scale=scale)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        # The library casts its weights to the embeddings' type in place: under autocast they would be demoted.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)
