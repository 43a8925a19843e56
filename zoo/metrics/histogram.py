"""How similar same and different identities look: histograms of cosine similarity over all pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, similarity_blocks

_HISTC_ELEMENTS = 2**23  # torch.histc counts in float32, which is exact up to 2**24


@dataclass(frozen=True)
class SimilarityHistogram:
    """Counts of pairs by cosine similarity.

    Args:
        edges: `(bins + 1,)` float32 from -1 to 1. A bin holds its lower edge, the last one also 1.
        positive: `(bins,)` int64, pairs with one identity.
        negative: `(bins,)` int64, pairs with two identities.
    """

    edges: Tensor
    positive: Tensor
    negative: Tensor


def similarity_histogram(
    query: EmbeddingSet, gallery: EmbeddingSet, bins: int = 200, block_bytes: int = BLOCK_BYTES
) -> SimilarityHistogram:
    """Count positive and negative pairs of the retrieval by their similarity; junk is in neither.

    When the same items are query and gallery, every pair is counted twice, once from either side.

    Args:
        query: Q items.
        gallery: N items on the same device.
        bins: Number of equally wide bins over [-1, 1].
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; ask for at least 1.")
    positive = torch.zeros(bins, dtype=torch.int64, device=query.embeddings.device)
    negative = torch.zeros_like(positive)
    for block in similarity_blocks(query, gallery, block_bytes):
        similarity = block.similarity.clamp_(-1, 1)  # float32 products may end at 1.0000001
        positive += _count(similarity.gather(1, block.matches)[block.positive], bins)
        # histc skips what is out of range, and whatever shares the identity is no negative. `positive | junk`
        # would not do: what fills up `matches` is neither and yet may stand for a positive.
        same = gallery.identities[block.matches] == query.identities[block.queries, None]
        scores = similarity.gather(1, block.matches).masked_fill_(same, 2.0)
        negative += _count(similarity.scatter_(1, block.matches, scores), bins)
    edges = torch.linspace(-1, 1, bins + 1, device=positive.device)
    return SimilarityHistogram(edges, positive, negative)


def _count(similarity: Tensor, bins: int) -> Tensor:
    """Histogram over [-1, 1] as int64 `(bins,)`, exact for any number of values."""
    counts = torch.zeros(bins, dtype=torch.int64, device=similarity.device)
    for part in similarity.flatten().split(_HISTC_ELEMENTS):
        counts += torch.histc(part, bins, -1, 1).long()
    return counts
