"""Multiple-choice accuracy against plain numpy, on one process and on several."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zoo.metrics import UNPARSED, ChoiceAccuracy

GROUPS = ("person", "face", "pet", "nobody")


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions that are often unparsed or 0, answers that may be 0 (none matches), groups without the last one."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(-1, 6, count), rng.integers(0, 6, count), rng.integers(0, 3, count) ** 2 // 2
    return tuple(torch.from_numpy(column) for column in columns)


def by_numpy(predicted: np.ndarray, answer: np.ndarray, group: np.ndarray) -> dict[str, float]:
    right, unparsed = predicted == answer, predicted == -1
    result = {"accuracy": right.mean(), "unparsed": unparsed.mean(), "examples": len(right)}
    per_group = []
    for number, name in enumerate(GROUPS):
        mine = group == number
        per_group.append(right[mine].mean() if mine.any() else math.nan)
        result |= {f"accuracy/{name}": per_group[-1], f"examples/{name}": mine.sum()}
        result |= {f"unparsed/{name}": unparsed[mine].mean() if mine.any() else math.nan}
    return result | {"accuracy_macro": np.nanmean(per_group)}


def score(*batches: tuple[torch.Tensor, ...]) -> dict[str, float]:
    metric = ChoiceAccuracy(GROUPS)
    for batch in batches:
        metric.update(*batch)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 57])
def test_agrees_with_numpy(count: int, seed: int) -> None:
    columns = draw(count, seed)
    wanted = by_numpy(*(column.numpy() for column in columns))
    assert score(columns) == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    parts = [tuple(column[place] for column in columns) for place in (slice(0, 20), slice(20, 20), slice(20, None))]
    assert score(*reversed(parts)) == pytest.approx(wanted, rel=1e-6, nan_ok=True)


def test_macro_and_micro_differ_where_groups_do() -> None:
    found = score((torch.tensor([1, 2, 0, 3]), torch.tensor([1, 2, 0, 4]), torch.tensor([0, 0, 0, 2])))
    assert found["accuracy"] == 0.75 and found["accuracy_macro"] == 0.5
    assert found["accuracy/person"] == 1 and found["accuracy/pet"] == 0 and math.isnan(found["accuracy/face"])


def test_unparsed_is_wrong_also_where_the_answer_is_none() -> None:
    found = score((torch.tensor([UNPARSED, UNPARSED]), torch.tensor([0, 1]), torch.tensor([0, 1])))
    assert found["accuracy"] == 0 and found["unparsed"] == 1


def test_without_examples_everything_is_nan_and_training_goes_on() -> None:
    found = score((torch.empty(0, dtype=torch.long),) * 3)
    assert found.pop("examples") == 0
    assert all(math.isnan(v) or (name.startswith("examples/") and v == 0) for name, v in found.items())


def test_many_examples_lose_nothing() -> None:
    """More than float32 can count."""
    metric = ChoiceAccuracy(("all",))
    metric.update(*(torch.zeros(1, dtype=torch.long),) * 3)
    metric.counts += torch.tensor([[0, 0, 2**25]])
    metric.update(*(torch.zeros(1, dtype=torch.long),) * 3)
    assert metric.counts.tolist() == [[2, 0, 2**25 + 2]]
    assert metric.compute()["accuracy"].item() == pytest.approx(2 / (2**25 + 2), rel=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([-2], [0], [0]), "predicted has -2; give -1 or more"),
        (([0], [-1], [0]), "answer has -1; give 0 or more"),
        (([0], [0], [4]), "group has 4; there are 4 groups"),
        (([0], [0], [-1]), "group has -1"),
        (([0, 1], [0], [0]), r"predicted is torch.int64 \(2,\) beside group \(1,\)"),
        (([0.0], [0], [0]), "predicted is torch.float32"),
        (([0], [True], [0]), "answer is torch.bool"),
        ((0, 0, 0), r"predicted is torch.int64 \(\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_left_out(columns: tuple, message: str) -> None:
    metric = ChoiceAccuracy(GROUPS)
    with pytest.raises(ValueError, match=message):
        metric.update(*map(torch.tensor, columns))
    assert metric.counts.sum() == 0


@pytest.mark.parametrize("groups", [(), ("pet", "pet")])
def test_groups_are_named_once(groups: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name at least one, each once"):
        ChoiceAccuracy(groups)


def _score_share(rank: int, folder: str, processes: int) -> None:
    """The last process has nothing."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    columns = draw(57, 0)
    step = processes - 1
    mine = [column[rank::step] if rank < step else column[:0] for column in columns]
    torch.save(score(mine), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_are_summed(tmp_path: Path) -> None:
    mp.get_context("forkserver").set_forkserver_preload(["zoo.metrics", "pytest"])
    mp.start_processes(_score_share, args=(str(tmp_path), 3), nprocs=3, start_method="forkserver")
    wanted = score(draw(57, 0))
    for rank in range(3):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(wanted, rel=0, nan_ok=True)
