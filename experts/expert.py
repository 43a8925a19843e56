"""Expert: trains an encoder to tell identities apart, by classification and by comparison."""

import logging
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric

import zoo
from experts.heads import ArcFaceHead, IdentityHead
from experts.losses import BatchHardTriplet, MetricLoss
from experts.start import Start, start_name, starting_encoder
from zoo.cards import fill, load_tensors
from zoo.cards.shelf import HEAD
from zoo.categories import find_category
from zoo.distributed import gather_with_gradient
from zoo.evaluation import Evaluation, Protocol
from zoo.scores import ScoreName, Scores

log = logging.getLogger(__name__)

_IDENTITIES = "identities_sha256"


class Expert(Evaluation):
    """Trains an encoder with instance classification and a metric loss (IIR-VLM, sec. 3.2).

    The two are joined as in "Bag of Tricks" (Luo et al., 2019): the metric loss sees the features before the
    BNNeck and all ranks' rows, the classifier those after it.

    Args:
        category: what kind of instances it distinguishes, an entry of `zoo.categories`; its card states it.
        backbone: name of a timm architecture, `arch.tag` or hub id; null for mobilenetv3_small_050.
        pretrained: start from published weights.
        size: input height and width in pixels, or one number for both; null takes that of the start, which is the
            backbone's own where training starts from scratch.
        pool: pooling that timm knows for this backbone; null takes its own.
        neck: bnneck, or null to classify and embed the pooled features as they are.
        options: what else the architecture takes, such as drop_path_rate.
        init_from: name or folder of a card to go on from, or one with the size to take it at; it brings its own
            architecture, so it excludes backbone, pretrained, pool and options.
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
        init_from: str | Start | None = None,
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
        start = Start.of(init_from)
        encoder = starting_encoder(start, backbone, pretrained, size, pool, neck, options)
        super().__init__(encoder, optim, freeze, protocol)
        self.save_plain_hyperparameters()
        self.category, self.start = category, start_name(start, pretrained)
        self.card = None if start is None else start.card
        # A plain function: copies of the module, as weight averaging makes them, share it; the command line's own
        # factories cannot be copied.
        self.make_head = lambda identities, width: head(identities, width)
        self.head: IdentityHead | None = None
        self.metric_loss = metric_loss() if metric_loss else None
        self.head_weight, self.metric_weight = head_weight, metric_weight
        self.named = torch.nn.ModuleList(MeanMetric() for _ in range(5))  # top-1 to top-5 of the closed set
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64), persistent=False)

    def configure_model(self) -> None:
        """Make the head for the data's identities. A test needs it only where the data has new images of them to name,
        and takes its weights from a card here, or from a checkpoint in `on_load_checkpoint`."""
        if self.head is None and self.trainer.state.fn == "fit":
            self._make_head()
        elif self.head is None and self._names_identities() and self.card is not None:
            self._take_head_of_card(self.card)

    def _names_identities(self) -> bool:
        return self.trainer.state.fn == "test" and len(self.index.rows("closed")) > 0

    @property
    def classifies(self) -> bool:
        return self.head is not None

    def _make_head(self) -> IdentityHead:
        identities = self.data.train_identities
        self.classes = torch.from_numpy(identities).to(self.device)
        with self.seeded():
            self.head = self.make_head(len(identities), self.encoder.embed_dim)
        self.apply_freezing()
        return self.head

    def _take_head_of_card(self, card: str) -> None:
        reason = "it comes without its head"
        if HEAD in [file.file for file in zoo.card(card).files]:
            tensors = load_tensors(card)
            reason = "its head was trained on other identities"
            if torch.equal(tensors.pop(_IDENTITIES, torch.zeros(0)), self._fingerprint()):
                try:
                    return fill(self._make_head(), tensors, f"the head of {card}")
                except zoo.CardError as error:
                    self.head, reason = None, f"its head is another one than model.head: {error}"
        log.warning("Closed-set identification with %s is left out: %s", card, reason)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.head is not None and len(self.index.rows("closed")):
            checkpoint[_IDENTITIES] = self._fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.head is None and self._names_identities():
            if torch.equal(checkpoint.get(_IDENTITIES, torch.zeros(0)), self._fingerprint()):
                self._make_head()
            else:
                log.warning("Closed-set identification is left out: the checkpoint was trained on other identities.")
        super().on_load_checkpoint(checkpoint)

    def head_to_keep(self) -> dict[str, Tensor] | None:
        return self.head_tensors() if len(self.index.rows("closed")) else None

    def head_tensors(self) -> dict[str, Tensor]:
        """The head's weights as a card keeps them, with a mark of the identities that its classes stand for."""
        assert self.head is not None
        return {**self.head.state_dict(), _IDENTITIES: self._fingerprint()}

    def _fingerprint(self) -> Tensor:
        """(32,) uint8, see `IdentityData.train_fingerprint`."""
        return torch.tensor(list(self.data.train_fingerprint), dtype=torch.uint8)

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
        # Of an identity none of whose training images is there, no class can be right.
        closed = self.rows_of(batch, "closed") & torch.isin(batch.identities, self.classes)
        if self.head is None or not closed.any():
            return
        truth = torch.searchsorted(self.classes, batch.identities[closed])
        ranked = self.head.logits(self.encoder(batch.images[closed])).float().topk(min(5, len(self.classes))).indices
        hits = (ranked == truth[:, None]).cumsum(1).clamp(max=1).float()
        for share, hit in zip(self._top_shares(), hits.T, strict=False):
            share.update(hit)

    def test_scores(self) -> Scores:
        """Also `closed_top1` to `closed_top5`; every rank takes part, also one that had no such image."""
        shares = self._top_shares() if self.head is not None and self._names_identities() else []
        named = {ScoreName(f"closed_top{k}"): float(share.compute()) for k, share in enumerate(shares, 1)}
        for share in shares:
            share.reset()
        return {**named, **super().test_scores()}

    def _top_shares(self) -> list[MeanMetric]:
        """Of top-1, top-2 and so on, as many as there are classes."""
        return [cast(MeanMetric, share) for share in self.named[: len(self.classes)]]

    def lr_multipliers(self) -> dict[str, float]:
        return {"head": self.optim.head_lr, **super().lr_multipliers()}
