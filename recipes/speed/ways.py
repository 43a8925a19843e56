"""The ways to retrieval scores that are compared, and the features that all of them get."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Size:
    """How much is retrieved.

    Args:
        queries: number of queries.
        gallery: number of gallery items.
        strangers: how many of the gallery are of no query's identity.
        identities: number of identities among the queries.
        width: width of an embedding.
    """

    queries: int
    gallery: int
    strangers: int
    identities: int
    width: int = 512


SIZES = {
    "small": Size(200, 1_000, 200, 50, 128),
    "market": Size(3_368, 15_913, 2_798, 750),
    "msmt17": Size(11_659, 82_161, 0, 3_060),
}


class Features(NamedTuple):
    """Unit-norm float32 features (Q, D) and (N, D) with their identities (Q,) and (N,) int64."""

    query: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor

    @classmethod
    def draw(cls, size: Size, seed: int = 0) -> "Features":
        """Noise around a centre for each identity, so that right and wrong answers mix."""
        generator = torch.Generator().manual_seed(seed)
        query_ids = torch.arange(size.queries) % size.identities
        known = torch.arange(size.gallery - size.strangers) % size.identities
        gallery_ids = torch.cat([known, size.identities + torch.arange(size.strangers)])
        centres = torch.randn(size.identities + size.strangers, size.width, generator=generator)
        sides = []
        for ids in (query_ids, gallery_ids):
            noise = torch.randn(len(ids), size.width, generator=generator)
            sides.append(F.normalize(centres[ids] + 2.2 * noise, dim=1))
        return cls(sides[0], sides[1], query_ids, gallery_ids)

    def save(self, path: Path) -> None:
        np.savez(path, **{name: tensor.numpy() for name, tensor in self._asdict().items()})

    @classmethod
    def load(cls, path: Path) -> "Features":
        with np.load(path) as arrays:
            return cls(*(torch.from_numpy(arrays[name]) for name in cls._fields))


# ---------------------------------------------------------------------- the ways

Scores = dict[str, float]  # rank1 and mAP, or nothing
Work = Callable[[], Scores]


def _matmul(features: Features) -> Work:
    def work() -> Scores:
        features.query @ features.gallery.T
        return {}

    return work


def _zoo(features: Features) -> Work:
    from zoo.metrics import RetrievalMetrics

    queries, total = len(features.query), len(features.query) + len(features.gallery)
    is_query = torch.arange(total) < queries

    def work() -> Scores:
        metrics = RetrievalMetrics()
        sides = ((features.query, features.query_ids, 0), (features.gallery, features.gallery_ids, queries))
        for embeddings, identities, first in sides:
            for rows in torch.arange(len(embeddings)).split(256):
                roles = is_query[first + rows]
                metrics.update(embeddings[rows], identities[rows], first + rows, None, roles, ~roles)
        scores = metrics.compute().total
        return {name: float(scores[name]) for name in ("rank1", "mAP")}

    return work


def _reranking(features: Features) -> Work:
    from zoo.metrics import EmbeddingSet, score_queries
    from zoo.metrics.reranking import reranked_blocks

    queries, gallery = len(features.query), len(features.gallery)
    sides = (
        EmbeddingSet(features.query, features.query_ids, torch.arange(queries)),
        EmbeddingSet(features.gallery, features.gallery_ids, queries + torch.arange(gallery)),
    )

    def work() -> Scores:
        scores = score_queries(*sides, blocks=reranked_blocks(*sides))
        return {name: float(scores[name].nanmean()) for name in ("rank1", "mAP")}

    return work


def _open_metric_learning(features: Features) -> Work:
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    everything = len(features.gallery)

    def work() -> Scores:
        _, found, truth = batched_knn_qg(
            features.query,
            features.gallery,
            top_n=everything,
            labels_query=features.query_ids,
            labels_gallery=features.gallery_ids,
        )
        scores = calc_retrieval_metrics(
            found, truth, cmc_top_k=(1, 5, 10), precision_top_k=(), map_top_k=(everything,), verbose=False
        )
        return {"rank1": float(scores["cmc"][1]), "mAP": float(scores["map"][everything])}

    return work


def _pml_faiss(features: Features) -> Work:
    import faiss
    from pytorch_metric_learning.utils.inference import FaissKNN

    return _accuracy_calculator(features, FaissKNN(index_init_fn=faiss.IndexFlatIP))


def _pml_torch(features: Features) -> Work:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    return _accuracy_calculator(features, CustomKNN(CosineSimilarity(), batch_size=256))


def _accuracy_calculator(features: Features, search: Any) -> Work:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "mean_average_precision", "mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=names, k=None, device=torch.device("cpu"), knn_func=search)

    def work() -> Scores:
        scores = calculator.get_accuracy(features.query, features.query_ids, features.gallery, features.gallery_ids)
        return {"rank1": float(scores["precision_at_1"]), "mAP": float(scores["mean_average_precision"])}

    return work


def _torchmetrics(features: Features) -> Work:
    from torchmetrics import MetricCollection
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRPrecision

    def work() -> Scores:
        metrics = MetricCollection(
            {
                "mAP": RetrievalMAP(empty_target_action="skip"),
                "rank1": RetrievalHitRate(empty_target_action="skip", top_k=1),
                "r_precision": RetrievalRPrecision(empty_target_action="skip"),
            }
        )
        for rows in torch.arange(len(features.query)).split(256):
            scores = (1 + features.query[rows] @ features.gallery.T) / 2
            targets = features.query_ids[rows, None] == features.gallery_ids
            metrics.update(scores, targets, indexes=rows[:, None].expand_as(scores))
        return {name: float(value) for name, value in metrics.compute().items() if name in ("rank1", "mAP")}

    return work


@dataclass(frozen=True)
class Way:
    """One way from features to scores.

    Args:
        title: what the table calls it.
        prepare: imports what it needs and returns the work to be timed.
        setting: how it is used.
        install: what to install where an import fails.
        same_scores: it is meant to give the scores of the zoo.
        sizes: the sizes it is run at.
    """

    title: str
    prepare: Callable[[Features], Work]
    setting: str
    install: str = "pip install instance-zoo"
    same_scores: bool = True
    sizes: tuple[str, ...] = tuple(SIZES)


_BENCH = "pip install 'instance-zoo[bench]'"
WAYS = {
    "zoo": Way("zoo RetrievalMetrics", _zoo, "CMC, mAP, mINP, R-Precision, MAP@R"),
    "matmul": Way("the product alone", _matmul, "query @ gallery.T", same_scores=False),
    "oml": Way(
        "open-metric-learning",
        _open_metric_learning,
        "batched_knn_qg with top_n = gallery, CMC@1,5,10 and map@gallery",
        _BENCH,
    ),
    "pml_faiss": Way(
        "pytorch-metric-learning, FAISS",
        _pml_faiss,
        "AccuracyCalculator(k=None): P@1, mAP, MAP@R, R-Precision; IndexFlatIP",
        _BENCH,
    ),
    "pml_torch": Way(
        "pytorch-metric-learning, torch",
        _pml_torch,
        "the same with CustomKNN(CosineSimilarity(), batch_size=256)",
    ),
    "torchmetrics": Way(
        "torchmetrics",
        _torchmetrics,
        "RetrievalMAP, HitRate@1, RPrecision on (1 + cos) / 2, as it takes scores up to 0 for misses",
    ),
    "reranking": Way(
        "zoo, re-ranked",
        _reranking,
        "k-reciprocal, k1 = 20, k2 = 6, lambda = 0.3; other scores by design",
        same_scores=False,
        sizes=("small", "market"),
    ),
}
