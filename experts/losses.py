"""Metric losses on the features before the neck."""

from abc import abstractmethod

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from zoo import ZooModule


class MetricLoss(ZooModule):
    """A loss over the pairs of a batch; gets the rows of all ranks."""

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, embed_dim) features before the neck, (B,) identities -> scalar loss, in float32."""


class BatchHardTriplet(MetricLoss):
    """Hardest positive against hardest negative of every anchor (Hermans et al., "In Defense of the Triplet Loss",
    2017, eq. 5), averaged over all anchors, also those that already keep the margin.

    Args:
        margin: how much further the negative should be. 0.3 suits plain features, 0.1 to 0.2 unit-norm ones.
        normalize: compare directions only.
    """

    def __init__(self, margin: float = 0.3, normalize: bool = False) -> None:
        super().__init__()
        distance = LpDistance(normalize_embeddings=normalize)
        self.miner = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(margin=margin, distance=distance, reducer=MeanReducer())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return self.loss(features, labels, self.miner(features, labels))
