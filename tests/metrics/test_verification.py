"""Verification metrics against scikit-learn and plain loops, and over processes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold
from torch import Tensor

from tests.metrics.items import make_items, on_a_circle
from tests.metrics.test_error_rates import CASES, make_scores
from zoo.data.index import Pairs
from zoo.metrics import (
    VerificationMetrics,
    best_threshold,
    equal_error_rate,
    k_fold_accuracy,
    roc_auc,
    tar_at_far,
    unit_norm,
)


def make_pairs(indices: Tensor, identities: Tensor, count: int = 80, folds: int = 1, seed: int = 0) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(indices), (2, count), generator=draw)
    same = identities[first] == identities[second]
    return Pairs.build(
        indices[first].tolist(), indices[second].tolist(), same.tolist(), [n % folds for n in range(count)]
    )


def verify(items: dict[str, Tensor], pairs: Pairs, **options: Any) -> dict[str, float]:
    metrics = VerificationMetrics(**options)
    metrics.update(items["embeddings"], items["indices"])
    return {name: value.item() for name, value in metrics.compute(pairs).items()}


# --- plain functions


@pytest.mark.parametrize("case", CASES)
def test_functions_agree_with_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    scores, same = case
    far, tar, _ = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    assert roc_auc(scores, same) == pytest.approx(roc_auc_score(same.numpy(), scores.numpy()), abs=1e-12)
    assert equal_error_rate(scores, same) == pytest.approx(np.interp(0, far - (1 - tar), far), abs=1e-12)
    for rate in (0, 0.01, 0.1, 0.5, 1):
        assert tar_at_far(scores, same, rate) == pytest.approx(tar[far <= rate].max(), abs=1e-12)


@pytest.mark.parametrize("case", [*CASES, make_scores(7, 2, 30)])
def test_best_threshold_is_the_best(case: tuple[Tensor, Tensor]) -> None:
    scores, same = case[0].double(), case[1]
    levels = scores.unique()
    candidates = [levels[0], *((levels[1:] + levels[:-1]) / 2), levels[-1] + 1e-6]
    accuracy = [float(((scores >= level) == same).double().mean()) for level in candidates]
    strictest = max(n for n, value in enumerate(accuracy) if value == max(accuracy))
    assert best_threshold(case[0], same) == pytest.approx(float(candidates[strictest]), abs=2e-6)


def test_best_threshold_of_neighbouring_floats() -> None:
    """Nothing lies between them: it must still tell one from the other."""
    low = torch.tensor(0.5, dtype=torch.float64)
    high = torch.nextafter(low, torch.tensor(1.0, dtype=torch.float64))
    assert best_threshold(torch.stack([low, high]), torch.tensor([False, True])) == float(high)


@pytest.mark.parametrize("only", [True, False])
def test_best_threshold_of_one_class(only: bool) -> None:
    scores = torch.tensor([0.1, 0.5])
    accepted = scores >= best_threshold(scores, torch.tensor([only, only]))
    assert accepted.tolist() == [only, only]


@pytest.mark.parametrize("count", [200, 57, 10, 7, 2])
@pytest.mark.parametrize("levels", [None, 3])
def test_k_fold_accuracy_equals_a_plain_loop(count: int, levels: int | None) -> None:
    scores, same = make_scores(3, levels, count)
    accuracies = []
    for rest, held in KFold(min(10, count), shuffle=False).split(scores):
        threshold = best_threshold(scores[rest], same[rest])
        accuracies.append(np.mean((scores[held].double() >= threshold).numpy() == same[held].numpy()))
    mean, deviation = k_fold_accuracy(scores, same)
    assert mean == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert deviation == pytest.approx(np.std(accuracies), abs=1e-12)


def test_folds_that_are_given() -> None:
    """Fold 4 is told by the threshold of fold 9 and the other way round."""
    scores = torch.tensor([0.8, 0.2, 0.6, 0.4])
    same = torch.tensor([True, False, True, True])
    fold = torch.tensor([9, 9, 4, 4])
    # Fold 9 sets 0.5: right for 0.6, wrong for 0.4. Fold 4 accepts from 0.4 up: right for both of 9.
    assert k_fold_accuracy(scores, same, fold) == pytest.approx((0.75, 0.25))
    assert k_fold_accuracy(scores, same, torch.zeros(4), folds=2) == k_fold_accuracy(scores, same, folds=2)


def test_one_pair_has_no_fold_to_learn_from() -> None:
    assert all(map(math.isnan, k_fold_accuracy(torch.tensor([0.3]), torch.tensor([True]))))


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="folds is 1"):
        k_fold_accuracy(torch.rand(4), torch.rand(4) > 0.5, folds=1)


# --- the metric


@pytest.mark.parametrize("folds", [1, 5])
def test_metric_equals_the_functions(folds: int) -> None:
    items = make_items(count=70)
    pairs = make_pairs(items["indices"], items["identities"], folds=folds)
    place = {index: row for row, index in enumerate(items["indices"].tolist())}
    rows = unit_norm(items["embeddings"]).double()
    scores = torch.stack([rows[place[a]] @ rows[place[b]] for a, b in zip(pairs.first, pairs.second, strict=True)])
    same = torch.from_numpy(pairs.same)
    fold = torch.from_numpy(pairs.fold) if folds > 1 else None
    mean, deviation = k_fold_accuracy(scores.float(), same, fold)
    expected = {
        "roc_auc": roc_auc_score(pairs.same, scores.numpy()),
        "eer": equal_error_rate(scores, same),
        "accuracy": mean,
        "accuracy_std": deviation,
        "tar@0.01": tar_at_far(scores, same, 0.01),
        "tar@0.3": tar_at_far(scores, same, 0.3),
        "pairs": 80,
        "pairs_skipped": 0,
    }
    assert verify(items, pairs, fars=(0.01, 0.3)) == pytest.approx(expected, abs=1e-6)


def test_default_rates() -> None:
    items = make_items()
    result = verify(items, make_pairs(items["indices"], items["identities"]))
    assert [name for name in result if name.startswith("tar")] == ["tar@0.001", "tar@0.01", "tar@0.1"]


def test_images_that_were_never_given_are_counted() -> None:
    """Their pairs are left out; the folds of the others stay where they are."""
    items = make_items(count=40)
    pairs = make_pairs(items["indices"], items["identities"], folds=4)
    lost = int(items["indices"][3]), int(items["indices"].max())
    given = ~torch.isin(items["indices"], torch.tensor(lost))
    result = verify({name: values[given] for name, values in items.items()}, pairs)
    kept = ~np.isin(pairs.first, lost) & ~np.isin(pairs.second, lost)
    assert 0 < result["pairs_skipped"] == (~kept).sum()
    rest = Pairs(pairs.first[kept], pairs.second[kept], pairs.same[kept], pairs.fold[kept])
    assert result | {"pairs_skipped": 0} == verify(items, rest)


def test_folds_are_cut_before_pairs_are_skipped() -> None:
    items = make_items(count=40)
    pairs = make_pairs(items["indices"], items["identities"], count=37)
    lost = int(pairs.first[0])
    given = items["indices"] != lost
    runs = np.repeat(np.arange(10), [4] * 7 + [3] * 3)
    numbered = Pairs(pairs.first, pairs.second, pairs.same, runs)
    some = {name: values[given] for name, values in items.items()}
    assert verify(some, pairs) == verify(some, numbered)


def test_all_pairs_skipped_gives_nan() -> None:
    items = make_items(count=4)
    result = verify(items, Pairs.build([10**6, 10**6], [10**6 + 1, 10**6 + 2], [True, False]))
    assert (result["pairs"], result["pairs_skipped"]) == (0, 2)
    assert math.isnan(result["roc_auc"]) and math.isnan(result["accuracy"]) and math.isnan(result["tar@0.1"])


@pytest.mark.parametrize("same", [True, False])
def test_one_class_gives_nan(same: bool) -> None:
    items = make_items(count=20)
    pairs = make_pairs(items["indices"], items["identities"])
    result = verify(items, Pairs(pairs.first, pairs.second, np.full(80, same), pairs.fold))
    assert math.isnan(result["roc_auc"]) and math.isnan(result["eer"]) and math.isnan(result["tar@0.1"])
    assert result["accuracy"] > 0.9


def test_collapsed_encoder_cannot_tell() -> None:
    """All scores are equal to the last bit, at any width and in any part of the pairs."""
    items = make_items(count=60)
    row = torch.randn(1, 513, generator=torch.Generator().manual_seed(0))
    items["embeddings"] = row.repeat(60, 1)
    result = verify(items, make_pairs(items["indices"], items["identities"], count=999))
    assert (result["roc_auc"], result["eer"], result["tar@0.1"]) == (0.5, 0.5, 0.0)


def test_pair_of_an_image_with_itself() -> None:
    items = {"embeddings": on_a_circle(0, 90), "indices": torch.tensor([4, 8])}
    result = verify(items, Pairs.build([4, 4], [4, 8], [True, False]))
    assert result["roc_auc"] == 1


def test_order_batches_and_repeats_do_not_change_a_bit() -> None:
    items = make_items(count=60, width=33)
    pairs = make_pairs(items["indices"], items["identities"])
    parts = VerificationMetrics()
    order = torch.cat([torch.randperm(60, generator=torch.Generator().manual_seed(2)), torch.arange(5)])
    for part in order.split(7):
        parts.update(items["embeddings"][part], items["indices"][part])
    assert {name: value.item() for name, value in parts.compute(pairs).items()} == verify(items, pairs)


def test_other_pairs_get_another_answer() -> None:
    items = make_items(count=60)
    metrics = VerificationMetrics()
    metrics.update(items["embeddings"], items["indices"])
    several = [make_pairs(items["indices"], items["identities"], seed=seed) for seed in range(2)]
    answers = [{name: value.item() for name, value in metrics.compute(pairs).items()} for pairs in several]
    assert answers == [verify(items, pairs) for pairs in several] and answers[0] != answers[1]


def test_what_is_refused() -> None:
    metrics = VerificationMetrics()
    with pytest.raises(ValueError, match=r"indices have shape \(3,\) beside 2 embeddings"):
        metrics.update(torch.ones(2, 4), torch.arange(3))
    with pytest.raises(ValueError, match=r"items \[8\] are nan"):
        metrics.update(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.tensor([4, 8]))
    with pytest.raises(ValueError, match="0 items"):
        metrics.compute(Pairs.build([0], [1], [True]))
    metrics.update(torch.ones(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="no pairs"):
        metrics.compute()
    with pytest.raises(ValueError, match="fars is"):
        VerificationMetrics(fars=(2,))


# --- processes


def _verify_shard(rank: int, folder: str, processes: int) -> None:
    """The last process has no data, and the others share three items."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    items = make_items(count=60, width=17)
    parts = [torch.arange(0, 33), torch.arange(30, 60)] if processes == 3 else [torch.arange(60)]
    metrics = VerificationMetrics()
    if rank < len(parts):
        for part in parts[rank].split(8):
            metrics.update(items["embeddings"][part], items["indices"][part])
    torch.save(metrics.compute(make_pairs(items["indices"], items["identities"])), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_agree_to_the_bit(tmp_path: Path, processes: int) -> None:
    mp.get_context("forkserver").set_forkserver_preload(["zoo.metrics", "pytest"])
    mp.start_processes(_verify_shard, args=(str(tmp_path), processes), nprocs=processes, start_method="forkserver")
    items = make_items(count=60, width=17)
    expected = verify(items, make_pairs(items["indices"], items["identities"]))
    assert expected["pairs"] == 80
    for rank in range(processes):
        assert {name: value.item() for name, value in torch.load(tmp_path / f"{rank}.pt").items()} == expected
