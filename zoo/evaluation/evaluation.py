"""Evaluation of any identity encoder as the root of a run: retrieval, verification, thresholds, embeddings to keep."""

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo import IdentityBatch, IdentityEncoder, Optim, Threshold, ZooModule, load
from zoo.backbones import TimmEncoder
from zoo.data.dataset import classes_of
from zoo.data.index import TESTED, IdentityIndex
from zoo.metrics import (
    EmbeddingSet,
    RetrievalMetrics,
    VerificationMetrics,
    enrolled_identities,
    error_curve,
    expand_queries,
    open_set_scores,
    reranked_blocks,
    score_queries,
)
from zoo.transforms import Transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """How an encoder is tested.

    Args:
        ks: the k of rank-k (CMC); Stanford Online Products takes 1, 10, 100, 1000.
        map_ks: also mAP over the first k of the ranking, with min(k, positives) in the denominator; ILIAS takes 1000.
        group_by: an attribute of the index, or `category`; the queries of each of its values are also scored apart.
            Data without it is scored as a whole, and the run says so.
        far: false acceptance rate at which the threshold of "the same identity" is chosen, on validation identities.
        rerank: also score the ranking after k-reciprocal re-ranking.
        expand: also score queries that are averaged with this many of their neighbours; 0 for none.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    map_ks: tuple[int, ...] = ()
    group_by: str | None = None
    far: float = 0.01
    rerank: bool = False
    expand: int = 0

    def __post_init__(self) -> None:
        for name, wrong in (
            ("ks", not self.ks or min(self.ks) < 1),
            ("map_ks", min(self.map_ks, default=1) < 1),
            ("far", not 0 <= self.far <= 1),
            ("expand", self.expand < 0),
        ):
            if wrong:
                raise ValueError(
                    f"protocol.{name} cannot be {getattr(self, name)}. Every k is at least 1, far is a share from 0 "
                    "to 1, expand a number of neighbours."
                )


class Evaluation(ZooModule):
    """Retrieval among identities that the encoder has not seen: validate, test and predict.

    `validate` also calibrates the encoder's threshold. `test` adds the pairs to verify that the data brings along, and
    how far the threshold holds on the test identities. Of joined sources each is a gallery of its own: its scores are
    given apart, and their mean over the sources.

    Args:
        encoder: what is evaluated.
        optim: optimiser and schedule of a trainer that derives from this.
        freeze: what does not train, by name; `*` matches anything.
        protocol: how it is tested.
    """

    def __init__(
        self,
        encoder: IdentityEncoder,
        optim: Optim | None = None,
        freeze: list[str] | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(optim, freeze)
        self.encoder, self.protocol = encoder, protocol
        self.retrieval = RetrievalMetrics(protocol.ks, protocol.map_ks)
        self.verification = VerificationMetrics()

    @property
    def transform(self) -> Transform:
        """The encoder's transform; the data module reads it here."""
        return self.encoder.transform

    @property
    def index(self) -> IdentityIndex:
        """The data of this run."""
        return self.trainer.datamodule.index  # type: ignore[attr-defined]

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

    # ------------------------------------------------------------------ steps

    def validation_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._rank(batch)

    def test_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._rank(batch)

    def predict_step(self, batch: IdentityBatch, batch_idx: int) -> dict[str, Any]:
        """Embeddings (B, embed_dim) with the rows of the index that they belong to."""
        embeddings = self.embed(batch.images) if len(batch.images) else torch.empty(0, self.encoder.embed_dim)
        return {"embeddings": embeddings, "indices": batch.indices}

    def rows_of(self, batch: IdentityBatch, *splits: str) -> Tensor:
        """Which images of a batch are of these splits, (B,) bool."""
        named = np.isin(self.index.splits[batch.indices.cpu().numpy()], splits)
        return torch.from_numpy(named).to(self.device)

    def check_finite(self, value: Tensor, what: str, indices: Tensor) -> Tensor:
        """Pass on what is finite throughout.

        Args:
            value: a scalar, or (B, ...) with a row for each image.
            what: its name.
            indices: (B,) rows of the index that it comes from.

        Raises:
            ValueError: nan or infinity, with the paths of the images.
        """
        finite = torch.isfinite(value)
        if not finite.all():
            rows = indices if value.ndim == 0 else indices[~finite.flatten(1).all(1)]
            names = "\n  ".join(self.index.paths[rows.cpu().numpy()].tolist())
            raise ValueError(
                f"The {what} is nan or infinite, at step {self.global_step}, of these images:\n  {names}\n"
                "Look at them; else lower model.optim.lr, clip gradients (trainer.gradient_clip_val), or leave half "
                "precision (trainer.precision)."
            )
        return value

    def _rank(self, batch: IdentityBatch) -> None:
        """Take in a batch for retrieval and verification."""
        open_set = ~self.rows_of(batch, "closed")
        if not open_set.any():
            return
        indices = batch.indices[open_set]
        embeddings = self.check_finite(self.embed(batch.images[open_set]), "embedding", indices)
        columns = (
            embeddings,
            batch.identities[open_set],
            indices,
            batch.cameras[open_set],
            ~self.rows_of(batch, "gallery")[open_set],
            ~self.rows_of(batch, "query")[open_set],
            self._group_of[indices.cpu()].to(self.device),
        )
        self.retrieval.update(*columns)
        for number, metric in self._of_source.items():
            own = (self._source_of[indices.cpu()] == number).to(self.device)
            metric.update(*(column[own] for column in columns))
        if self.index.pairs is not None:
            self.verification.update(embeddings, indices)

    def on_fit_start(self) -> None:
        self.encoder.threshold = None  # that of the start says nothing of what is trained from it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.encoder.threshold = None  # nor does that of a card of the weights of a checkpoint

    def on_validation_epoch_start(self) -> None:
        self._name_groups("val")

    def on_test_epoch_start(self) -> None:
        self._name_groups(*TESTED)

    def _name_groups(self, *splits: str) -> None:
        """The groups that queries are scored in and the sources with a gallery each, and those of every row."""
        self._groups, self._group_of = self._named_classes(self.protocol.group_by)
        sources, self._source_of = self._named_classes("source" if "source" in self.index.attributes else None)
        there = self._source_of[self.index.rows(*splits)].unique().tolist()
        self._of_source: dict[int, RetrievalMetrics] = {}
        if len(there) > 1:
            protocol = self.protocol
            self._of_source = {n: RetrievalMetrics(protocol.ks, protocol.map_ks).to(self.device) for n in there}
            self._sources = sources

    def _named_classes(self, by: str | None) -> tuple[list[str], Tensor]:
        """`by=value` for every value of a column of the index, and each row's number of it, (N,), -1 for none."""
        columns = {"category": self.index.categories, **self.index.attributes}
        if by is not None and by not in columns and self.trainer.is_global_zero:
            _warn_once(
                f"protocol.group_by: this data has no {by!r}, its queries are scored as a whole. "
                f"It has: {', '.join(columns)}."
            )
        if by is None or by not in columns:
            return [], torch.full((len(self.index),), -1)
        names, codes = classes_of(columns[by])
        return [f"{by}={name}" for name in names], torch.from_numpy(codes)

    # ------------------------------------------------------------------ reports

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "validate":
            self._calibrate()
        self._report("val", self._retrieval_scores())

    def on_test_epoch_end(self) -> None:
        with self.retrieval.sync_context():
            query, gallery = self.retrieval.sides()
        scores = self._retrieval_scores()
        if self.index.pairs is not None:
            scores |= self._verification_scores()
        self._report("test", scores | self._threshold_scores(query, gallery) | self._refined_scores(query, gallery))

    def _retrieval_scores(self) -> dict[str, float]:
        """`mAP` over all queries, `clothes=changed/mAP` over those of a group, `source=msmt17/mAP` over a source's."""
        if not self._of_source:
            return self._with_groups(self.retrieval)
        each = {self._sources[number]: self._with_groups(metric) for number, metric in self._of_source.items()}
        scores = {f"{source}/{name}": value for source, own in each.items() for name, value in own.items()}
        for name in next(iter(each.values())):
            values = [own[name] for own in each.values() if name in own]
            if "/" not in name:
                scores[name] = sum(values) if name.startswith("queries") else float(np.mean(values))
        return scores

    def _with_groups(self, metric: RetrievalMetrics) -> dict[str, float]:
        scores = {}
        for key, value in metric.compute().items():
            name, _, group = key.partition("/")
            scores[f"{self._groups[int(group)]}/{name}" if group else name] = float(value)
        return scores

    def _verification_scores(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.verification.compute(self.index.pairs).items()}

    def _calibrate(self) -> None:
        """Choose the encoder's threshold on the pairs of the identities at hand."""
        with self.retrieval.sync_context():
            query, gallery = self.retrieval.sides()
        curve = error_curve(query, gallery)
        value = curve.threshold_at_far(self.protocol.far)
        far, frr = curve.rates(value)
        self.encoder.threshold = None
        if math.isnan(far) or math.isnan(frr):  # no pair of two identities, or none of one
            return
        self.encoder.threshold = Threshold(
            round(value, 4), round(far, 6), round(frr, 4), f"{self.index.root.resolve().name}, val"
        )

    def _threshold_scores(self, query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, float]:
        """How the calibrated threshold fares on these identities: on their pairs (far, frr), and as an open set with
        half of them enrolled (detection and identification rate, false alarms)."""
        if self.encoder.threshold is None:
            return {}
        value = self.encoder.threshold.value
        far, frr = error_curve(query, gallery).rates(value)
        enrolled = enrolled_identities(gallery.identities)
        rates = open_set_scores(query, gallery, enrolled).rates(value)
        named = {"far": far, "frr": frr, "dir": rates[0], "false_alarms": rates[1]}
        return {name: rate for name, rate in named.items() if not math.isnan(rate)}

    def _refined_scores(self, query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, float]:
        """The scores after re-ranking and after query expansion, where they are asked for."""
        refined = {}
        if self.protocol.rerank:
            blocks = reranked_blocks(query, gallery)
            refined["reranked"] = score_queries(query, gallery, self.protocol.ks, blocks=blocks)
        if self.protocol.expand:
            expanded = expand_queries(query, gallery, self.protocol.expand)
            refined["expanded"] = score_queries(expanded, gallery, self.protocol.ks)
        return {
            f"{how}_{name}": float(scores[name].nanmean())
            for how, scores in refined.items()
            for name in (f"rank{self.protocol.ks[0]}", "mAP")
        }

    def _report(self, split: str, scores: dict[str, float]) -> None:
        """Log the scores; those before training, too, which Lightning's sanity check would keep to itself."""
        for metric in (self.retrieval, self.verification, *self._of_source.values()):
            metric.reset()
        named = {f"{split}/{name}": value for name, value in scores.items()}
        if self.trainer.sanity_checking:
            if self.logger is not None:
                self.logger.log_metrics(named, step=0)
            return
        for name, value in named.items():
            self.log(name, value, prog_bar=name in (f"{split}/rank1", f"{split}/mAP"))


@lru_cache
def _warn_once(text: str) -> None:
    log.warning(text)


def starting_encoder(
    init_from: str | None,
    backbone: str | None,
    pretrained: bool,
    size: int | tuple[int, int] | None,
    pool: str | None,
    neck: Literal["bnneck"] | None,
    options: dict[str, Any] | None = None,
) -> IdentityEncoder:
    """The encoder of a card if one is named, else a new one on a timm backbone.

    Raises:
        ValueError: the card is not of an identity encoder, or an architecture is asked for beside it.
    """
    if init_from is None:
        return TimmEncoder(backbone or "mobilenetv3_small_050", pretrained, size, pool, neck, options)
    encoder = load(init_from)
    asked = {"backbone": backbone, "pretrained": pretrained or None, "pool": pool, "options": options}
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
    if size is not None and encoder.transform.size != ((size, size) if isinstance(size, int) else tuple(size)):
        log.info("%s takes images of %s x %s; here they are %s.", init_from, *encoder.transform.size, size)
        encoder.resize(size)
    return encoder
