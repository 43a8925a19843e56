"""Candidates for galleries: for each query another image of its identity, and look-alikes to tell it from.

The look-alikes (distractors) are images of other identities whose similarity to the query, as a general encoder sees
it, is above tau: the higher tau, the harder the gallery (IIR-VLM, "Sim(f(g), f(q)) > tau").

Whatever is drawn is a function of (seed, what is drawn, row numbers) and of nothing else: neither the number of
processes nor the size of a block can change it. An N x N matrix is never built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from zoo.conversations.draws import LAST_KEY, random_keys
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.rule import GalleryRule
from zoo.conversations.similarity import above
from zoo.data.index import IdentityIndex
from zoo.metrics.ranking import BLOCK_BYTES, check_unit_norm

NO_POSITIVE = "no positive"
TOO_FEW = "too few above tau"
REASONS = (NO_POSITIVE, TOO_FEW)
"""Why a query makes no gallery: no other image of its identity (from another camera, by the rule), or fewer other
identities above tau (from another camera, too) than a gallery needs."""

_PAIR_BYTES = 32  # of a block, for each pair of a query and an image: similarity, mask, running count, positions
_KEY_BYTES = 48  # and of a query and an identity


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
    def empty(cls, most_distractors: int, skipped: dict[str, int]) -> "Candidates":
        """None at all, of queries that were skipped."""
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none, none, none, np.zeros((0, most_distractors), dtype=np.int64), skipped)

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
    embeddings: ImageEmbeddings,
    rule: GalleryRule,
    split: str,
    tau: float,
    per_query: int = 1,
    shard: tuple[int, int] = (0, 1),
    block_bytes: int = 4 * BLOCK_BYTES,
    progress: bool = False,
) -> Candidates:
    """Positives and distractors for the queries of a split, or for one shard of them.

    Distractors are drawn uniformly among the identities that have an image above tau, from another camera by the rule,
    and then uniformly among those images of the identity. Queries without a positive or with too few such identities
    are counted, not made easier.

    Args:
        index: the images.
        embeddings: their vectors.
        rule: what a gallery is.
        split: train, val or test.
        tau: the threshold in force.
        per_query: galleries of each query, each with a draw of its own.
        shard: `(i, n)` takes every n-th query from the i-th on.
        block_bytes: memory for one block of queries; at the least one query is taken, some 32 bytes an image.
        progress: show a bar.

    Raises:
        ValueError: vectors that are not of length 1, or an unknown split.
    """
    check_unit_norm(embeddings.vectors)
    query_rows, gallery_rows = embeddings.query_and_gallery_rows(index, split)
    own = query_rows[shard[0] :: shard[1]]
    answerable = own[index.positives(own, gallery_rows, rule.cross_camera) > 0]
    gallery = _Gallery(index, embeddings, gallery_rows, rule)
    step = max(1, block_bytes // max(1, _PAIR_BYTES * len(gallery_rows) + _KEY_BYTES * len(gallery.identities)))
    starts = track(range(0, len(answerable), step), f"Mining {split}, {rule.level}", disable=not progress)
    none_of_others = Candidates.empty(gallery.most_distractors, {NO_POSITIVE: len(own) - len(answerable)})
    blocks = (gallery.candidates(answerable[start : start + step], tau, per_query) for start in starts)
    return Candidates.join([none_of_others, *blocks])


@dataclass(frozen=True)
class _Images:
    """B images.

    Args:
        rows: (B,) int64 rows of the index.
        vectors: (B, D).
        identities: (B,) int64.
        cameras: (B,) int64, -1 where they are unknown or do not matter.
    """

    rows: Tensor
    vectors: Tensor
    identities: Tensor
    cameras: Tensor

    @classmethod
    def of(cls, index: IdentityIndex, embeddings: ImageEmbeddings, rows: np.ndarray, rule: GalleryRule) -> "_Images":
        cameras = index.cameras[rows] if rule.cross_camera else np.full(len(rows), -1)
        columns = (torch.from_numpy(column) for column in (rows, index.identities[rows], cameras))
        numbers, identities, known_cameras = (column.to(embeddings.vectors.device) for column in columns)
        return cls(numbers, embeddings.of(rows), identities, known_cameras)


class _Gallery:
    """The images that galleries are filled with, those of an identity next to each other.

    Args:
        index: the images.
        embeddings: their vectors.
        rows: (N,) int64 rows of the index.
        rule: what a gallery is.
    """

    def __init__(self, index: IdentityIndex, embeddings: ImageEmbeddings, rows: np.ndarray, rule: GalleryRule) -> None:
        self.index, self.embeddings, self.rule = index, embeddings, rule
        self.most_distractors = rule.sizes[1] - 1 + rule.spare
        self.rows = rows[np.lexsort((rows, index.identities[rows]))]
        self.images = _Images.of(index, embeddings, self.rows, rule)
        identities, counts = np.unique(index.identities[self.rows], return_counts=True)
        self.identities = torch.from_numpy(identities).to(embeddings.vectors.device)  # (I,), rising
        self.last = torch.from_numpy(counts.cumsum() - 1).to(embeddings.vectors.device)  # (I,) place of its last image

    def candidates(self, rows: np.ndarray, tau: float, per_query: int) -> Candidates:
        """Candidates of queries that have a positive; those with too few look-alikes are counted.

        Args:
            rows: (B,) rows of the queries.
            tau: similarity that distractors exceed.
            per_query: galleries of each query.
        """
        fewest, most = self.rule.sizes
        available, drawn = self.draw(_Images.of(self.index, self.embeddings, rows, self.rule), tau, per_query)
        size = fewest + random_keys(self.rule.seed, "size", torch.from_numpy(rows)).numpy() % (most - fewest + 1)
        need = size - 1 + self.rule.spare
        enough = available >= need
        needed = np.arange(self.most_distractors) < need[enough, None, None]
        return Candidates(
            query=np.repeat(rows[enough], per_query),
            repeat=np.tile(np.arange(per_query), enough.sum()),
            size=np.repeat(size[enough], per_query),
            positive=self.positives(rows[enough], per_query).ravel(),
            distractors=np.where(needed, drawn[enough], -1).reshape(-1, self.most_distractors),
            skipped={TOO_FEW: int((~enough).sum())},
        )

    def draw(self, queries: _Images, tau: float, per_query: int) -> tuple[np.ndarray, np.ndarray]:
        """Distractors of B queries.

        Args:
            queries: the B images.
            tau: similarity to exceed.
            per_query: draws for each query.

        Returns:
            how many identities there are to draw from (B,), and the rows drawn (B, per_query, most_distractors), -1
            where there are not that many.
        """
        # Images above tau up to each image, and up to the end of each identity: ranges of it are counts, and the n-th
        # image above tau is where it first reaches n.
        fitting = above(queries.vectors, self.images.vectors, tau)
        cameras = self.images.cameras
        if len(cameras) and int(cameras.max()) >= 0:  # -2 is of no image
            fitting &= cameras != torch.where(queries.cameras >= 0, queries.cameras, -2)[:, None]
        seen = fitting.cumsum(1, dtype=torch.int32)
        upto = seen[:, self.last]
        before = F.pad(upto, (1, 0))[:, :-1]
        count = (upto - before).masked_fill_(self.identities == queries.identities[:, None], 0)
        available = (count > 0).sum(1).cpu().numpy()
        drawn = np.full((len(queries.rows), per_query, self.most_distractors), -1)
        width = min(self.most_distractors, len(self.identities))
        query, seed = queries.rows[:, None], self.rule.seed
        for repeat in range(per_query if width else 0):
            keys = random_keys(seed, "identity", query, repeat, self.identities).masked_fill_(count == 0, LAST_KEY)
            chosen = keys.topk(width, dim=1, largest=False, sorted=True).indices
            among = count.gather(1, chosen)
            number = random_keys(seed, "image", query, repeat, self.identities[chosen]) % among.clamp(min=1)
            wanted = (before.gather(1, chosen) + number + 1).int()
            place = torch.searchsorted(seen, wanted).clamp_(max=len(self.rows) - 1).cpu().numpy()
            drawn[:, repeat, :width] = np.where(among.cpu().numpy() > 0, self.rows[place], -1)
        return available, drawn

    def positives(self, queries: np.ndarray, per_query: int) -> np.ndarray:
        """(B,) rows of queries that have a positive -> (B, per_query) rows: its positives in turn, from a drawn one
        on."""
        cameras = self.index.cameras if self.rule.cross_camera else np.full(len(self.index), -1)
        draws = random_keys(self.rule.seed, "positive", torch.from_numpy(queries)).numpy()
        chosen = np.empty((len(queries), per_query), dtype=np.int64)
        for place, (query, draw) in enumerate(zip(queries.tolist(), draws.tolist(), strict=True)):
            rows = self._of_identity(int(self.index.identities[query]))
            junk = (rows == query) | ((cameras[rows] == cameras[query]) & (cameras[query] >= 0))
            valid = rows[~junk]
            chosen[place] = [valid[(draw + repeat) % len(valid)] for repeat in range(per_query)]
        return chosen

    def _of_identity(self, identity: int) -> np.ndarray:
        """Rows of the images of an identity, rising."""
        place = int(torch.searchsorted(self.identities, identity))
        first = int(self.last[place - 1]) + 1 if place else 0
        return self.rows[first : int(self.last[place]) + 1]
