"""The expert trainer: an encoder learns identities by classification and by comparison."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import MeanMetric

import zoo
from experts.evaluation import Evaluation, Protocol, starting_encoder
from experts.heads import ArcFaceHead, IdentityHead
from experts.losses import BatchHardTriplet, MetricLoss
from zoo.cards import fill, load_tensors
from zoo.categories import find_category
from zoo.distributed import gather_with_gradient
from zoo.shelf import HEAD

log = logging.getLogger(__name__)


class Expert(Evaluation):
    """Trains an encoder with instance classification and a metric loss (IIR-VLM, sec. 3.2).

    The two are joined as in "Bag of Tricks" (Luo et al., 2019): the metric loss sees the features before the
    BNNeck and all ranks' rows, the classifier those after it.

    Args:
        category: what kind of instances it tells apart, an entry of `zoo.categories`; its card will say so.
        backbone: name of a timm architecture, `arch.tag` or hub id; null for mobilenetv3_small_050.
        pretrained: start from published weights.
        size: input height and width in pixels, or one number for both; null takes the backbone's own.
        pool: pooling that timm knows for this backbone; null takes its own.
        neck: bnneck, or null to classify and embed the pooled features as they are.
        options: what else the architecture takes, such as drop_path_rate.
        init_from: name or folder of a card to go on from; it brings its own architecture, so it excludes
            backbone, pretrained, pool and options.
        head: the classifier, called with (number of identities, width of an embedding).
        metric_loss: makes a loss over the pairs of a global batch; null for none.
        head_weight: weight of the classifier's loss.
        metric_weight: weight of the metric loss.
        optim: optimiser and schedule.
        freeze: what does not train, by name, such as `encoder.trunk.blocks.0`; `*` matches anything.
        protocol: how the encoder is tested.
    """

    training_only = ("head.", "metric_loss.")
    classes: Tensor

    def __init__(
        self,
        category: str | None = None,
        backbone: str | None = None,
        pretrained: bool = False,
        size: int | tuple[int, int] | None = None,
        pool: str | None = None,
        neck: Literal["bnneck"] | None = "bnneck",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        head: Callable[[int, int], IdentityHead] = ArcFaceHead,
        metric_loss: Callable[[], MetricLoss] | None = BatchHardTriplet,
        head_weight: float = 1.0,
        metric_weight: float = 1.0,
        optim: zoo.Optim = zoo.Optim(),  # noqa: B008  (frozen)
        freeze: list[str] | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  (frozen)
    ) -> None:
        if category is not None:
            find_category(category)
        encoder = starting_encoder(init_from, backbone, pretrained, size, pool, neck, options)
        super().__init__(encoder, optim, freeze, protocol)
        self.save_plain_hyperparameters()
        self.category, self.init_from = category, init_from
        # A plain function: copies of the module, as weight averaging makes them, share it; the command line's own
        # factories cannot be copied.
        self.make_head = lambda identities, width: head(identities, width)
        self.head: IdentityHead | None = None
        self.metric_loss = metric_loss() if metric_loss else None
        self.head_weight, self.metric_weight = head_weight, metric_weight
        self.named = torch.nn.ModuleList(MeanMetric() for _ in range(5))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64), persistent=False)

    def configure_model(self) -> None:
        """Make the head for the data's identities. A test does with it only where the data asks to name new images of
        them, and where its weights are known."""
        testing = self.trainer.state.fn == "test" and len(self.index.rows("closed")) > 0
        if self.head is not None or not (self.trainer.state.fn == "fit" or testing):
            return
        weights = None
        if testing and not self.trainer.ckpt_path:
            weights = self._known_head()
            if weights is None:
                return
        identities = self.trainer.datamodule.train_identities  # type: ignore[attr-defined]
        self.classes = torch.from_numpy(identities).to(self.device)
        with self.seeded():
            self.head = self.make_head(len(identities), self.encoder.embed_dim)
        if weights is not None:
            fill(self.head, weights, f"the head of {self.init_from}")
        self.apply_freezing()

    def _known_head(self) -> dict[str, Tensor] | None:
        """The head's weights beside those of the card that the encoder came from."""
        if self.init_from is None or HEAD not in [file.file for file in zoo.card(self.init_from).files]:
            log.info("Closed-set identification is left out: it needs the trained head, of a checkpoint or a card.")
            return None
        return load_tensors(self.init_from)

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
        self.check_finite(loss, "loss", batch.indices)
        self.log_dict(losses, batch_size=len(labels))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def test_step(self, batch: zoo.IdentityBatch, batch_idx: int) -> None:
        """Retrieval; and new images of training identities are named by the head's classes (PetFace, sec. 4.2)."""
        super().test_step(batch, batch_idx)
        closed = self.rows_of(batch, "closed")
        if self.head is None or not closed.any():
            return
        truth = torch.searchsorted(self.classes, batch.identities[closed])
        ranked = self.head.logits(self.encoder(batch.images[closed])).float().topk(min(5, len(self.classes))).indices
        hits = (ranked == truth[:, None]).cumsum(1).clamp(max=1).float()
        for k, (share, hit) in enumerate(zip(self.named, hits.T, strict=False), 1):
            share.update(hit)  # type: ignore[operator]
            self.log(f"test/closed_top{k}", share)  # type: ignore[arg-type]

    def lr_multipliers(self) -> dict[str, float]:
        return {"head": self.optim.head_lr, **super().lr_multipliers()}
