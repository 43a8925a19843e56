"""What several processes must agree on: who they are, and all of their rows."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

T = TypeVar("T")


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes of this run, or of a group of them; 1 outside a distributed run."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Number of this process in the run, or in a group; 0 outside a distributed run."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's tensor, on every rank, without gradient.

    Args:
        tensor: the same shape and type on every rank; left as it is.
        group: the processes that take part, None for all.
    """
    total = tensor.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(total, group=group)
    return total


def mean_over_ranks(each: Tensor) -> Tensor:
    """What a rank adds to a mean over the items of all ranks, of which they need not have equally many.

    The average of it over the ranks, which DDP takes of gradients, is that mean; 0 where no rank has any.

    Args:
        each: (N_rank,), with gradient; N_rank may be 0.
    """
    count = sum_over_ranks(torch.tensor(len(each), device=each.device))
    return each.sum() * world_size() / count.clamp(min=1)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Rows of every rank, in rank order, with gradients flowing back to the rank that a row came from.

    Ranks may hold different numbers of rows. If every rank then computes the *same* loss over all rows, the
    gradient that reaches a rank's rows is `world_size` times that of one loss; DDP's average over ranks takes
    the factor out again, so parameter gradients equal those of one process with the whole batch.

    Args:
        tensor: (B_rank, ...), the same trailing shape on every rank.

    Returns:
        (sum of B_rank, ...)
    """
    if world_size() == 1:
        return tensor
    rows = _row_counts(tensor)
    padded = torch.cat([tensor, tensor.new_zeros(max(rows) - len(tensor), *tensor.shape[1:])])
    gathered = all_gather(padded) if tensor.requires_grad else _all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(gathered, rows, strict=True)])


def from_all_ranks(own: T) -> list[T]:
    """Every rank's object, in rank order, on every rank."""
    if world_size() == 1:
        return [own]
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, own)
    return parts


def _row_counts(tensor: Tensor) -> list[int]:
    mine = torch.tensor([len(tensor)], device=tensor.device)
    return [int(count) for count in _all_gather(mine)]


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts
