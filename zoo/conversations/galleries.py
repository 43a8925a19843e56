"""In-context galleries: a query, one other image of its identity, and look-alikes to tell it from."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from zoo.conversations.draws import random_keys
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.mining import Candidates, mine
from zoo.conversations.rule import GalleryRule
from zoo.conversations.similarity import quantiles, similarity_of_pairs
from zoo.data.index import IdentityIndex
from zoo.distributed import from_all_ranks, rank, world_size


class Galleries(NamedTuple):
    """C galleries of one split and rule, sorted by query. W = most images in one.

    Args:
        query: (C,) int64 rows of the index.
        gallery: (C, W) int64 rows, -1 beyond the end of a smaller gallery.
        answer: (C,) int64, 1-based place of the positive, 0 where there is none.
        similarity: (C, W) float32 to the query, nan beyond the end.
        tau: the threshold that was in force.
        skipped: reason -> number of queries of the split.
    """

    query: np.ndarray
    gallery: np.ndarray
    answer: np.ndarray
    similarity: np.ndarray
    tau: float
    skipped: dict[str, int]


def make_galleries(
    index: IdentityIndex,
    embeddings: ImageEmbeddings,
    rule: GalleryRule,
    split: str,
    known_quantiles: Mapping[float, float] | None = None,
    at_most: int | None = None,
    per_query: int = 1,
    progress: bool = False,
) -> Galleries:
    """The galleries of a split, mined by all processes and the same on each of them.

    Args:
        index: the images.
        embeddings: their vectors.
        rule: what a gallery is.
        split: train, val or test.
        known_quantiles: share -> similarity, `rule.tau_quantile` among them; None to compute it where needed.
        at_most: most galleries, spread evenly over the identities; None for all.
        per_query: galleries of each query.
        progress: show a bar, on rank 0.
    """
    tau = rule.tau
    if tau is None:
        assert rule.tau_quantile is not None
        shares = [rule.tau_quantile]
        known = known_quantiles or dict(zip(shares, quantiles(index, embeddings, split, shares), strict=True))
        tau = known[rule.tau_quantile]
    shard, bar = (rank(), world_size()), progress and rank() == 0
    own = mine(index, embeddings, rule, split, tau, per_query, shard, progress=bar)
    return arrange(index, embeddings, Candidates.join(from_all_ranks(own)), rule, tau, at_most)


def arrange(
    index: IdentityIndex,
    embeddings: ImageEmbeddings,
    candidates: Candidates,
    rule: GalleryRule,
    tau: float,
    at_most: int | None = None,
) -> Galleries:
    """Galleries from the candidates of all ranks.

    Of more than `at_most`, those are taken that spread evenly over the identities. `no_match` of them, rounded, lose
    their positive. The places of the others' positives are balanced: among galleries of one size no place has two
    more than another.

    Args:
        index: the images.
        embeddings: their vectors.
        candidates: of all ranks, joined.
        rule: what a gallery is.
        tau: the threshold in force.
        at_most: most galleries; None for all.
    """
    chosen = candidates.select(_spread(index, candidates, rule.seed, at_most))
    answer = _answers(chosen, rule)
    gallery = np.full((len(chosen.query), rule.sizes[1]), -1)
    for place, (size, right) in enumerate(zip(chosen.size.tolist(), answer.tolist(), strict=True)):
        rows = chosen.distractors[place].tolist()
        gallery[place, :size] = (
            [*rows[: right - 1], chosen.positive[place], *rows[right - 1 : size - 1]] if right else rows[:size]
        )
    similarity = _similarities(embeddings, chosen.query, gallery)
    return Galleries(chosen.query, gallery, answer, similarity, tau, chosen.skipped)


def _answers(candidates: Candidates, rule: GalleryRule) -> np.ndarray:
    """(C,) 1-based place of each gallery's positive, 0 where it is left out."""
    numbers = torch.from_numpy(candidates.query), torch.from_numpy(candidates.repeat)
    order = np.argsort(random_keys(rule.seed, "order", *numbers).numpy(), kind="stable")
    matching = order[round(rule.no_match * len(order)) :]
    answer = np.zeros(len(order), dtype=np.int64)
    for size in np.unique(candidates.size):
        of_size = matching[candidates.size[matching] == size]
        answer[of_size] = np.arange(len(of_size)) % size + 1
    return answer


def _similarities(embeddings: ImageEmbeddings, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(C,) and (C, W) rows -> (C, W) float32 similarity of each image to its query, nan where there is none."""
    similarity = np.full(gallery.shape, np.nan, dtype=np.float32)
    at, column = np.nonzero(gallery >= 0)
    for part in np.array_split(np.arange(len(at)), -(-len(at) * embeddings.vectors.shape[1] // 2**20) or 1):
        pairs = embeddings.of(query[at[part]]), embeddings.of(gallery[at[part], column[part]])
        similarity[at[part], column[part]] = similarity_of_pairs(*pairs).cpu().numpy()
    return similarity


def _spread(index: IdentityIndex, candidates: Candidates, seed: int, at_most: int | None) -> np.ndarray:
    """Places of at most so many candidates, rising: a first one of each identity, then a second one, ..."""
    total = len(candidates.query)
    if at_most is None or at_most >= total:
        return np.arange(total)
    identities = index.identities[candidates.query]
    keys = random_keys(seed, "spread", torch.from_numpy(candidates.query), torch.from_numpy(candidates.repeat)).numpy()
    order = np.lexsort((keys, candidates.repeat, identities))
    starts = np.flatnonzero(np.diff(identities[order], prepend=-1))
    turn = np.empty(total, dtype=np.int64)
    turn[order] = np.arange(total) - np.repeat(starts, np.diff(starts, append=total))
    return np.sort(np.lexsort((keys, turn))[:at_most])
