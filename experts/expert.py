"""The expert trainer: an encoder learns identities by classification and by comparison."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

import zoo
from experts.evaluation import Evaluation, starting_encoder
from experts.heads import ArcFaceHead, IdentityHead
from experts.losses import BatchHardTriplet, MetricLoss
from zoo.distributed import gather_with_gradient


class Expert(Evaluation):
    """Trains an encoder with instance classification and a metric loss (IIR-VLM, sec. 3.2).

    The two are joined as in "Bag of Tricks" (Luo et al., 2019): the metric loss sees the features before the
    BNNeck and all ranks' rows, the classifier those after it.

    Args:
        backbone: name of a timm architecture, `arch.tag` or hub id; null for mobilenetv3_small_050.
        pretrained: start from published weights.
        size: input height and width in pixels, or one number for both; null takes the backbone's own.
        pool: pooling that timm knows for this backbone; null takes its own.
        neck: bnneck, or null to classify and embed the pooled features as they are.
        init_from: name or folder of a card to go on from; it brings its own architecture, so it excludes
            backbone, pretrained, size and pool.
        head: the classifier, called with (number of identities, width of an embedding).
        metric_loss: makes a loss over the pairs of a global batch; null for none.
        head_weight: weight of the classifier's loss.
        metric_weight: weight of the metric loss.
        optim: optimiser and schedule.
        freeze: what does not train, by name, such as `encoder.trunk.blocks.0`; `*` matches anything.
    """

    training_only = ("head.",)
    classes: Tensor

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: bool = False,
        size: int | tuple[int, int] | None = None,
        pool: str | None = None,
        neck: Literal["bnneck"] | None = "bnneck",
        init_from: str | None = None,
        head: Callable[[int, int], IdentityHead] = ArcFaceHead,
        metric_loss: Callable[[], MetricLoss] | None = BatchHardTriplet,
        head_weight: float = 1.0,
        metric_weight: float = 1.0,
        optim: zoo.Optim = zoo.Optim(),  # noqa: B008  (frozen)
        freeze: list[str] | None = None,
    ) -> None:
        super().__init__(starting_encoder(init_from, backbone, pretrained, size, pool, neck), optim, freeze)
        self.save_plain_hyperparameters()
        # A plain function: copies of the module, as weight averaging makes them, share it; the command line's own
        # factories cannot be copied.
        self.make_head = lambda identities, width: head(identities, width)
        self.head: IdentityHead | None = None
        self.metric_loss = metric_loss() if metric_loss else None
        self.head_weight, self.metric_weight = head_weight, metric_weight
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64), persistent=False)

    def configure_model(self) -> None:
        """Make the head for the data's identities; evaluation does without."""
        if self.head is None and self.trainer.state.fn == "fit":
            identities = self.trainer.datamodule.train_identities  # type: ignore[attr-defined]
            self.classes = torch.from_numpy(identities).to(self.device)
            with self.seeded():
                self.head = self.make_head(len(identities), self.encoder.embed_dim)
            self.apply_freezing()

    def training_step(self, batch: zoo.IdentityBatch, batch_idx: int) -> Tensor:
        assert self.head is not None
        labels = torch.searchsorted(self.classes, batch.identities)
        features = self.encoder.features(batch.images)
        loss = self.head_weight * self.head(self.encoder.neck(features), labels)
        losses = {"train/head": loss}
        if self.metric_loss is not None:
            pairs = self.metric_loss(gather_with_gradient(features), gather_with_gradient(labels))
            losses["train/metric"] = self.metric_weight * pairs
            loss = loss + losses["train/metric"]
        self.log_dict(losses, batch_size=len(labels))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def lr_multipliers(self) -> dict[str, float]:
        return {"head": self.optim.head_lr, **super().lr_multipliers()}
