"""Gathering with gradient, and means, on two real processes with different numbers of rows."""

import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from zoo.distributed import gather_with_gradient, mean_over_ranks, rank, world_size

ROWS = torch.arange(20.0).view(5, 4) / 10
WEIGHT = torch.linspace(-1, 1, 12).view(4, 3)


def loss_of(rows: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, rows.flip(0)).square().sum() + rows.sin().sum()


def work(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    assert (rank(), world_size()) == (number, 2)
    weight = WEIGHT.clone().requires_grad_()
    mine = ROWS[:2] if number == 0 else ROWS[2:]
    gathered = gather_with_gradient(mine @ weight)
    labels = gather_with_gradient(torch.full((len(mine),), number))
    loss_of(gathered).backward()
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    other = WEIGHT.clone().requires_grad_()
    mean_over_ranks((mine @ other).sin().sum(1)).backward()
    assert other.grad is not None
    dist.all_reduce(other.grad)
    assert mean_over_ranks(mine[:0, 0]) == 0
    # DDP averages
    torch.save((gathered.detach(), labels, weight.grad / 2, other.grad / 2), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_rows_and_gradients_equal_those_of_one_process(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    weight = WEIGHT.clone().requires_grad_()
    loss_of(ROWS @ weight).backward()
    other = WEIGHT.clone().requires_grad_()
    (ROWS @ other).sin().sum(1).mean().backward()
    for number in range(2):
        gathered, labels, gradient, of_mean = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert torch.allclose(gathered, ROWS @ WEIGHT, atol=1e-6)
        assert labels.tolist() == [0, 0, 1, 1, 1]
        assert torch.allclose(gradient, weight.grad, atol=1e-4)
        assert torch.allclose(of_mean, other.grad, atol=1e-6)


def test_one_process_is_left_alone():
    assert gather_with_gradient(ROWS) is ROWS
