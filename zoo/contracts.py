"""What a part must offer to be interchangeable: base classes and the batches that travel between parts."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.cardfile import Threshold
from zoo.data.transforms import Transform
from zoo.module import ZooModule


class IdentityBatch(NamedTuple):
    """B images of known identities, as the loaders of `zoo.data` yield them.

    Args:
        images: (B, 3, H, W), uint8 as the loaders yield it, float and normalised when it reaches a model.
        identities: (B,) int64, numbered over the whole index (all splits), so that no two splits share one.
        cameras: (B,) int64, -1 where the data has no cameras.
        indices: (B,) int64, the row of each image in the `IdentityIndex`.
        attributes: (B, A) int64 class of every attribute of the index, -1 where an image has none; A = 0 without any.
        skipped: "path: reason" of every image of this batch that could not be read and is therefore not in it.
    """

    images: Tensor
    identities: Tensor
    cameras: Tensor
    indices: Tensor
    attributes: Tensor
    skipped: tuple[str, ...] = ()


class IdentityEncoder(ZooModule):
    """An image goes in, a vector that tells identities apart comes out.

    Subclasses set `embed_dim`, `transform` (it travels with the weights) and implement `features` and `neck`.
    A classification head is no part of an encoder. `threshold`, where one was calibrated, says from which cosine
    similarity on two embeddings are called the same identity.
    """

    embed_dim: int
    transform: Transform
    threshold: Threshold | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Pooled features before the neck, the input of a triplet loss.

        Args:
            images: (B, 3, H, W), normalised by `transform`.

        Returns:
            (B, embed_dim)
        """

    @abstractmethod
    def neck(self, features: Tensor) -> Tensor:
        """(B, embed_dim) features -> (B, embed_dim) input of a classifier, and the vector used in inference."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, embed_dim) after the neck."""
        return self.neck(self.features(images))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images, normalised by `transform` -> (B, embed_dim) unit-norm float32, in eval mode."""
        was_training = self.training
        self.eval()
        try:
            return F.normalize(self(images).float(), dim=1)
        finally:
            self.train(was_training)

    def resize(self, size: int | tuple[int, int]) -> None:
        """Take images of another height and width, in pixels, from now on.

        Raises:
            TypeError: this encoder has one size only.
        """
        raise TypeError(f"{type(self).__name__} takes {self.transform.size} only. Set size to null.")

    def layer_rates(self, decay: float) -> dict[str, float]:
        """Parameter name -> learning-rate multiple, `decay` once for every layer further from the output.

        Raises:
            TypeError: this encoder has no notion of layers.
        """
        raise TypeError(f"{type(self).__name__} does not name its layers. Set layer_decay to null.")

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, M, embed_dim) patch tokens, for adapters that attend to them.

        Raises:
            TypeError: this encoder has a single vector only.
        """
        raise TypeError(
            f"{type(self).__name__} offers no patch tokens, only one vector an image. "
            "Use an adapter that takes a vector, or an encoder that implements tokens()."
        )


class FusionAdapter(ZooModule):
    """Turns what an expert says of an image into an update of the image's tokens.

    Built as `factory(token_dim, identity_dim)`; its MLP is inside. The injector sums the updates of several
    adapters, all computed from the same tokens, and adds them.
    """

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        identity: Tensor,
        mask: Tensor,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (T, D), the tokens of I images packed one after another.
            cu_seqlens: (I + 1,) int, the tokens of image i are tokens[cu_seqlens[i]:cu_seqlens[i + 1]].
            identity: (I, M, E), M identity vectors or patch tokens of each image.
            mask: (I, M) bool, which of them are valid; an image without a valid one gets a zero update.
            return_attention: also return how much each token listens.

        Returns:
            the gated update (T, D), and with `return_attention` the attention (T, M).
        """
