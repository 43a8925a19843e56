"""EmbeddingMetric: base of the metrics over all embeddings of all processes."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.metrics.options import MetricOptions
from zoo.metrics.ranking import unit_norm


class EmbeddingMetric(Metric):
    """A metric that sees all embeddings of all processes at once.

    Args:
        columns: How many integers belong to each embedding; the first is its index.
        **kwargs: See `MetricOptions`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    records: list[Tensor]

    def __init__(self, columns: int, **kwargs: Unpack[MetricOptions]) -> None:
        super().__init__(**kwargs)
        self._columns = columns
        # Flat, so that a process without data joins in without knowing the width.
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def take_in(self, embeddings: Tensor, columns: Sequence[Tensor]) -> None:
        """Keep a batch.

        Args:
            embeddings: `(B, D)`, of any length.
            columns: `(B,)` integers each, the indices first.

        Raises:
            ValueError: An embedding is not finite, or of another width than before; the batch is left out.
        """
        if len(embeddings) == 0:
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
                f"Embeddings of items {columns[0].cpu()[broken.cpu()].tolist()} are nan, infinite or too long "
                "for float32. Look for a diverged loss or an overflow in half precision."
            )
        self.records.append(torch.stack([column.to(rows.device, torch.int64) for column in columns], dim=1))
        self.embeddings.append(rows.flatten())

    def all_records(self) -> Tensor:
        """`(N, columns)` int64, as they came.

        Raises:
            ValueError: There are none.
        """
        records = dim_zero_cat(self.records) if len(self.records) else torch.empty(0, self._columns)
        if len(records) == 0:
            raise ValueError("There is nothing to evaluate: 0 items were given. Call update before compute.")
        return records

    def all_embeddings(self, rows: Tensor) -> Tensor:
        """`(M, D)` float32 of length 1, those at the positions `rows` `(M,)` of `all_records`."""
        return unit_norm(dim_zero_cat(self.embeddings).view(len(self.all_records()), -1)[rows])

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Gather the states of all processes; one without data joins in with empty ones of the right type."""
        if not len(self.records):
            self.records = [torch.empty(0, self._columns, dtype=torch.int64, device=self.device)]
            self.embeddings = [torch.empty(0, device=self.device)]
        home = dim_zero_cat(self.records).device
        # NCCL gathers only what is on the GPU; with compute_on_cpu the states are not.
        self.records = [dim_zero_cat(self.records).to(self.device)]
        self.embeddings = [dim_zero_cat(self.embeddings).to(self.device)]
        super()._sync_dist(dist_sync_fn, process_group)
        self.records = [dim_zero_cat(self.records).to(home)]
        self.embeddings = [dim_zero_cat(self.embeddings).to(home)]


def each_index_once(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort items by index and keep one of those that share an index, as a distributed sampler pads its shards.

    Args:
        indices: `(N,)` int64.

    Returns:
        The order `(N,)` that sorts them, stable, and `(N,)` bool, in that order: whether an item repeats the
        index of the one before.
    """
    order = indices.argsort(stable=True)
    ordered = indices[order]
    again = torch.zeros(len(ordered), dtype=torch.bool, device=ordered.device)
    again[1:] = ordered[1:] == ordered[:-1]
    return order, again
