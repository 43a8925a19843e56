"""Metrics and protocols of instance-level recognition.

- `RetrievalMetrics`: CMC, mAP, mINP, R-Precision, MAP@R and mAP@k of a query set against a gallery, over all queries
  and over groups of them.
- `score_queries`: the same scores, one for each query.
- `VerificationMetrics`: ROC-AUC, EER, k-fold accuracy and TAR@FAR of given pairs; `roc_auc`, `equal_error_rate`,
  `tar_at_far`, `best_threshold`, `k_fold_accuracy` of plain scores.
- `error_curve`, `ErrorCurve`: false acceptance and rejection over thresholds, to calibrate one.
- `ChoiceAccuracy`: multiple choice, overall, in groups, and how many answers could not be read.
- `open_set_scores`: identification where the identities of some queries are not enrolled.
- `reranked_blocks`, `expand_queries`, `expand_database`: better rankings from the same embeddings.
- `exact_search`, `VectorIndex`: nearest neighbours in galleries beyond memory.
- `nearest`: the best gallery items of every query, to be drawn.
- `similarity_histogram`: how positive and negative pairs are spread over cosine similarity.
- `positive_ranks`, `similarity_blocks`, `scored_blocks`: what they are made of, in bounded memory.
"""

from zoo.metrics.choice import UNPARSED, ChoiceAccuracy
from zoo.metrics.error_rates import ErrorCurve, OpenSetScores, enrolled_identities, error_curve, open_set_scores
from zoo.metrics.histogram import SimilarityHistogram, similarity_histogram
from zoo.metrics.ranking import (
    BLOCK_BYTES,
    TIE_WIDTH,
    EmbeddingSet,
    SimilarityBlock,
    nearest,
    positive_ranks,
    scored_blocks,
    similarity_blocks,
    unit_norm,
)
from zoo.metrics.reranking import expand_database, expand_queries, reranked_blocks
from zoo.metrics.retrieval import RetrievalMetrics, RetrievalScores, score_queries
from zoo.metrics.search import VectorIndex, exact_search
from zoo.metrics.verification import (
    VerificationMetrics,
    best_threshold,
    equal_error_rate,
    k_fold_accuracy,
    roc_auc,
    tar_at_far,
)

__all__ = [
    "BLOCK_BYTES",
    "TIE_WIDTH",
    "UNPARSED",
    "ChoiceAccuracy",
    "EmbeddingSet",
    "ErrorCurve",
    "OpenSetScores",
    "RetrievalMetrics",
    "RetrievalScores",
    "SimilarityBlock",
    "SimilarityHistogram",
    "VectorIndex",
    "VerificationMetrics",
    "best_threshold",
    "enrolled_identities",
    "equal_error_rate",
    "error_curve",
    "exact_search",
    "expand_database",
    "expand_queries",
    "k_fold_accuracy",
    "nearest",
    "open_set_scores",
    "positive_ranks",
    "reranked_blocks",
    "roc_auc",
    "score_queries",
    "scored_blocks",
    "similarity_blocks",
    "similarity_histogram",
    "tar_at_far",
    "unit_norm",
]
