"""Ranks of the right answers in a gallery, exact and in bounded memory.

Everything here works on blocks of queries against the whole gallery, so the memory depends on a byte budget
and not on the number of queries; an N x N matrix is never built. The ranks are *counted*: how many wrong
items score at least as much as this right one? The items themselves are never put in order.

The protocol, shared by every function that takes a query and a gallery:

- the score of a pair is its cosine similarity, in float32;
- **junk** of a query is the query's own item, recognised *by its index* (a copy of its content under another
  index stays in), and every gallery item with the same identity AND the same camera (Zheng et al., "Scalable
  Person Re-identification: A Benchmark", ICCV 2015). Camera -1 is no camera and makes no junk. Junk is neither
  right nor wrong and shifts no rank;
- a **positive** is any other gallery item with the query's identity, a **negative** any with another one;
- **ties are broken against the query**: a negative within `TIE_WIDTH` of a positive ranks before it, so an
  encoder that maps everything to one point scores as badly as it should.

Scores of another kind, such as re-ranked ones, come as `SimilarityBlock`s of their own (`scored_blocks`) and
are ranked by the same functions.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_BYTES = 64 * 2**20
"""Default budget of one block of queries. Larger gains no speed at 16k gallery items."""

TIE_WIDTH = 1e-6
"""Similarities closer than this are equal: float32 products of identical unit vectors differ by about 1e-7,
depending on where in the matrix they stand."""

# What a block holds for each item that shares the query's identity: position, masks, scores, rank.
_BYTES_PER_MATCH = 64


def unit_norm(embeddings: Tensor) -> Tensor:
    """Scale every row to length 1, in float32. A row of zeros stays zero: its similarity with anything is 0.

    Args:
        embeddings: `(N, D)`, any floating type.
    """
    return F.normalize(embeddings.detach().float(), dim=1)


@dataclass(frozen=True)
class EmbeddingSet:
    """One side of a retrieval, the queries or the gallery.

    Args:
        embeddings: `(N, D)`; what ranks them takes rows of length 1 in float32, see `unit_norm`.
        identities: `(N,)` integers, held as int64.
        indices: `(N,)` integers, the number of each item in the data set. Queries and gallery are numbered
            together: a query and a gallery item with the same index are one and the same item.
        cameras: `(N,)` integers, -1 where an item has none; None stands for -1 everywhere.

    Raises:
        ValueError: The parts differ in length, or identities, indices or cameras are not integers.
    """

    embeddings: Tensor
    identities: Tensor
    indices: Tensor
    cameras: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2:
            raise ValueError(f"embeddings have shape {tuple(self.embeddings.shape)}; give (N, D).")
        for name in ("identities", "indices", "cameras"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != (len(self),):
                raise ValueError(
                    f"{name} have shape {tuple(values.shape)} beside {len(self)} embeddings; "
                    f"give one integer for each embedding, ({len(self)},)."
                )
            if values.is_floating_point() or values.is_complex():
                raise ValueError(f"{name} are {values.dtype}, which merges large ids; give torch.int64.")
            object.__setattr__(self, name, values.long().contiguous())

    def __len__(self) -> int:
        return len(self.embeddings)

    def select(self, keep: Tensor) -> "EmbeddingSet":
        """The items that `keep` names, a bool mask `(N,)` or positions `(M,)`."""
        cameras = None if self.cameras is None else self.cameras[keep]
        return EmbeddingSet(self.embeddings[keep], self.identities[keep], self.indices[keep], cameras)


@dataclass(frozen=True)
class SimilarityBlock:
    """Some queries against the whole gallery.

    `matches` lists, for each query, the gallery positions of all M items with its identity. Shorter lists are
    filled up, with copies of the last match or, where there is none, a stranger; neither counts as positive.

    Args:
        queries: `(B,)` positions of these queries among all queries.
        similarity: `(B, N)` float32, higher is better. A buffer: the next block overwrites it, and its user may, too.
        matches: `(B, M)` int64 gallery positions.
        positive: `(B, M)` bool, True where a match is a positive.
        junk: `(B, M)` bool, True where a match is junk.
    """

    queries: Tensor
    similarity: Tensor
    matches: Tensor
    positive: Tensor
    junk: Tensor


def similarity_blocks(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    block_bytes: int = BLOCK_BYTES,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[SimilarityBlock]:
    """Walk over the queries block by block; those with the most matches come first.

    Args:
        query: Q items.
        gallery: N items on the same device.
        block_bytes: Memory that one block may take. At the least one query is taken, 4 N bytes. Sorting on a
            GPU takes some five times as much.
        shard: `(i, n)` gives every n-th block from the i-th on. Blocks stay whole, since a product of fewer rows
            may differ in its last bits.

    Raises:
        ValueError: The embeddings are not of length 1 in float32.
    """
    for side in (query, gallery):
        check_unit_norm(side.embeddings)

    def cosine(queries: Tensor, out: Tensor) -> None:
        products(query.embeddings[queries], gallery.embeddings, out)

    yield from scored_blocks(query, gallery, cosine, block_bytes, shard)


def scored_blocks(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    score: Callable[[Tensor, Tensor], None],
    block_bytes: int = BLOCK_BYTES,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[SimilarityBlock]:
    """`similarity_blocks` of any score.

    Args:
        query: Q items.
        gallery: N items on the same device.
        score: Called as `score(queries, out)`; writes how well the queries at positions `(B,)` match every
            gallery item into `out`, `(B, N)` float32, higher is better.
        block_bytes: See `similarity_blocks`.
        shard: See `similarity_blocks`.
    """
    order = gallery.identities.argsort(stable=True)
    identities = gallery.identities[order]
    first = torch.searchsorted(identities, query.identities)
    count = torch.searchsorted(identities, query.identities, right=True) - first
    # Queries with as many matches stand together, so that little is filled up.
    turn = count.argsort(descending=True, stable=True)

    most = min(len(query), max(1, block_bytes // (4 * max(1, len(gallery)))))
    buffer = query.embeddings.new_empty(most, len(gallery))
    start = number = 0
    while start < len(query) and len(gallery) > 0:
        width = int(count[turn[start]])
        rows = max(1, block_bytes // (4 * len(gallery) + _BYTES_PER_MATCH * width))
        queries = turn[start : start + rows]
        start, number = start + rows, number + 1
        if (number - 1) % shard[1] != shard[0]:
            continue
        similarity = buffer[: len(queries)]
        score(queries, similarity)

        slot = torch.arange(width, device=count.device)
        last = (count[queries, None] - 1).clamp(min=0)
        matches = order[(first[queries, None] + slot.minimum(last)).clamp(max=len(gallery) - 1)]
        junk = _is_junk(query.select(queries), gallery, matches)
        positive = (slot < count[queries, None]) & ~junk
        yield SimilarityBlock(queries, similarity, matches, positive, junk)


def _is_junk(query: EmbeddingSet, gallery: EmbeddingSet, matches: Tensor) -> Tensor:
    """Which gallery items of `matches` `(B, M)` are junk of the B queries, as bool `(B, M)`."""
    junk = gallery.indices[matches] == query.indices[:, None]
    if query.cameras is not None and gallery.cameras is not None:
        cameras = query.cameras[:, None]
        junk |= (gallery.cameras[matches] == cameras) & (cameras >= 0)
    return junk & (gallery.identities[matches] == query.identities[:, None])


def positive_ranks(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    block_bytes: int = BLOCK_BYTES,
    blocks: Iterable[SimilarityBlock] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The 1-based rank of every positive of every query among the query's valid gallery.

    The rank of the j-th best positive is j + the number of negatives that score at least as much.
    Positives that tie with each other take consecutive ranks in any order, which no metric can see.

    Args:
        query: Q items.
        gallery: N items on the same device.
        block_bytes: See `similarity_blocks`.
        blocks: Scores of these queries against this gallery; None for cosine similarity.

    Yields:
        `(queries, ranks)`: positions `(B,)` of a block's queries, and `(B, P)` int64 ranks in rising order,
        0 after a query's last positive. A query without positives has only zeros; an empty gallery yields
        nothing.
    """
    for block in similarity_blocks(query, gallery, block_bytes) if blocks is None else blocks:
        scores = block.similarity.gather(1, block.matches)
        scores = scores.masked_fill_(~block.positive, -torch.inf).sort(dim=1, descending=True).values
        found = block.positive.sum(1, keepdim=True)
        scores = scores[:, : int(found.max())]
        # Only negatives are left to be counted once everything that shares the identity is out of the way.
        negatives = block.similarity.scatter_(1, block.matches, -torch.inf)
        place = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        below = torch.searchsorted(_sort_rows(negatives), scores - TIE_WIDTH)
        ranks = len(gallery) - below + place
        yield block.queries, ranks.masked_fill_(place > found, 0)


def nearest(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    k: int,
    block_bytes: int = BLOCK_BYTES,
    blocks: Iterable[SimilarityBlock] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most similar gallery items of every query that are not its junk, best first.

    Args:
        query: Q items.
        gallery: N items on the same device.
        k: How many to give.
        block_bytes: See `similarity_blocks`.
        blocks: Scores of these queries against this gallery; None for cosine similarity.

    Returns:
        Scores `(Q, k)` float32 and gallery positions `(Q, k)` int64. Where fewer than k items are left, the
        rest is -inf at position -1. Equal scores come in any order.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 neighbour.")
    scores = query.embeddings.new_full((len(query), k), -torch.inf)
    positions = query.indices.new_full((len(query), k), -1, dtype=torch.int64)
    for block in similarity_blocks(query, gallery, block_bytes) if blocks is None else blocks:
        kept = block.similarity.gather(1, block.matches).masked_fill_(block.junk, -torch.inf)
        best, places = block.similarity.scatter_(1, block.matches, kept).topk(min(k, len(gallery)), dim=1)
        scores[block.queries, : best.shape[1]] = best
        positions[block.queries, : best.shape[1]] = places.masked_fill_(best == -torch.inf, -1)
    return scores, positions


def check_unit_norm(embeddings: Tensor) -> None:
    """Refuse `(N, D)` embeddings that are not of length 1 (or 0) in float32.

    Raises:
        ValueError: They are not.
    """
    if embeddings.dtype != torch.float32:
        raise ValueError(f"Embeddings are {embeddings.dtype}, not float32; pass them through unit_norm.")
    length = embeddings.norm(dim=1)
    wrong = ~(((length - 1).abs() < 1e-3) | (length == 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Embedding {row} has length {float(length[row]):.4g}, not 1; pass embeddings through unit_norm."
        )


def _sort_rows(rows: Tensor) -> Tensor:
    """Sort each row of `(B, N)` upwards, in place on a CPU.

    There NumPy's vectorised sort takes an eighth of the time of PyTorch's, which carries positions along.
    Comparing the row with each positive instead, without any sort, is as fast on an idle machine and many
    times slower on a busy one, as its thousands of short parallel steps wait for each other.
    """
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    threads = min(torch.get_num_threads(), len(rows))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(partial(np.ndarray.sort, axis=1), np.array_split(rows.numpy(), threads)))
    return rows


def products(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """`rows @ columns.T`, `(B, D)` and `(N, D)` to `(B, N)`, in true float32 whatever the training's precision is.

    Args:
        rows: `(B, D)` float32.
        columns: `(N, D)` float32.
        out: `(B, N)` float32 to write to, or None.
    """
    if out is None:
        out = rows.new_empty(len(rows), len(columns))
    with _full_float32():
        # `out` also keeps autocast away.
        return torch.mm(rows.detach(), columns.detach().T, out=out)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply in true float32, also where training allowed TF32 or bfloat16 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
