"""The options that every metric passes on to torchmetrics."""

from collections.abc import Callable
from typing import TypedDict

from torch import Tensor
from torch.distributed import ProcessGroup


class MetricOptions(TypedDict, total=False):
    """Keyword arguments of `torchmetrics.Metric` that a caller may set; others are refused.

    Args:
        compute_on_cpu: keep the states in main memory.
        dist_sync_on_step: also gather the states of all processes in `forward`.
        process_group: the processes that take part; None for all.
        dist_sync_fn: how a state is gathered; None for torch's way.
        distributed_available_fn: whether there are several processes; None asks torch.
        sync_on_compute: gather the states of all processes in `compute`.
    """

    compute_on_cpu: bool
    dist_sync_on_step: bool
    process_group: ProcessGroup | None
    dist_sync_fn: Callable[[Tensor, ProcessGroup | None], list[Tensor]] | None
    distributed_available_fn: Callable[[], bool] | None
    sync_on_compute: bool
