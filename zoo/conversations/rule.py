"""The rule that galleries are filled by, and what its quantile of similarity comes to in a split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zoo.conversations.embedding import Embedded
from zoo.data.index import IdentityIndex
from zoo.distributed import rank, sum_over_ranks, world_size
from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, similarity_blocks

_BINS = 2**20  # of similarity, over [-1, 1]
_HISTC_ELEMENTS = 2**23  # torch.histc counts in float32, which is exact up to 2**24


@dataclass(frozen=True)
class GalleryRule:
    """How a gallery is filled. Exactly one of `tau` and `tau_quantile` is given.

    Args:
        k: images in a gallery; or (fewest, most), drawn for each query. One image only where `no_match` is above 0.
        tau: similarity to the query that a distractor has to exceed.
        tau_quantile: tau as the share of the split's pairs of two identities that are at most that similar, since
            raw values do not carry over from one encoder to another; 0.9 leaves the most similar tenth.
        cross_camera: positive and distractors are of another camera than the query, where its camera is known: a
            background that it shares with some of them would tell which.
        no_match: share of the galleries that hold distractors only. Where it is above 0, every query has to have
            one look-alike more, so that galleries with and without a match are made of the same queries.
        seed: of all choices.

    Raises:
        ValueError: a value out of range, or not exactly one of tau and tau_quantile.
    """

    k: int | tuple[int, int] = 5
    tau: float | None = 0.5
    tau_quantile: float | None = None
    cross_camera: bool = True
    no_match: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        fewest, most = self.sizes
        if not 1 <= fewest <= most:
            raise ValueError(f"k is {self.k!r}. Give a number from 1 on, or (fewest, most) with fewest <= most.")
        if fewest == 1 and not self.no_match:
            raise ValueError(
                f"k is {self.k!r}: a gallery of one image that is always the right one asks nothing. Give k from 2 on, "
                "or let no_match be above 0."
            )
        if (self.tau is None) == (self.tau_quantile is None):
            raise ValueError(
                f"tau is {self.tau} and tau_quantile {self.tau_quantile}. Give one of them, and None for the other."
            )
        if self.tau is not None and not -1 <= self.tau <= 1:
            raise ValueError(f"tau is {self.tau}, which no cosine similarity is. Give a number from -1 to 1.")
        if self.tau_quantile is not None and not 0 <= self.tau_quantile < 1:
            raise ValueError(f"tau_quantile is {self.tau_quantile}. Give a share from 0 to below 1, such as 0.9.")
        if not 0 <= self.no_match <= 1:
            raise ValueError(f"no_match is {self.no_match}. Give a share from 0 to 1.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}. Give a whole number from 0 to 2**63 - 1.")

    @property
    def sizes(self) -> tuple[int, int]:
        """Fewest and most images in a gallery."""
        return (self.k, self.k) if isinstance(self.k, int) else self.k

    @property
    def spare(self) -> int:
        """Look-alikes that a query needs beyond K - 1."""
        return int(self.no_match > 0)

    @property
    def level(self) -> str:
        """How hard it is, for reports: "tau=0.5" or "quantile=0.9"."""
        return f"tau={self.tau:g}" if self.tau is not None else f"quantile={self.tau_quantile:g}"


def quantiles(index: IdentityIndex, embedded: Embedded, split: str, shares: Sequence[float]) -> list[float]:
    """How similar two identities of a split look: the similarity that this share of their pairs does not exceed.

    All pairs of a query and a gallery image with different identities are counted, block by block, in 2**20 bins over
    [-1, 1]; the answer is the upper edge of a bin, at most 2e-6 too high. Blocks are whole and the same for any
    number of processes, and counts are summed over them, so that the answer is the same, too.

    Args:
        index: the images.
        embedded: what the encoder makes of them.
        split: train, val or test.
        shares: from 0 to 1.

    Returns:
        one for each share; 1.0 where there is no such pair.
    """
    queries, images = (_labelled(index, embedded, rows) for rows in embedded.sides(index, split))
    counts = torch.zeros(_BINS, dtype=torch.int64, device=embedded.vectors.device)
    for block in similarity_blocks(queries, images, BLOCK_BYTES, (rank(), world_size())):
        similarity = block.similarity.clamp_(-1, 1)
        same = images.identities[block.matches] == queries.identities[block.queries, None]
        # histc skips what is out of range; `matches` are filled up with strangers, which stay.
        kept = similarity.gather(1, block.matches).masked_fill_(same, 2.0)
        for part in similarity.scatter_(1, block.matches, kept).flatten().split(_HISTC_ELEMENTS):
            counts += torch.histc(part, _BINS, -1, 1).long()
    upto = sum_over_ranks(counts).cumsum(0).cpu()
    if not upto[-1]:
        return [1.0] * len(shares)
    ranks = [math.ceil(share * int(upto[-1])) for share in shares]
    return [-1 + 2 * (int(torch.searchsorted(upto, max(1, number))) + 1) / _BINS for number in ranks]


def _labelled(index: IdentityIndex, embedded: Embedded, rows: np.ndarray) -> EmbeddingSet:
    vectors = embedded.of(rows)
    identities, indices = (torch.from_numpy(column).to(vectors.device) for column in (index.identities[rows], rows))
    return EmbeddingSet(vectors, identities, indices)
