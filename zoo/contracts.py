"""What a part must offer to be interchangeable: base classes and the batches that travel between parts."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cards.cardfile import Threshold
from zoo.module import ZooModule
from zoo.transforms import Transform


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
    A classification head is no part of an encoder. `threshold`, where one was calibrated, is the cosine similarity from
    which two embeddings count as the same identity.
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


@dataclass(frozen=True)
class PaddedImages:
    """J of I packed images, side by side, each padded to the N tokens of the longest: softmax and products run over
    whole images without a loop.

    Args:
        rows: (R,) int64, which packed tokens are theirs.
        slots: (R,) int64, where in the J * N places each of them goes.
        present: (J, N) bool, False where an image is padded.
    """

    rows: Tensor
    slots: Tensor
    present: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, chosen: Tensor) -> "PaddedImages":
        """Those of the images that are `chosen` (I,) bool; each must have a token."""
        counts = cu_seqlens.diff()
        image = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        rows = chosen[image].nonzero().squeeze(1)
        counts, image = counts[chosen], image[rows]
        longest = int(counts.max()) if len(counts) else 0
        slots = (chosen.cumsum(0) - 1)[image] * longest + rows - cu_seqlens[image]
        return cls(rows, slots, torch.arange(longest, device=counts.device) < counts[:, None])

    def pad(self, packed: Tensor) -> Tensor:
        """(T, D) of all images -> (J, N, D), 0 where an image is padded."""
        padded = packed.new_zeros(self.present.numel(), packed.shape[1])
        return padded.index_copy(0, self.slots, packed[self.rows]).view(*self.present.shape, -1)

    def pack(self, padded: Tensor, total: int) -> Tensor:
        """(J, N, D) -> (total, D) of all images, exactly 0 for the others."""
        packed = padded.new_zeros(total, padded.shape[2])
        return packed.index_copy(0, self.rows, padded.flatten(0, 1)[self.slots])


class FusionVariant(NamedTuple):
    """A setting of an adapter that ablations compare with others.

    Args:
        arguments: in which it differs from other adapters and from the defaults.
        patch_tokens: whether it takes the expert's patch tokens instead of one vector.
    """

    arguments: dict[str, Any] = {}
    patch_tokens: bool = False


class FusionAdapter(ZooModule):
    """Turns an expert's identity vectors of an image into an update of the image's tokens.

    Built as `factory(token_dim, identity_dim)`; its MLP is inside. The injector sums the updates of several
    adapters, all computed from the same tokens, and adds them.

    Subclasses implement `update_images`, the formula for images that have an identity vector. Packing, images
    that have none, types and the gate are done here. An identity may be several vectors: several persons in an image,
    or the patch tokens of one.

    Args:
        token_dim: D, width of an image token.
        identity_dim: E, width of an identity vector.
        gate: multiply the update by a scalar that is learned from 0, so that an untrained adapter changes nothing.
    """

    #: name -> setting that ablations compare; none leaves an adapter to them with its defaults, by its class's name
    variants: ClassVar[dict[str, FusionVariant]] = {}
    gate: nn.Parameter | None

    def __init__(self, token_dim: int, identity_dim: int, gate: bool = True) -> None:
        super().__init__()
        self.token_dim, self.identity_dim = token_dim, identity_dim
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

    @abstractmethod
    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The update before the gate, for J images of at least one token and one valid identity each.

        Args:
            tokens: (J, N, D), 0 where an image is padded; the update there is dropped.
            present: (J, N) bool, False where an image is padded.
            identity: (J, M, E), 0 where invalid.
            mask: (J, M) bool, which identities are valid, at least one of each image.
            return_attention: whether the attention is wanted.

        Returns:
            the update (J, N, D), and the attention (J, N, M), 0 for invalid identities, or None.
        """

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
            identity: (I, M, E), M identity vectors or patch tokens of each image; anything, also nan, where invalid.
            mask: (I, M) bool, which of them are valid; an image without a valid one gets a zero update.
            return_attention: also return how much each token attends to each vector.

        Returns:
            the gated update (T, D) in the type of the tokens, and with `return_attention` the attention (T, M) in
            float32, both exactly 0 in images without a valid identity.

        Raises:
            ValueError: shapes that do not fit together or the adapter.
        """
        self._check(tokens, cu_seqlens, identity, mask)
        chosen = mask.any(dim=1) & (cu_seqlens.diff() > 0)
        images = PaddedImages.of(cu_seqlens, chosen)
        attention = tokens.new_zeros(len(tokens), mask.shape[1], dtype=torch.float32)
        if not len(images.rows):
            update = self._nothing(tokens)
        else:
            valid = mask[chosen]
            vectors = identity[chosen].masked_fill(~valid[..., None], 0)
            padded, attended = self.update_images(images.pad(tokens), images.present, vectors, valid, return_attention)
            update = images.pack(padded if self.gate is None else self.gate * padded, len(tokens)).to(tokens.dtype)
            attention = attention if attended is None else images.pack(attended.float(), len(tokens))
        return (update, attention) if return_attention else update

    def _nothing(self, tokens: Tensor) -> Tensor:
        """A zero update that still hangs on every parameter: all ranks of a run must send gradients for all of them.

        Sums over no element are 0 also where a parameter is not finite.
        """
        zeros = [parameter.flatten()[:0].sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.zeros_like(tokens) + sum(zeros, tokens.new_zeros(())).to(tokens.dtype)

    def _check(self, tokens: Tensor, cu_seqlens: Tensor, identity: Tensor, mask: Tensor) -> None:
        images = len(cu_seqlens) - 1
        fits = (
            tokens.ndim == 2
            and identity.ndim == 3
            and tokens.shape[1] == self.token_dim
            and identity.shape[2] == self.identity_dim
            and mask.shape == identity.shape[:2]
            and mask.dtype == torch.bool
            and len(mask) == images
        )
        if not fits:
            raise ValueError(
                f"tokens {tuple(tokens.shape)}, {images} images in cu_seqlens, identity {tuple(identity.shape)} and "
                f"mask {tuple(mask.shape)} {mask.dtype} do not fit this {type(self).__name__}: it takes tokens "
                f"(T, {self.token_dim}), identity (I, M, {self.identity_dim}) and mask (I, M) bool."
            )
        if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != len(tokens):
            raise ValueError(
                f"cu_seqlens runs from {int(cu_seqlens[0])} to {int(cu_seqlens[-1])}, but there are {len(tokens)} "
                "tokens. Start it at 0 and end it at their number."
            )
