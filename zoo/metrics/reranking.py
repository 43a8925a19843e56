"""Better rankings from the same embeddings: k-reciprocal re-ranking, and queries averaged with their neighbours.

Neither looks at identities or cameras: junk is left out afterwards, when the scores are ranked.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from zoo.metrics.ranking import (
    BLOCK_BYTES,
    EmbeddingSet,
    SimilarityBlock,
    check_unit_norm,
    nearest,
    products,
    scored_blocks,
    unit_norm,
)

# Candidates beyond the k nearest, so that among items at one distance the first few by position are taken.
_SPARE = 8
# Rows of the sparse products that are worked on at once.
_ROWS = 4096


def reranked_blocks(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[SimilarityBlock]:
    """k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding",
    CVPR 2017). Sparse: memory grows with the number of items times their neighbours, no N x N matrix is built.

    The scores are the negated final distance, -(lambda d + (1 - lambda) Jaccard distance), from -1 to 0. Give the
    blocks to whatever ranks: `score_queries(query, gallery, blocks=reranked_blocks(query, gallery))`.

    Queries and gallery are one set of neighbours, in which an item that is on both sides stands once. An item comes
    first among its own neighbours, whatever ties with it; others at one distance follow in the order of their
    positions, queries before gallery. Of more than a few that tie at the end of a list, any may be taken.

    Args:
        query: Q items.
        gallery: N items on the same device.
        k1: Neighbours that must be mutual.
        k2: Items over which an encoding is averaged, itself included; 1 averages nothing.
        lambda_: Weight of the original distance, from 0 to 1.
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.

    Raises:
        ValueError: An option is out of range, or the embeddings are not of length 1 in float32.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_ <= 1:
        raise ValueError(f"k1 is {k1}, k2 {k2}, lambda_ {lambda_}; give k1 and k2 of at least 1 and lambda_ in [0, 1].")
    for side in (query, gallery):
        check_unit_norm(side.embeddings)
    if not len(query) or not len(gallery):
        return
    embeddings, of_query, of_gallery = _one_set(query, gallery)
    encoding, farthest = _averaged_encoding(embeddings, k1, k2, block_bytes)
    encoded_query, encoded_gallery = encoding[of_query.numpy()], encoding[of_gallery.numpy()].tocsc()
    scale = farthest[of_query.to(farthest.device)]

    def score(queries: Tensor, out: Tensor) -> None:
        products(query.embeddings[queries], gallery.embeddings, out)
        distance = out.mul_(-2).add_(2).clamp_(min=0).div_(scale[queries, None])
        distance.mul_(-lambda_).sub_(1 - lambda_)
        for row, number in enumerate(queries.tolist()):
            positions, similarity = _jaccard(encoded_query[[number]], encoded_gallery)
            out[row, positions.to(out.device)] += (1 - lambda_) * similarity.to(out)

    yield from scored_blocks(query, gallery, score, block_bytes)


def _one_set(query: EmbeddingSet, gallery: EmbeddingSet) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings `(M, D)` of all items, each index once, and where `(Q,)` queries and `(N,)` gallery stand in them."""
    indices = torch.cat([query.indices, gallery.indices]).cpu()
    _, label = indices.unique(return_inverse=True)
    first = torch.full((int(label.max()) + 1,), len(indices)).scatter_reduce_(
        0, label, torch.arange(len(indices)), "amin"
    )
    kept, place = first.sort()
    position = torch.empty_like(place).scatter_(0, place, torch.arange(len(place)))[label]
    embeddings = torch.cat([query.embeddings, gallery.embeddings]).detach()[kept.to(query.embeddings.device)]
    return embeddings, position[: len(query)], position[len(query) :]


def _averaged_encoding(embeddings: Tensor, k1: int, k2: int, block_bytes: int) -> tuple[csr_array, Tensor]:
    """The paper's V, `(N, N)` sparse, averaged over the k2 nearest of each item; and `(N,)` largest distances."""
    neighbours, farthest = _neighbours(embeddings, max(k1 + 1, k2), block_bytes)
    encoding = _encoding(embeddings, _expanded(neighbours, k1), farthest, block_bytes)
    if k2 > 1:
        encoding = _nearest_of_each(neighbours, k2) @ encoding / min(k2, len(embeddings))
    return encoding, farthest


def _neighbours(embeddings: Tensor, k: int, block_bytes: int) -> tuple[np.ndarray, Tensor]:
    """The k nearest of each item, `(N, min(k, N))`, itself first; and its largest distance to any, `(N,)`.

    The distance is the squared Euclidean one of unit vectors, 2 - 2 cos.
    """
    count, width = embeddings.shape
    wanted = min(k + _SPARE, count)
    lowest = embeddings.new_empty(count)
    parts = []
    for rows in torch.arange(count, device=embeddings.device).split(
        max(1, block_bytes // (4 * count + 8 * wanted * width))
    ):
        similarity = products(embeddings[rows], embeddings)
        lowest[rows] = similarity.amin(1)
        similarity[torch.arange(len(rows)), rows] = torch.inf
        found = similarity.topk(wanted, dim=1).indices.sort(dim=1).values
        # Again, and pair by pair: equal vectors score the same to the last bit, wherever in the matrix they stand.
        scores = _similarity_of_pairs(embeddings, rows[:, None], found).masked_fill(found == rows[:, None], torch.inf)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        parts.append(found.gather(1, order).cpu().numpy().astype(np.int32))
    return np.concatenate(parts), (2 - 2 * lowest).clamp(min=1e-12)


def _similarity_of_pairs(embeddings: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (embeddings[first] * embeddings[second]).sum(-1)


def _nearest_of_each(neighbours: np.ndarray, k: int) -> csr_array:
    """Ones at the first k neighbours of each item, `(N, N)` sparse."""
    near = neighbours[:, :k]
    ends = np.arange(len(near) + 1) * near.shape[1]
    ones = np.ones(near.size, dtype=np.float32)
    return csr_array((ones, near.ravel(), ends), shape=(len(near), len(near)))


def _mutual(neighbours: np.ndarray, k: int) -> csr_array:
    """The paper's R(p, k): ones where two items are among the first k + 1 of each other, themselves included."""
    near = _nearest_of_each(neighbours, k + 1)
    return near.multiply(near.T).tocsr()


def _expanded(neighbours: np.ndarray, k1: int) -> csr_array:
    """The paper's R*(p, k1): R(p, k1) and every R(q, k1 / 2) of a q in it that lies in it by more than 2/3.

    Paper: by 2/3 or more; reference code: by more than 2/3, with k1 / 2 rounded to even. This follows the code.
    """
    wide, narrow = _mutual(neighbours, k1), _mutual(neighbours, round(k1 / 2))
    size = np.diff(narrow.indptr)
    parts = []
    for start in range(0, len(neighbours), _ROWS):
        own = wide[start : start + _ROWS]
        shared = (own @ narrow).multiply(own).tocsr()  # narrow is symmetric
        shared.data = (3 * shared.data > 2 * size[shared.indices]).astype(np.float32)
        shared.eliminate_zeros()
        parts.append((own + shared @ narrow).tocsr())
    return vstack(parts, format="csr")


def _encoding(embeddings: Tensor, members: csr_array, farthest: Tensor, block_bytes: int) -> csr_array:
    """The paper's V: exp(-d(p, g)) for the members g of R*(p, k1), summing to 1 for each p.

    d is the squared Euclidean distance over the largest one of p. Paper: the distance as it is, and weights that do not
    sum to 1; the reference code divides both, and this follows the code.
    """
    pairs = members.tocoo()
    first, second = (torch.from_numpy(side.astype(np.int64)).to(embeddings.device) for side in pairs.coords)
    similarity = embeddings.new_empty(len(first))
    for part in torch.arange(len(first), device=first.device).split(max(1, block_bytes // (12 * embeddings.shape[1]))):
        similarity[part] = _similarity_of_pairs(embeddings, first[part], second[part])
    distance = (2 - 2 * similarity).clamp(min=0).masked_fill(first == second, 0) / farthest[first]
    weights = csr_array(((-distance).exp().cpu().numpy(), pairs.coords), shape=members.shape)
    weights.data /= np.repeat(weights.sum(1), np.diff(weights.indptr))
    return weights


def _jaccard(query: csr_array, gallery: csc_array) -> tuple[Tensor, Tensor]:
    """Jaccard similarity of one encoding `(1, M)` with those of the gallery `(N, M)` that overlap.

    Returns:
        Positions `(S,)` in the gallery, and similarities `(S,)`; it is 0 with all others.
    """
    starts = gallery.indptr[query.indices]
    counts = gallery.indptr[query.indices + 1] - starts
    ends = counts.cumsum()
    slots = np.arange(counts.sum()) + np.repeat(starts - ends + counts, counts)
    smaller = np.minimum(gallery.data[slots], np.repeat(query.data, counts))
    overlap = np.bincount(gallery.indices[slots], smaller, minlength=gallery.shape[0])
    positions = overlap.nonzero()[0]
    shared = overlap[positions]
    # Each encoding sums to 1, so the larger ones of both sum to 2 less the smaller ones.
    return torch.from_numpy(positions), torch.from_numpy(shared / (2 - shared))


def expand_queries(query: EmbeddingSet, gallery: EmbeddingSet, k: int = 10, alpha: float = 3.0) -> EmbeddingSet:
    """Alpha query expansion: each query becomes the mean of itself and its k nearest, weighted by similarity ** alpha.

    Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019. Only the query's own item
    is kept out of its neighbours; negative similarities weigh nothing.

    Args:
        query: Q items.
        gallery: N items on the same device.
        k: Neighbours of each query; 0 changes nothing.
        alpha: 0 weighs all neighbours alike.

    Returns:
        The queries with new embeddings of length 1.
    """
    if k < 0 or alpha < 0:
        raise ValueError(f"k is {k} and alpha {alpha}; give numbers that are not negative.")
    if k == 0 or not len(gallery):
        return query
    # Under its index for an identity an item is junk to itself alone.
    nameless = [EmbeddingSet(side.embeddings, side.indices, side.indices) for side in (query, gallery)]
    scores, positions = nearest(nameless[0], nameless[1], k)
    expanded = query.embeddings.clone()
    for score, position in zip(scores.unbind(1), positions.unbind(1), strict=True):
        weight = score.clamp(min=0).pow(alpha).masked_fill(position < 0, 0)
        expanded += weight[:, None] * gallery.embeddings[position.clamp(min=0)]
    return EmbeddingSet(unit_norm(expanded), query.identities, query.indices, query.cameras)


def expand_database(gallery: EmbeddingSet, k: int = 10, alpha: float = 3.0) -> EmbeddingSet:
    """`expand_queries` of the gallery within itself."""
    return expand_queries(gallery, gallery, k, alpha)
