"""RetrievalScorer: scores of the embeddings of an index's images, whatever has embedded them."""

import logging
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from zoo.cards.cardfile import Threshold
from zoo.data.dataset import classes_of
from zoo.data.index import IdentityIndex
from zoo.distributed import rank
from zoo.evaluation.protocol import Protocol
from zoo.evaluation.thresholds import calibrate_threshold, threshold_scores
from zoo.metrics import (
    EmbeddingSet,
    RetrievalMetrics,
    VerificationMetrics,
    expand_queries,
    reranked_blocks,
    score_queries,
)
from zoo.scores import ScoreName

log = logging.getLogger(__name__)


class RetrievalScorer(nn.Module):
    """Scores by retrieval, by pairs and by thresholds what a model embeds of an index's images.

    A root calls `start` before every evaluation, `update` with the embeddings of every batch, and then
    `retrieval_scores` or `test_scores`, on all processes. Of joined sources each is a gallery of its own: its scores
    are given apart, as those of the source `source=NAME`, and the totals are their means.

    Args:
        protocol: what is measured.

    Attributes:
        index: what is evaluated; set by `start`.
        threshold: the threshold that is tested, of the weights that embed; set by `start` and by `calibrate`.
    """

    index: IdentityIndex

    def __init__(self, protocol: Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.retrieval = RetrievalMetrics(protocol.ks, protocol.map_ks)
        self.verification = VerificationMetrics()
        self.threshold: Threshold | None = None
        self._of_source: dict[int, RetrievalMetrics] = {}

    # ------------------------------------------------------------------ taking in

    def start(self, index: IdentityIndex, *splits: str, threshold: Threshold | None = None) -> None:
        """Begin an evaluation.

        Args:
            index: what is evaluated.
            splits: the splits whose images will come.
            threshold: of the weights that embed, where one was calibrated.
        """
        self.reset()
        self.index, self.threshold = index, threshold
        self._groups, self._group_of = self._named_classes(self.protocol.group_by)
        self._sources, self._source_of = self._named_classes("source" if "source" in index.attributes else None)
        present = self._source_of[index.rows(*splits)].unique().tolist()
        protocol, device = self.protocol, self.retrieval.device
        several = present if len(present) > 1 else []
        self._of_source = {n: RetrievalMetrics(protocol.ks, protocol.map_ks).to(device) for n in several}

    def update(self, embeddings: Tensor, indices: Tensor) -> None:
        """Take in a batch.

        Args:
            embeddings: (B, D), of any length.
            indices: (B,) rows of the index.
        """
        rows = indices.cpu()
        index, splits = self.index, self.index.splits[rows.numpy()]
        columns = [
            torch.from_numpy(index.identities[rows.numpy()]),
            indices,
            torch.from_numpy(index.cameras[rows.numpy()]),
            torch.from_numpy(splits != "gallery"),  # what is no part of a gallery only is a query
            torch.from_numpy(splits != "query"),
            self._group_of[rows],
        ]
        columns = [embeddings, *(column.to(embeddings.device) for column in columns)]
        self.retrieval.update(*columns)
        for number, metric in self._of_source.items():
            own = (self._source_of[rows] == number).to(embeddings.device)
            metric.update(*(column[own] for column in columns))
        if index.pairs is not None:
            self.verification.update(embeddings, indices)

    def reset(self) -> None:
        """Forget all embeddings."""
        for metric in (self.retrieval, self.verification, *self._of_source.values()):
            metric.reset()

    def _named_classes(self, by: str | None) -> tuple[list[str], Tensor]:
        """`by=value` for every value of a column of the index, and each row's number of it, (N,), -1 for none."""
        columns = {"category": self.index.categories, **self.index.attributes}
        if by is not None and by not in columns and rank() == 0:
            _warn_once(
                f"protocol.group_by: this data has no {by!r}, its queries are scored as a whole. "
                f"It has: {', '.join(columns)}."
            )
        if by is None or by not in columns:
            return [], torch.full((len(self.index),), -1)
        names, codes = classes_of(columns[by])
        return [f"{by}={name}" for name in names], torch.from_numpy(codes)

    # ------------------------------------------------------------------ scores

    def sides(self) -> tuple[EmbeddingSet, EmbeddingSet]:
        """Queries and gallery of all processes, which must all call this."""
        with self.retrieval.sync_context():
            return self.retrieval.sides()

    def calibrate(self) -> Threshold | None:
        """Choose the threshold on the pairs of the identities at hand; None where they do not suffice."""
        query, gallery = self.sides()
        data = f"{self.index.root.resolve().name}, val"
        self.threshold = calibrate_threshold(query, gallery, self.protocol.far, data)
        return self.threshold

    def retrieval_scores(self) -> dict[ScoreName, float]:
        """Retrieval over all queries, over those of each group, and over those of each source."""
        if not self._of_source:
            return self._grouped(self.retrieval)
        scores: dict[ScoreName, float] = {}
        for number, metric in self._of_source.items():
            scores |= self._grouped(metric, self._sources[number])
        for name in dict.fromkeys(key.name for key in scores if not key.group):
            each = [value for key, value in scores.items() if key.name == name and not key.group]
            scores[ScoreName(name)] = sum(each) if name.startswith("queries") else float(np.mean(each))
        return scores

    def _grouped(self, metric: RetrievalMetrics, source: str = "") -> dict[ScoreName, float]:
        total, groups = metric.compute()
        scores = {ScoreName(name, source=source): float(value) for name, value in total.items()}
        for number, own in groups.items():
            group = self._groups[number]
            scores |= {ScoreName(name, group, source=source): float(value) for name, value in own.items()}
        return scores

    def test_scores(self) -> dict[ScoreName, float]:
        """Retrieval, the pairs that the data brings along, the threshold, and refined rankings as in the protocol."""
        query, gallery = self.sides()
        scores = self.retrieval_scores()
        more: dict[str, float] = {}
        if self.index.pairs is not None:
            more |= {name: float(value) for name, value in self.verification.compute(self.index.pairs).items()}
        if self.threshold is not None:
            more |= threshold_scores(self.threshold.value, query, gallery)
        more |= self._refined_scores(query, gallery)
        return scores | {ScoreName(name): value for name, value in more.items()}

    def _refined_scores(self, query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, float]:
        """The scores after re-ranking and after query expansion, where the protocol has them."""
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


@lru_cache
def _warn_once(text: str) -> None:
    log.warning(text)
