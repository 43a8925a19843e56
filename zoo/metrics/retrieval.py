"""Retrieval metrics of instance-level recognition: CMC, mAP, mINP, R-Precision, MAP@R."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet, positive_ranks, unit_norm

_NO_CAMERA = torch.iinfo(torch.int64).min


def score_queries(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    ks: Sequence[int] = (1, 5, 10),
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Tensor]:
    """Every score of `RetrievalMetrics` for every single query, before averaging.

    Args:
        query: Q items.
        gallery: N items on the same device.
        ks: The k of CMC@k.
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.

    Returns:
        Name -> `(Q,)` float64 on the CPU; nan for a query without positives.
    """
    names = [*(f"rank{k}" for k in ks), "mAP", "mINP", "r_precision", "map_at_r"]
    scores = {name: torch.full((len(query),), torch.nan, dtype=torch.float64) for name in names}
    for queries, ranks in positive_ranks(query, gallery, block_bytes):
        found = (ranks > 0).any(1)
        if not found.any():
            continue
        block = _scores_from_ranks(ranks[found].cpu(), ks)
        for name in names:
            scores[name][queries[found].cpu()] = block[name]
    return scores


def _scores_from_ranks(ranks: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
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
    return scores


class RetrievalMetrics(Metric):
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

    Beside them stand `queries`, the number of queries averaged over, and `queries_skipped`, those with R = 0.
    The counts are floats, so that `log_dict` takes them as they are. Without any valid query the scores are
    nan, and training can go on.

    An item that comes twice with one index, as a distributed sampler pads its shards, counts once. Items are
    brought into the order of their indices before anything is computed, so neither the order of the updates
    nor the number of processes changes a bit of the result.

    Args:
        ks: The k of CMC@k, each at least 1.
        block_bytes: Memory that one block of queries may take.
        **kwargs: Options of `torchmetrics.Metric`, which refuses unknown ones. `compute_on_cpu=True` keeps
            the embeddings in main memory.

    Example:
        >>> metrics = RetrievalMetrics(ks=(1,))
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> metrics.update(embeddings, identities=torch.tensor([7, 7, 9, 9]), indices=torch.arange(4))
        >>> metrics.compute()["rank1"]
        tensor(1.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    records: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1, 5, 10), block_bytes: int = BLOCK_BYTES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; name at least one k, each at least 1.")
        self.ks = tuple(ks)
        self.block_bytes = block_bytes
        # Flat, so that a process without data joins in without knowing the width.
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        # (B, 5): index, identity, camera, is_query, is_gallery.
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def update(
        self,
        embeddings: Tensor,
        identities: Tensor,
        indices: Tensor,
        cameras: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            embeddings: `(B, D)`, of any length; normalised later.
            identities: `(B,)` integers.
            indices: `(B,)` integers, the number of each item in the data set, over queries and gallery
                together.
            cameras: `(B,)` integers, in every update or in none.
            is_query: `(B,)` bool; None makes every item a query.
            is_gallery: `(B,)` bool; None puts every item into the gallery.

        Raises:
            ValueError: Shapes or types do not fit, or an embedding is not finite; the batch is left out.
        """
        batch = EmbeddingSet(embeddings, identities, indices, cameras)
        everyone = torch.ones(len(batch), dtype=torch.bool, device=embeddings.device)
        roles = [everyone if role is None else role for role in (is_query, is_gallery)]
        for name, role in zip(("is_query", "is_gallery"), roles, strict=True):
            if role.shape != (len(batch),) or role.dtype != torch.bool:
                raise ValueError(
                    f"{name} is {role.dtype} of shape {tuple(role.shape)}; give torch.bool ({len(batch)},)."
                )
        if len(batch) == 0:
            return
        if len(self.records) and self.embeddings[-1].numel() != len(self.records[-1]) * embeddings.shape[1]:
            width = self.embeddings[-1].numel() // len(self.records[-1])
            raise ValueError(
                f"Embeddings are {embeddings.shape[1]} wide after some of {width}; use one encoder, or reset."
            )
        # A copy, since the caller may reuse its buffer.
        rows = embeddings.detach().to(torch.float32, copy=True)
        broken = ~rows.norm(dim=1).isfinite()
        if broken.any():
            raise ValueError(
                f"Embeddings of items {indices.cpu()[broken.cpu()].tolist()} are nan, infinite or too long "
                "for float32. Look for a diverged loss or an overflow in half precision."
            )
        if cameras is None:
            cameras = torch.full_like(identities, _NO_CAMERA, dtype=torch.int64)
        columns = (indices, identities, cameras, *roles)
        self.records.append(torch.stack([column.to(rows.device, torch.int64) for column in columns], dim=1))
        self.embeddings.append(rows.flatten())

    def compute(self) -> dict[str, Tensor]:
        """Average over the valid queries of all processes.

        Returns:
            Name -> scalar float32, see the class.

        Raises:
            ValueError: There were no items at all, one index stands for two different items, or only some
                items have a camera.
        """
        query, gallery = self.sides()
        scores = score_queries(query, gallery, self.ks, self.block_bytes)
        valid = ~scores["mAP"].isnan()
        result = {name: values[valid].mean() for name, values in scores.items()}
        result["queries"] = valid.sum()
        result["queries_skipped"] = (~valid).sum()
        return {name: value.to(self.device, torch.float32) for name, value in result.items()}

    def sides(self) -> tuple[EmbeddingSet, EmbeddingSet]:
        """Queries and gallery in the order of their indices, each item once."""
        records = dim_zero_cat(self.records) if len(self.records) else torch.empty(0, 5, dtype=torch.int64)
        if len(records) == 0:
            raise ValueError("There is nothing to evaluate: 0 items were given. Call update before compute.")
        without = records[:, 2] == _NO_CAMERA
        if without.any() and not without.all():
            raise ValueError(
                f"{int(without.sum())} of {len(records)} items have no camera; give cameras in every update or in none."
            )

        keep, merged = _merge_by_index(records)
        embeddings = unit_norm(dim_zero_cat(self.embeddings).view(len(records), -1)[keep])
        cameras = None if bool(without.any()) else merged[:, 2]
        items = EmbeddingSet(embeddings, merged[:, 1], merged[:, 0], cameras)
        sides = [items if role.all() else items.select(role) for role in merged[:, 3:].bool().unbind(1)]
        return sides[0], sides[1]

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """Gather the states of all processes; one without data joins in with empty ones of the right type."""
        if not len(self.records):
            self.records = [torch.empty(0, 5, dtype=torch.int64, device=self.device)]
            self.embeddings = [torch.empty(0, device=self.device)]
        home = dim_zero_cat(self.records).device
        # NCCL gathers only what is on the GPU; with compute_on_cpu the states are not.
        self.records = [dim_zero_cat(self.records).to(self.device)]
        self.embeddings = [dim_zero_cat(self.embeddings).to(self.device)]
        super()._sync_dist(dist_sync_fn, process_group)
        self.records = [dim_zero_cat(self.records).to(home)]
        self.embeddings = [dim_zero_cat(self.embeddings).to(home)]


def _merge_by_index(records: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the items by index and make one of those that share an index, with every role that it was given.

    Args:
        records: `(N, 5)` rows of `RetrievalMetrics.records`.

    Returns:
        Positions `(M,)` of the items kept, the first of each index, and their records `(M, 5)`.
    """
    order = records[:, 0].argsort(stable=True)
    records = records[order]
    again = torch.zeros(len(records), dtype=torch.bool, device=records.device)
    again[1:] = records[1:, 0] == records[:-1, 0]
    clash = again.clone()
    clash[1:] &= (records[1:, 1:3] != records[:-1, 1:3]).any(1)
    if clash.any():
        here = int(clash.nonzero()[0])
        raise ValueError(
            f"Index {int(records[here, 0])} stands for identity {int(records[here - 1, 1])} and for identity "
            f"{int(records[here, 1])}, or for two cameras. Number queries and gallery together: "
            "add the length of one set to the indices of the other."
        )
    merged = records[~again]
    roles = torch.zeros_like(merged[:, 3:]).index_add_(0, (~again).cumsum(0) - 1, records[:, 3:])
    merged[:, 3:] = roles.clamp(max=1)
    return order[~again], merged
