"""In-context galleries: a query, one other image of its identity, and look-alikes to tell it from.

The look-alikes (distractors) are images of other identities whose similarity to the query, as a general encoder sees
it, is above tau: the higher tau, the harder the gallery (IIR-VLM, "Sim(f(g), f(q)) > tau").

Whatever is drawn is a function of (seed, what is drawn, row numbers) and of nothing else: neither the number of
processes nor the size of a block can change it. float32 products differ in their last bits with the shape of a block,
so a pair that close to tau is multiplied again in float64. An N x N matrix is never built.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from zoo.data.draws import LAST_KEY, random_keys
from zoo.data.embedded import Embedded, from_all_ranks
from zoo.data.index import IdentityIndex
from zoo.distributed import rank, sum_over_ranks, world_size
from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, check_unit_norm, products, similarity_blocks

NO_POSITIVE = "no positive"
TOO_FEW = "too few above tau"
REASONS = (NO_POSITIVE, TOO_FEW)
"""Why a query makes no gallery: no other image of its identity (from another camera, by the rule), or fewer other
identities above tau (from another camera, too) than a gallery needs."""

_BINS = 2**20  # of similarity, over [-1, 1]
_HISTC_ELEMENTS = 2**23  # torch.histc counts in float32, which is exact up to 2**24
_PAIR_BYTES = 32  # of a block, for each pair of a query and an image: similarity, mask, running count, positions
_KEY_BYTES = 48  # and of a query and an identity


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


# ---------------------------------------------------------------------- what tau means


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


# ---------------------------------------------------------------------- mining


class Candidates(NamedTuple):
    """What galleries can be made from, of some queries of a split. M = most distractors that a gallery may need.

    Args:
        query: (C,) int64 rows of the index; a query comes once for each of its galleries.
        repeat: (C,) int64, the number of the gallery among those of its query.
        size: (C,) int64, K.
        positive: (C,) int64 rows.
        distractors: (C, M) int64 rows, each of another identity; those beyond what K needs are -1.
        skipped: reason -> number of queries.
    """

    query: np.ndarray
    repeat: np.ndarray
    size: np.ndarray
    positive: np.ndarray
    distractors: np.ndarray
    skipped: dict[str, int]

    @classmethod
    def join(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """Those of several parts, sorted by query and repetition."""
        columns = [np.concatenate(column) for column in zip(*(part[:5] for part in parts), strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        skipped = {reason: sum(part.skipped.get(reason, 0) for part in parts) for reason in REASONS}
        return cls._make([*(column[order] for column in columns), skipped])

    def select(self, places: np.ndarray) -> "Candidates":
        """Those at these places."""
        return Candidates._make([*(column[places] for column in self[:5]), self.skipped])


def mine(
    index: IdentityIndex,
    embedded: Embedded,
    rule: GalleryRule,
    split: str,
    tau: float,
    per_query: int = 1,
    rank: int = 0,
    world_size: int = 1,
    block_bytes: int = 4 * BLOCK_BYTES,
    progress: bool = False,
) -> Candidates:
    """Positives and distractors for one rank's part of the queries of a split.

    Distractors are drawn uniformly among the identities that have an image above tau, from another camera by the rule,
    and then uniformly among those images of the identity. Queries without a positive or with too few such identities
    are counted, not made easier.

    Args:
        index: the images.
        embedded: what the encoder makes of them.
        rule: what a gallery is.
        split: train, val or test.
        tau: the threshold in force.
        per_query: galleries of each query, each with a draw of its own.
        rank: takes the queries rank, rank + world_size, ...
        world_size: number of parts.
        block_bytes: memory for one block of queries; at the least one query is taken, some 32 bytes an image.
        progress: show a bar.
    """
    check_unit_norm(embedded.vectors)
    queries, images = embedded.sides(index, split)
    own = queries[rank::world_size]
    findable = own[index.positives(own, images, rule.cross_camera) > 0]
    fewest, most = rule.sizes
    width = most - 1 + rule.spare
    none, no_rows = np.zeros(0, dtype=np.int64), np.zeros((0, width), dtype=np.int64)
    found = [Candidates(none, none, none, none, no_rows, {NO_POSITIVE: len(own) - len(findable)})]
    cameras = index.cameras if rule.cross_camera else np.full(len(index), -1)
    gallery = _ByIdentity.build(index, embedded, images, cameras)
    step = max(1, block_bytes // max(1, _PAIR_BYTES * len(images) + _KEY_BYTES * len(gallery.identities)))
    for start in track(range(0, len(findable), step), f"Mining {split}, {rule.level}", disable=not progress):
        block = findable[start : start + step]
        numbers = torch.from_numpy(block)
        identities = torch.from_numpy(index.identities[block]).to(embedded.vectors.device)
        seen_by = torch.from_numpy(cameras[block]).to(embedded.vectors.device)
        available, drawn = gallery.draw(
            numbers, embedded.of(block), identities, seen_by, tau, rule.seed, per_query, width
        )
        size = fewest + random_keys(rule.seed, "size", numbers).numpy() % (most - fewest + 1)
        need = size - 1 + rule.spare
        enough = available >= need
        found.append(Candidates(none, none, none, none, no_rows, {TOO_FEW: int((~enough).sum())}))
        kept = block[enough]
        for repeat in range(per_query):
            needed = np.arange(width) < need[enough, None]
            distractors = np.where(needed, drawn[enough, repeat], -1)
            positive = _positives(index, gallery, kept, repeat, rule)
            found.append(Candidates(kept, np.full_like(kept, repeat), size[enough], positive, distractors, {}))
    return Candidates.join(found)


@dataclass(frozen=True)
class _ByIdentity:
    """N gallery images of I identities, those of an identity next to each other.

    Args:
        rows: (N,) int64 rows of the index.
        vectors: (N, D) float32.
        cameras: (N,) int64, -1 where they do not matter.
        identities: (I,) int64, rising.
        last: (I,) int64, position of the last image of each identity.
    """

    rows: np.ndarray
    vectors: Tensor
    cameras: Tensor
    identities: Tensor
    last: Tensor

    @classmethod
    def build(cls, index: IdentityIndex, embedded: Embedded, images: np.ndarray, cameras: np.ndarray) -> "_ByIdentity":
        rows = images[np.lexsort((images, index.identities[images]))]
        identities, counts = np.unique(index.identities[rows], return_counts=True)
        device = embedded.vectors.device
        last = torch.from_numpy(counts.cumsum() - 1).to(device)
        seen_by, names = torch.from_numpy(cameras[rows]).to(device), torch.from_numpy(identities).to(device)
        return cls(rows, embedded.of(rows), seen_by, names, last)

    def of(self, identity: int) -> np.ndarray:
        """Rows of the images of an identity, rising."""
        place = int(torch.searchsorted(self.identities, identity))
        first = int(self.last[place - 1]) + 1 if place else 0
        return self.rows[first : int(self.last[place]) + 1]

    def draw(
        self,
        queries: Tensor,
        vectors: Tensor,
        own: Tensor,
        cameras: Tensor,
        tau: float,
        seed: int,
        per_query: int,
        most: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distractors of B queries.

        Args:
            queries: (B,) rows of the index, which the draws depend on.
            vectors: (B, D).
            own: (B,) identities.
            cameras: (B,) of the queries, -1 where they do not matter.
            tau: similarity to exceed.
            seed: of the draws.
            per_query: draws for each query.
            most: distractors in a draw.

        Returns:
            how many identities there are to draw from (B,), and the rows drawn (B, per_query, most), -1 where there
            are not that many.
        """
        # Images above tau up to each image, and up to the end of each identity: ranges of it are counts, and the n-th
        # image above tau is where it first reaches n.
        fitting = _above(vectors, self.vectors, tau)
        if int(self.cameras.max()) >= 0:  # -2 is of no image
            fitting &= self.cameras != torch.where(cameras >= 0, cameras, -2)[:, None]
        seen = fitting.cumsum(1, dtype=torch.int32)
        upto = seen[:, self.last]
        before = F.pad(upto, (1, 0))[:, :-1]
        count = (upto - before).masked_fill_(self.identities == own[:, None], 0)
        available = (count > 0).sum(1).cpu().numpy()
        drawn = np.full((len(queries), per_query, most), -1)
        width = min(most, len(self.identities))
        query = queries.to(own.device)[:, None]
        for repeat in range(per_query if width else 0):
            keys = random_keys(seed, "identity", query, repeat, self.identities).masked_fill_(count == 0, LAST_KEY)
            chosen = keys.topk(width, dim=1, largest=False, sorted=True).indices
            among = count.gather(1, chosen)
            number = random_keys(seed, "image", query, repeat, self.identities[chosen]) % among.clamp(min=1)
            wanted = (before.gather(1, chosen) + number + 1).int()
            place = torch.searchsorted(seen, wanted).clamp_(max=len(self.rows) - 1).cpu().numpy()
            drawn[:, repeat, :width] = np.where(among.cpu().numpy() > 0, self.rows[place], -1)
        return available, drawn


def _above(queries: Tensor, images: Tensor, tau: float) -> Tensor:
    """(B, D), (N, D) -> (B, N) bool, whether a similarity is above tau, whatever the shape of the block."""
    # A float32 product of unit vectors is off by at most D / 2**24; the rest is for tau's own rounding.
    doubt = queries.shape[1] * 2.0**-24 + 2.0**-22
    difference = products(queries, images).sub_(tau)
    above = difference > 0
    pairs = (difference.abs_() <= doubt).nonzero()
    for query, image in (part.T for part in pairs.split(max(1, 2**20 // queries.shape[1]))):
        above[query, image] = similarity_of(queries[query], images[image]).double() > tau
    return above


def similarity_of(first: Tensor, second: Tensor) -> Tensor:
    """(M, D), (M, D) -> (M,) float32, the cosine similarity of each pair, correctly rounded."""
    return (first.double() * second.double()).sum(1).float()


def _positives(
    index: IdentityIndex, gallery: _ByIdentity, queries: np.ndarray, repeat: int, rule: GalleryRule
) -> np.ndarray:
    """(B,) rows of queries that have one -> (B,) rows; repetitions of a query take its positives in turn."""
    cameras = index.cameras if rule.cross_camera else np.full(len(index), -1)
    draws = random_keys(rule.seed, "positive", torch.from_numpy(queries)).numpy()
    chosen = np.empty_like(queries)
    for place, (query, draw) in enumerate(zip(queries.tolist(), draws.tolist(), strict=True)):
        rows = gallery.of(int(index.identities[query]))
        junk = (rows == query) | ((cameras[rows] == cameras[query]) & (cameras[query] >= 0))
        valid = rows[~junk]
        chosen[place] = valid[(draw + repeat) % len(valid)]
    return chosen


# ---------------------------------------------------------------------- galleries


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
