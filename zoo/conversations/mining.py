"""What galleries can be made from: for each query the other images of its identity, and look-alikes to tell it from.

The look-alikes (distractors) are images of other identities whose similarity to the query, as a general encoder sees
it, is above tau: the higher tau, the harder the gallery (IIR-VLM, "Sim(f(g), f(q)) > tau").

Whatever is drawn is a function of (seed, what is drawn, row numbers) and of nothing else: neither the number of
processes nor the size of a block can change it. float32 products differ in their last bits with the shape of a block,
so a pair that close to tau is multiplied again in float64. An N x N matrix is never built.
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
from zoo.conversations.embedding import Embedded
from zoo.conversations.rule import GalleryRule
from zoo.data.index import IdentityIndex
from zoo.metrics.ranking import BLOCK_BYTES, check_unit_norm, products

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
