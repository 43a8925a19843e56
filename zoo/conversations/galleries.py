"""In-context galleries: a query, one other image of its identity, and look-alikes to tell it from."""

from typing import NamedTuple

import numpy as np
import torch

from zoo.conversations.draws import random_keys
from zoo.conversations.embedding import Embedded
from zoo.conversations.mining import Candidates, mine, similarity_of
from zoo.conversations.rule import GalleryRule, quantiles
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


def arrange(
    index: IdentityIndex,
    embedded: Embedded,
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
        embedded: what the encoder makes of them.
        candidates: of all ranks, joined.
        rule: what a gallery is.
        tau: the threshold in force.
        at_most: most galleries; None for all.
    """
    chosen = candidates.select(_spread(index, candidates, rule.seed, at_most))
    total, width = len(chosen.query), rule.sizes[1]
    numbers = torch.from_numpy(chosen.query), torch.from_numpy(chosen.repeat)
    order = np.argsort(random_keys(rule.seed, "order", *numbers).numpy(), kind="stable")
    matching = order[round(rule.no_match * total) :]
    answer = np.zeros(total, dtype=np.int64)
    for size in np.unique(chosen.size):
        of_size = matching[chosen.size[matching] == size]
        answer[of_size] = np.arange(len(of_size)) % size + 1
    gallery = np.full((total, width), -1)
    for place, (size, right) in enumerate(zip(chosen.size.tolist(), answer.tolist(), strict=True)):
        rows = chosen.distractors[place].tolist()
        gallery[place, :size] = (
            [*rows[: right - 1], chosen.positive[place], *rows[right - 1 : size - 1]] if right else rows[:size]
        )
    similarity = np.full((total, width), np.nan, dtype=np.float32)
    at, column = np.nonzero(gallery >= 0)
    for part in np.array_split(np.arange(len(at)), -(-len(at) * embedded.vectors.shape[1] // 2**20) or 1):
        pairs = embedded.of(chosen.query[at[part]]), embedded.of(gallery[at[part], column[part]])
        similarity[at[part], column[part]] = similarity_of(*pairs).cpu().numpy()
    return Galleries(chosen.query, gallery, answer, similarity, tau, chosen.skipped)


def galleries(
    index: IdentityIndex,
    embedded: Embedded,
    rule: GalleryRule,
    split: str,
    tau: float | None = None,
    at_most: int | None = None,
    per_query: int = 1,
    progress: bool = False,
) -> Galleries:
    """The galleries of a split, the same on every rank, mined by all of them where torch.distributed runs.

    Args:
        index: the images.
        embedded: what the encoder makes of them.
        rule: what a gallery is.
        split: train, val or test.
        tau: the value of `rule.tau_quantile`, where it is known; None to find it.
        at_most: most galleries, spread evenly over the identities; None for all.
        per_query: galleries of each query.
        progress: show a bar, on rank 0.
    """
    if rule.tau_quantile is not None and tau is None:
        tau = quantiles(index, embedded, split, [rule.tau_quantile])[0]
    threshold = rule.tau if rule.tau is not None else tau
    assert threshold is not None
    bar = progress and rank() == 0
    own = mine(index, embedded, rule, split, threshold, per_query, rank(), world_size(), progress=bar)
    return arrange(index, embedded, Candidates.join(from_all_ranks(own)), rule, threshold, at_most)


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
