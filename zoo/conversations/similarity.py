"""How alike the images of two identities look: which pairs are above tau, and what tau a quantile comes to."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.conversations.embedding import ImageEmbeddings
from zoo.data.index import IdentityIndex
from zoo.distributed import rank, sum_over_ranks, world_size
from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, products, similarity_blocks

_BINS = 2**20  # of similarity, over [-1, 1]
_HISTC_ELEMENTS = 2**23  # torch.histc counts in float32, which is exact up to 2**24


def similarity_of_pairs(first: Tensor, second: Tensor) -> Tensor:
    """(M, D), (M, D) of length 1 -> (M,) float32, the cosine similarity of each pair, correctly rounded."""
    return (first.double() * second.double()).sum(1).float()


def above(queries: Tensor, images: Tensor, tau: float) -> Tensor:
    """Whether similarities are above tau, the same for any shape of the block.

    float32 products differ in their last bits with the shape of the block, so that pairs close to tau are multiplied
    again in float64.

    Args:
        queries: (B, D) of length 1.
        images: (N, D) of length 1.
        tau: cosine similarity.

    Returns:
        (B, N) bool.
    """
    # A float32 product of unit vectors is off by at most D / 2**24; the rest is for tau's own rounding.
    doubt = queries.shape[1] * 2.0**-24 + 2.0**-22
    difference = products(queries, images).sub_(tau)
    result = difference > 0
    pairs = (difference.abs_() <= doubt).nonzero()
    for query, image in (part.T for part in pairs.split(max(1, 2**20 // queries.shape[1]))):
        result[query, image] = similarity_of_pairs(queries[query], images[image]).double() > tau
    return result


def quantiles(index: IdentityIndex, embeddings: ImageEmbeddings, split: str, shares: Sequence[float]) -> list[float]:
    """The similarities that given shares of a split's pairs of two identities do not exceed.

    All pairs of a query and a gallery image with different identities are counted, block by block, in 2**20 bins over
    [-1, 1]; the answer is the upper edge of a bin, at most 2e-6 too high. Blocks are whole and the same for any
    number of processes, and counts are summed over them, so that the answer is the same, too.

    Args:
        index: the images.
        embeddings: their vectors.
        split: train, val or test.
        shares: from 0 to 1.

    Returns:
        one for each share; 1.0 where there is no such pair.
    """
    queries, images = (_labelled(index, embeddings, rows) for rows in embeddings.query_and_gallery_rows(index, split))
    counts = torch.zeros(_BINS, dtype=torch.int64, device=embeddings.vectors.device)
    for block in similarity_blocks(queries, images, BLOCK_BYTES, (rank(), world_size())):
        similarity = block.similarity.clamp_(-1, 1)
        same = images.identities[block.matches] == queries.identities[block.queries, None]
        # histc leaves out what is out of range; padding among the `matches` is of other identities, which stay.
        kept = similarity.gather(1, block.matches).masked_fill_(same, 2.0)
        for part in similarity.scatter_(1, block.matches, kept).flatten().split(_HISTC_ELEMENTS):
            counts += torch.histc(part, _BINS, -1, 1).long()
    upto = sum_over_ranks(counts).cumsum(0).cpu()
    if not upto[-1]:
        return [1.0] * len(shares)
    ranks = [math.ceil(share * int(upto[-1])) for share in shares]
    return [-1 + 2 * (int(torch.searchsorted(upto, max(1, number))) + 1) / _BINS for number in ranks]


def _labelled(index: IdentityIndex, embeddings: ImageEmbeddings, rows: np.ndarray) -> EmbeddingSet:
    vectors = embeddings.of(rows)
    identities, indices = (torch.from_numpy(column).to(vectors.device) for column in (index.identities[rows], rows))
    return EmbeddingSet(vectors, identities, indices)
