"""Metrics of instance-level recognition.

- `RetrievalMetrics`: CMC, mAP, mINP, R-Precision and MAP@R of a query set against a gallery.
- `score_queries`: the same scores, one for each query.
- `nearest`: the best gallery items of every query, to be drawn or re-ranked.
- `similarity_histogram`: how positive and negative pairs are spread over cosine similarity.
- `positive_ranks`, `similarity_blocks`: what they are made of, in bounded memory.
"""

from zoo.metrics.histogram import SimilarityHistogram, similarity_histogram
from zoo.metrics.ranking import (
    BLOCK_BYTES,
    TIE_WIDTH,
    EmbeddingSet,
    SimilarityBlock,
    nearest,
    positive_ranks,
    similarity_blocks,
    unit_norm,
)
from zoo.metrics.retrieval import RetrievalMetrics, score_queries

__all__ = [
    "BLOCK_BYTES",
    "TIE_WIDTH",
    "EmbeddingSet",
    "RetrievalMetrics",
    "SimilarityBlock",
    "SimilarityHistogram",
    "nearest",
    "positive_ranks",
    "score_queries",
    "similarity_blocks",
    "similarity_histogram",
    "unit_norm",
]
