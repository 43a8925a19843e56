"""Classification heads over the training identities: only training needs them, an encoder is used without."""

import math
from abc import abstractmethod

import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from pytorch_metric_learning.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import ZooModule


class IdentityHead(ZooModule):
    """A classifier over the training identities, built as `factory(num_identities, embed_dim)`.

    Raises:
        ValueError: fewer than two identities, which leave nothing to tell apart.
    """

    def __init__(self, num_identities: int) -> None:
        super().__init__()
        if num_identities < 2:
            raise ValueError(
                f"A classifier over {num_identities} identities has nothing to tell apart. Train on at least 2."
            )
        self.num_identities = num_identities

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, embed_dim) embeddings after the neck, (B,) classes -> scalar loss, in float32; 0 for B = 0.

        Raises:
            ValueError: a class that is not in 0 ... num_identities - 1.
        """

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, embed_dim) embeddings after the neck -> (B, num_identities) float32 scores without any margin.

        Closed-set identification ranks them: which of the training identities is on a new image?
        """

    def check_labels(self, labels: Tensor) -> None:
        """Refuse what indexing would wrap around and a cross-entropy skip."""
        wrong = (labels < 0) | (labels >= self.num_identities)
        if wrong.any():
            raise ValueError(
                f"Class {int(labels[wrong][0])} is not one of this head's {self.num_identities}, numbered from 0. "
                "Make the head for the identities of the training split."
            )


def fixed_scale(scale: float | None, num_identities: int) -> float:
    """`scale`, or for None sqrt(2) ln(N - 1) (Zhang et al., "AdaCos", CVPR 2019; PetFace takes it, too).

    Raises:
        ValueError: the rule is asked for too few identities, for which it gives 0 or nothing.
    """
    if scale is not None:
        return scale
    if num_identities < 3:
        raise ValueError(
            f"The scale sqrt(2) ln(N - 1) needs 3 identities, here are {num_identities}. Set model.head.scale to 30."
        )
    return math.sqrt(2) * math.log(num_identities - 1)


class _SteadyAngles:
    """For losses that take the arc cosine: its slope is infinite at 1, where a perfect embedding ends up.

    The library clamps to 1 itself, where earlier versions of torch let the infinite gradient pass.
    """

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        largest = 1 - torch.finfo(torch.float32).eps
        return torch.acos(cosine_of_target_classes.clamp(-largest, largest))


class _ArcFaceLoss(_SteadyAngles, ArcFaceLoss):
    pass


class _SubCenterArcFaceLoss(_SteadyAngles, SubCenterArcFaceLoss):
    pass


class _MarginHead(IdentityHead):
    """A head around one of the library's margin losses, whose weights are `loss.W`, (embed_dim, classes)."""

    def __init__(self, num_identities: int, loss: LargeMarginSoftmaxLoss) -> None:
        super().__init__(num_identities)
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.check_labels(labels)
        if not len(embeddings):
            return self.logits(embeddings).sum()
        # The library casts its weights to the embeddings' type in place: under autocast they would be demoted.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)

    def logits(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss.get_logits(embeddings.float())


class ArcFaceHead(_MarginHead):
    """Additive angular margin (Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", eq. 3).

    Args:
        num_identities: number of classes.
        embed_dim: width of the embeddings.
        scale: length of the logits' hypersphere; 64 for very many faces, 30 for few identities, null for
            sqrt(2) ln(number of identities - 1).
        margin: angle added to the true class, in radians.
    """

    def __init__(self, num_identities: int, embed_dim: int, scale: float | None = 30.0, margin: float = 0.5) -> None:
        scale = fixed_scale(scale, num_identities)
        degrees = math.degrees(margin)
        super().__init__(num_identities, _ArcFaceLoss(num_identities, embed_dim, margin=degrees, scale=scale))


class CosFaceHead(_MarginHead):
    """Additive cosine margin (Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, eq. 4).

    Args:
        num_identities: number of classes.
        embed_dim: width of the embeddings.
        scale: length of the logits' hypersphere; null for sqrt(2) ln(number of identities - 1).
        margin: what is taken off the cosine of the true class.
    """

    def __init__(self, num_identities: int, embed_dim: int, scale: float | None = 30.0, margin: float = 0.35) -> None:
        scale = fixed_scale(scale, num_identities)
        super().__init__(num_identities, CosFaceLoss(num_identities, embed_dim, margin=margin, scale=scale))


class SubCentreArcFaceHead(_MarginHead):
    """ArcFace with several centres an identity, of which the nearest counts (Deng et al., "Sub-center ArcFace:
    Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020): wrong labels gather at a centre of their own.

    Args:
        num_identities: number of classes.
        embed_dim: width of the embeddings.
        scale: length of the logits' hypersphere; null for sqrt(2) ln(number of identities - 1).
        margin: angle added to the true class, in radians.
        sub_centres: centres of each identity.
    """

    def __init__(
        self,
        num_identities: int,
        embed_dim: int,
        scale: float | None = 30.0,
        margin: float = 0.5,
        sub_centres: int = 3,
    ) -> None:
        loss = _SubCenterArcFaceLoss(
            num_classes=num_identities,
            embedding_size=embed_dim,
            margin=math.degrees(margin),
            scale=fixed_scale(scale, num_identities),
            sub_centers=sub_centres,
        )
        super().__init__(num_identities, loss)

    @torch.no_grad()
    def outliers(self, embeddings: Tensor, labels: Tensor, degrees: float = 75.0) -> Tensor:
        """Which samples are likely mislabelled: far from the centre that most samples of their class are nearest to.

        Args:
            embeddings: (B, embed_dim) after the neck, best of the whole training split at once.
            labels: (B,) classes.
            degrees: how far is far, as an angle; the paper drops what is beyond 75.

        Returns:
            (B,) bool
        """
        self.check_labels(labels)
        found, _ = self.loss.get_outliers(embeddings.float(), labels, threshold=degrees)
        mask = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        mask[found.long()] = True
        return mask


class CrossEntropyHead(IdentityHead):
    """A linear classifier without bias and with label smoothing (Luo et al., "Bag of Tricks and a Strong Baseline for
    Deep Person Re-identification", 2019, sec. 3.3).

    Args:
        num_identities: number of classes.
        embed_dim: width of the embeddings.
        smoothing: share of the target that is spread evenly over all classes.
        cosine_scale: compare directions only, and multiply their cosine by this; null for plain products.
    """

    def __init__(
        self, num_identities: int, embed_dim: int, smoothing: float = 0.1, cosine_scale: float | None = None
    ) -> None:
        super().__init__(num_identities)
        self.smoothing, self.cosine_scale = smoothing, cosine_scale
        self.linear = nn.Linear(embed_dim, num_identities, bias=False)
        nn.init.normal_(self.linear.weight, std=0.001)  # the authors' code

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.check_labels(labels)
        logits = self.logits(embeddings)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing) if len(labels) else logits.sum()

    def logits(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            rows, weight = embeddings.float(), self.linear.weight.float()
            if self.cosine_scale is None:
                return F.linear(rows, weight)
            return self.cosine_scale * F.linear(F.normalize(rows, dim=1), F.normalize(weight, dim=1))
