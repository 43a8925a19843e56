"""Retrieval metrics of instance-level recognition: CMC, mAP, mINP, R-Precision, MAP@R, mAP@k."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from zoo.distributed import rank, sum_over_ranks, world_size
from zoo.metrics.gathered import EmbeddingMetric, each_index_once
from zoo.metrics.options import MetricOptions
from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, SimilarityBlock, positive_ranks, similarity_blocks


def score_queries(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    ks: Sequence[int] = (1, 5, 10),
    block_bytes: int = BLOCK_BYTES,
    map_ks: Sequence[int] = (),
    blocks: Iterable[SimilarityBlock] | None = None,
) -> dict[str, Tensor]:
    """Every score of `RetrievalMetrics` for every single query, before averaging.

    Args:
        query: Q items.
        gallery: N items on the same device.
        ks: The k of CMC@k.
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.
        map_ks: The k of mAP@k.
        blocks: Scores of these queries against this gallery, such as `reranked_blocks` gives; None for cosine
            similarity.

    Returns:
        Name -> `(Q,)` float64 on the CPU; nan for a query without positives, or one that `blocks` leaves out.
    """
    names = [*(f"rank{k}" for k in ks), "mAP", "mINP", "r_precision", "map_at_r", *(f"mAP@{k}" for k in map_ks)]
    scores = {name: torch.full((len(query),), torch.nan, dtype=torch.float64) for name in names}
    for queries, ranks in positive_ranks(query, gallery, block_bytes, blocks):
        found = (ranks > 0).any(1)
        if not found.any():
            continue
        block = _scores_from_ranks(ranks[found].cpu(), ks, map_ks)
        for name in names:
            scores[name][queries[found].cpu()] = block[name]
    return scores


def _scores_from_ranks(ranks: Tensor, ks: Sequence[int], map_ks: Sequence[int]) -> dict[str, Tensor]:
    """Scores `(B,)` from the rising ranks `(B, P)` of at least one positive each, 0 behind the last one."""
    hit = ranks > 0
    relevant = hit.sum(1)
    in_top_r = hit & (ranks <= relevant[:, None])
    place = torch.arange(1, ranks.shape[1] + 1)
    precision = torch.where(hit, place.double() / ranks.clamp(min=1), 0.0)
    scores = {f"rank{k}": (ranks[:, :1] <= k).any(1).double() for k in ks}
    scores["mAP"] = precision.sum(1) / relevant
    scores["mINP"] = relevant.double() / ranks.amax(1)
    scores["r_precision"] = in_top_r.sum(1).double() / relevant
    scores["map_at_r"] = (precision * in_top_r).sum(1) / relevant
    for k in map_ks:
        scores[f"mAP@{k}"] = (precision * (ranks <= k)).sum(1) / relevant.clamp(max=k)
    return scores


class RetrievalScores(NamedTuple):
    """What `RetrievalMetrics` computes: name -> scalar float32, over all queries and over each group of them.

    Args:
        total: over all valid queries.
        groups: number of a group -> the scores over its valid queries, against the whole gallery.
    """

    total: dict[str, Tensor]
    groups: dict[int, dict[str, Tensor]]


class RetrievalMetrics(EmbeddingMetric):
    """How well embeddings find the same identity in a gallery.

    Every query ranks the gallery by cosine similarity; what counts as positive, negative and junk, and how
    ties are broken, is written at the top of `zoo.metrics.ranking`. With R positives of a query at the
    1-based ranks r_1 < ... < r_R of its valid gallery, `compute` averages over the queries with R > 0:

    - `rank{k}` (CMC@k): 1 if r_1 <= k, else 0. This is what Stanford Online Products calls Recall@k (Song et
      al., CVPR 2016), so it is given once, under this name; ask for `ks=(1, 10, 100, 1000)` there. It is not
      the share of the R positives within the top k.
    - `mAP`: AP = (1/R) sum_j j / r_j, the precision at each hit, not interpolated, over all R positives.
    - `mINP`: R / r_R, the precision at the last and hardest positive (Ye et al., TPAMI 2021).
    - `r_precision`: positives among the top R, divided by R.
    - `map_at_r`: (1/R) sum of j / r_j over the positives with r_j <= R (Musgrave et al., ECCV 2020).
    - `mAP@{k}`, where asked for: (1 / min(k, R)) sum of j / r_j over the positives with r_j <= k. The denominator
      is min(k, R), as in ILIAS' mAP@1k (Kordopatis-Zilos et al., CVPR 2025); others divide by R or by the hits.

    Beside them stand `queries`, the number of queries averaged over, and `queries_skipped`, those with R = 0.
    The counts are floats, so that `log_dict` takes them as they are. Without any valid query the scores are
    nan, and training can go on. Where queries have groups, every score and count is also given over the valid queries
    of each group; the gallery is always everything.

    An item that comes twice with one index, as a distributed sampler pads its shards, counts once. Items are
    brought into the order of their indices before anything is computed, and processes take turns at whole blocks
    of queries, so neither the order of the updates nor the number of processes changes a bit of the result.

    Args:
        ks: The k of CMC@k, each at least 1.
        map_ks: The k of mAP@k, each at least 1.
        block_bytes: Memory that one block of queries may take.
        **kwargs: See `MetricOptions`. `compute_on_cpu=True` keeps the embeddings in main memory.

    Example:
        >>> metrics = RetrievalMetrics(ks=(1,))
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> metrics.update(embeddings, identities=torch.tensor([7, 7, 9, 9]), indices=torch.arange(4))
        >>> metrics.compute().total["rank1"]
        tensor(1.)
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10),
        map_ks: Sequence[int] = (),
        block_bytes: int = BLOCK_BYTES,
        **kwargs: Unpack[MetricOptions],
    ) -> None:
        # index, identity, camera, group, is_query, is_gallery
        super().__init__(columns=6, **kwargs)
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; name at least one k, each at least 1.")
        if min(map_ks, default=1) < 1:
            raise ValueError(f"map_ks is {tuple(map_ks)}; each k is at least 1.")
        self.ks, self.map_ks = tuple(ks), tuple(map_ks)
        self.block_bytes = block_bytes

    def update(
        self,
        embeddings: Tensor,
        identities: Tensor,
        indices: Tensor,
        cameras: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            embeddings: `(B, D)`, of any length; normalised later.
            identities: `(B,)` integers.
            indices: `(B,)` integers, the number of each item in the data set, over queries and gallery
                together.
            cameras: `(B,)` integers, -1 where an item has none; None stands for -1 everywhere.
            is_query: `(B,)` bool; None makes every item a query.
            is_gallery: `(B,)` bool; None puts every item into the gallery.
            groups: `(B,)` integers, the group of each item as a query, -1 for none; None stands for -1 everywhere.

        Raises:
            ValueError: Shapes or types do not fit, or an embedding is not finite; the batch is left out.
        """
        batch = EmbeddingSet(embeddings, identities, indices, cameras)
        nowhere = torch.full_like(batch.indices, -1)
        if groups is None:
            groups = nowhere
        elif groups.shape != (len(batch),) or groups.is_floating_point():
            raise ValueError(
                f"groups are {groups.dtype} of shape {tuple(groups.shape)}; give torch.int64 ({len(batch)},)."
            )
        everyone = torch.ones(len(batch), dtype=torch.bool, device=embeddings.device)
        roles = [everyone if role is None else role for role in (is_query, is_gallery)]
        for name, role in zip(("is_query", "is_gallery"), roles, strict=True):
            if role.shape != (len(batch),) or role.dtype != torch.bool:
                raise ValueError(
                    f"{name} is {role.dtype} of shape {tuple(role.shape)}; give torch.bool ({len(batch)},)."
                )
        cameras = nowhere if batch.cameras is None else batch.cameras
        self.take_in(embeddings, (batch.indices, batch.identities, cameras, groups, *roles))

    def compute(self) -> RetrievalScores:
        """Average over the valid queries of all processes.

        Raises:
            ValueError: There were no items at all, or one index stands for two different items.
        """
        items, groups, is_query, is_gallery = self._items()
        query, gallery = _part(items, is_query), _part(items, is_gallery)
        scores = self._shared_scores(query, gallery)
        groups = groups[is_query].cpu()
        return RetrievalScores(
            self._averages(scores, torch.ones_like(groups, dtype=torch.bool)),
            {number: self._averages(scores, groups == number) for number in groups[groups >= 0].unique().tolist()},
        )

    def sides(self) -> tuple[EmbeddingSet, EmbeddingSet]:
        """Queries and gallery in the order of their indices, each item once."""
        items, _, is_query, is_gallery = self._items()
        return _part(items, is_query), _part(items, is_gallery)

    def _items(self) -> tuple[EmbeddingSet, Tensor, Tensor, Tensor]:
        """M items in the order of their indices, with `(M,)` groups and roles."""
        keep, records = _merge_by_index(self.all_records())
        indices, identities, cameras, groups = records[:, :4].unbind(1)
        is_query, is_gallery = records[:, 4:].bool().unbind(1)
        return EmbeddingSet(self.all_embeddings(keep), identities, indices, cameras), groups, is_query, is_gallery

    def _averages(self, scores: dict[str, Tensor], among: Tensor) -> dict[str, Tensor]:
        """Means over the valid ones of the queries `among` `(Q,)` bool, and their numbers."""
        valid = among & ~scores["mAP"].isnan()
        result = {name: values[valid].mean() for name, values in scores.items()}
        result |= {"queries": valid.sum(), "queries_skipped": (among & ~valid).sum()}
        return {name: value.to(self.device, torch.float32) for name, value in result.items()}

    def _shared_scores(self, query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, Tensor]:
        """`score_queries`, with the blocks of queries dealt to the processes where they hold the same items."""
        mine, processes = 0, 1
        if self._is_synced:
            mine, processes = rank(self.process_group), world_size(self.process_group)
        blocks = similarity_blocks(query, gallery, self.block_bytes, (mine, processes))
        scores = score_queries(query, gallery, self.ks, map_ks=self.map_ks, blocks=blocks)
        if processes == 1 or len(query) == 0:
            return scores
        # One process scored a query and all others hold nan: a sum with their zeros keeps every bit.
        table = torch.stack(list(scores.values()), dim=1).to(self.device)
        total = sum_over_ranks(table.nan_to_num(0.0), self.process_group)
        scored = sum_over_ranks((~table.isnan()).double(), self.process_group)
        return dict(zip(scores, total.where(scored > 0, torch.nan).cpu().unbind(1), strict=True))


def _part(items: EmbeddingSet, role: Tensor) -> EmbeddingSet:
    return items if role.all() else items.select(role)


def _merge_by_index(records: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the items by index and make one of those that share an index, with every role that it was given.

    Args:
        records: `(N, 6)` records of `RetrievalMetrics`.

    Returns:
        Positions `(M,)` of the items kept, the first of each index, and their records `(M, 6)`.
    """
    order, again = each_index_once(records[:, 0])
    records = records[order]
    clash = again.clone()
    clash[1:] &= (records[1:, 1:4] != records[:-1, 1:4]).any(1)
    if clash.any():
        here = int(clash.nonzero()[0])
        raise ValueError(
            f"Index {int(records[here, 0])} stands for identity {int(records[here - 1, 1])} and for identity "
            f"{int(records[here, 1])}, or for two cameras or groups. Number queries and gallery together: "
            "add the length of one set to the indices of the other."
        )
    merged = records[~again]
    roles = torch.zeros_like(merged[:, 4:]).index_add_(0, (~again).cumsum(0) - 1, records[:, 4:])
    merged[:, 4:] = roles.clamp(max=1)
    return order[~again], merged
