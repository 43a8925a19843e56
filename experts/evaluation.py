"""Evaluation of any identity encoder as the root of a run: retrieval scores, and embeddings to keep."""

from typing import Any, Literal

import torch
from torch import Tensor

from zoo import IdentityBatch, IdentityEncoder, Optim, ZooModule, load
from zoo.backbones import TimmEncoder
from zoo.data.transforms import Transform
from zoo.metrics import RetrievalMetrics


class Evaluation(ZooModule):
    """Retrieval among identities that the encoder has not seen: validate, test and predict.

    Args:
        encoder: what is evaluated.
        optim: optimiser and schedule of a trainer that derives from this.
        freeze: what does not train, by name; `*` matches anything.
    """

    def __init__(self, encoder: IdentityEncoder, optim: Optim | None = None, freeze: list[str] | None = None) -> None:
        super().__init__(optim, freeze)
        self.encoder = encoder
        self.retrieval = RetrievalMetrics()

    @property
    def transform(self) -> Transform:
        """The encoder's transform; the data module reads it here."""
        return self.encoder.transform

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim)."""
        return self.encoder(images)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim), unit norm; see `IdentityEncoder.embed`."""
        return self.encoder.embed(images)

    def lr_multipliers(self) -> dict[str, float]:
        """Layer decay of the encoder, where it is asked for; trainers add their heads."""
        if self.optim.layer_decay is None:
            return {}
        layers = self.encoder.layer_rates(self.optim.layer_decay)
        return {f"encoder.{name}": rate for name, rate in layers.items()}

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def validation_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._rank(batch)

    def test_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._rank(batch)

    def predict_step(self, batch: IdentityBatch, batch_idx: int) -> dict[str, Any]:
        """Embeddings (B, embed_dim) with the rows of the index that they belong to."""
        embeddings = self.embed(batch.images) if len(batch.images) else torch.empty(0, self.encoder.embed_dim)
        return {"embeddings": embeddings, "indices": batch.indices}

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _rank(self, batch: IdentityBatch) -> None:
        if not len(batch.images):
            return
        splits = self.trainer.datamodule.index.splits[batch.indices.cpu().numpy()]  # type: ignore[attr-defined]
        roles = [torch.as_tensor(splits != other, device=self.device) for other in ("gallery", "query")]
        cameras = batch.cameras if bool((batch.cameras >= 0).all()) else None
        self.retrieval.update(self.embed(batch.images), batch.identities, batch.indices, cameras, *roles)

    def _report(self, split: str) -> None:
        """Log the scores; those before training, too, which Lightning's sanity check would keep to itself."""
        scores = self.retrieval.compute()
        self.retrieval.reset()
        named = {f"{split}/{name}": value for name, value in scores.items()}
        if self.trainer.sanity_checking:
            if self.logger is not None:
                self.logger.log_metrics({k: float(v) for k, v in named.items()}, step=0)
            return
        for name, value in named.items():
            self.log(name, value, prog_bar=name.endswith(("/rank1", "/mAP")))


def starting_encoder(
    init_from: str | None,
    backbone: str | None,
    pretrained: bool,
    size: int | tuple[int, int] | None,
    pool: str | None,
    neck: Literal["bnneck"] | None,
) -> IdentityEncoder:
    """The encoder of a card if one is named, else a new one on a timm backbone.

    Raises:
        ValueError: the card is not of an identity encoder, or an architecture is asked for beside it.
    """
    if init_from is None:
        return TimmEncoder(backbone or "mobilenetv3_small_050", pretrained, size, pool, neck)
    encoder = load(init_from)
    asked = {"backbone": backbone, "pretrained": pretrained or None, "size": size, "pool": pool}
    ignored = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
    if ignored:
        raise ValueError(
            f"init_from {init_from} brings its own architecture, {ignored} would be ignored. "
            "Set model.init_from to null, or leave these out."
        )
    if not isinstance(encoder, IdentityEncoder):
        raise ValueError(
            f"init_from: {init_from} is a {type(encoder).__name__}, not an encoder. Name an encoder's card."
        )
    return encoder
