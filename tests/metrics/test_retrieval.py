"""Retrieval metrics against a plain ranking written out here, against a library, and over processes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.metrics.items import (
    ONE_ROW_BLOCKS,
    as_floats,
    as_set,
    evaluate,
    evaluate_groups,
    make_items,
    on_a_circle,
    ranked_relevance,
    tied_items,
)
from zoo.metrics import RetrievalMetrics, RetrievalScores, nearest, positive_ranks, retrieval, score_queries


def brute_force(
    items: dict[str, Tensor], ks: tuple[int, ...] = (1, 5, 10), map_ks: tuple[int, ...] = (), group: int | None = None
) -> dict[str, float]:
    names = [*(f"rank{k}" for k in ks), "mAP", "mINP", "r_precision", "map_at_r", *(f"mAP@{k}" for k in map_ks)]
    totals = dict.fromkeys(names, 0.0)
    queries = skipped = 0
    for query, relevance in ranked_relevance(items):
        if group is not None and items["groups"][query] != group:
            continue
        relevant = sum(relevance)
        if relevant == 0:
            skipped += 1
            continue
        queries += 1
        hits = 0
        for rank, positive in enumerate(relevance, start=1):
            if not positive:
                continue
            hits += 1
            totals["mAP"] += hits / rank / relevant
            if rank <= relevant:
                totals["r_precision"] += 1 / relevant
                totals["map_at_r"] += hits / rank / relevant
            if hits == relevant:
                totals["mINP"] += relevant / rank
            for k in map_ks:
                if rank <= k:
                    totals[f"mAP@{k}"] += hits / rank / min(k, relevant)
        for k in ks:
            totals[f"rank{k}"] += any(relevance[:k])
    means = {name: total / queries if queries else math.nan for name, total in totals.items()}
    return means | {"queries": queries, "queries_skipped": skipped}


def assert_equals_brute_force(items: dict[str, Tensor], **options: Any) -> dict[str, float]:
    result = evaluate(items, **options)
    assert result == pytest.approx(brute_force(items), abs=1e-6, nan_ok=True)
    return result


# --- numbers


def test_hand_computed() -> None:
    """A query at 0 degrees; the gallery by angle: +, -, +, -, -, + and two of junk in between."""
    items = {
        "embeddings": on_a_circle(0, 10, 20, 30, 40, 50, 60, 5, 25),
        "identities": torch.tensor([1, 1, 2, 1, 2, 3, 1, 1, 1]),
        "cameras": torch.tensor([0, 1, 0, 2, 0, 0, 1, 0, 0]),
        "indices": torch.arange(9),
        "is_query": torch.arange(9) == 0,
    }
    # Positives at ranks 1, 3 and 6: the items at 5 and 25 degrees share identity and camera with the query.
    expected = {
        "rank1": 1.0,
        "rank5": 1.0,
        "rank10": 1.0,
        "mAP": (1 / 1 + 2 / 3 + 3 / 6) / 3,
        "mINP": 3 / 6,
        "r_precision": 2 / 3,
        "map_at_r": (1 / 1 + 2 / 3) / 3,
        "queries": 1.0,
        "queries_skipped": 0.0,
    }
    assert evaluate(items) == pytest.approx(expected, abs=1e-7)
    ((queries, ranks),) = positive_ranks(as_set(items, "is_query"), as_set(items))
    assert queries.tolist() == [0]
    assert ranks.tolist() == [[1, 3, 6]]


def test_hand_computed_first_hit_late() -> None:
    items = {
        "embeddings": on_a_circle(0, 10, 20, 30),
        "identities": torch.tensor([1, 2, 3, 1]),
        "indices": torch.arange(4),
        "is_query": torch.arange(4) == 0,
    }
    result = evaluate(items, ks=(1, 2, 3))
    assert [result[name] for name in ("rank1", "rank2", "rank3")] == [0, 0, 1]
    assert result["mAP"] == result["mINP"] == pytest.approx(1 / 3)
    assert result["r_precision"] == result["map_at_r"] == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cameras", [None, 1, 3])
def test_random(seed: int, cameras: int | None) -> None:
    assert_equals_brute_force(make_items(cameras=cameras, seed=seed))


@pytest.mark.parametrize("block_bytes", [ONE_ROW_BLOCKS, 2_000, 2**26])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(block_bytes: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for items in (make_items(seed=3), tied_items()):
            result = assert_equals_brute_force(items, block_bytes=block_bytes)
            assert result == evaluate(items)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(3))
def test_cameras_of_some_items_only(seed: int) -> None:
    items = make_items(seed=seed)
    items["cameras"] -= 1
    assert (items["cameras"] == -1).any() and (items["cameras"] >= 0).any()
    mixed = assert_equals_brute_force(items)
    # Given in parts, the part without cameras as None.
    without = items["cameras"] == -1
    parts = RetrievalMetrics()
    parts.update(**{name: values[~without] for name, values in items.items()})
    parts.update(**{name: values[without] for name, values in items.items() if name != "cameras"})
    assert as_floats(parts.compute())[0] == mixed
    assert mixed != evaluate(items | {"cameras": items["cameras"] + 1}), "camera 0 would have made junk"


def test_no_camera_equals_camera_minus_one() -> None:
    items = make_items(cameras=None)
    nowhere = torch.full_like(items["identities"], -1)
    assert evaluate(items | {"cameras": nowhere}) == evaluate(items)
    every, none = as_set(items | {"cameras": nowhere}), as_set(items)
    for query, gallery in [(every, none), (none, every), (every, every)]:
        found, expected = nearest(query, gallery, 5), nearest(none, none, 5)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_map_at_k_by_hand() -> None:
    """Positives at ranks 1, 3, 4; the denominator is min(k, 3)."""
    items = {
        "embeddings": on_a_circle(0, 10, 20, 30, 40, 50),
        "identities": torch.tensor([1, 1, 2, 1, 1, 3]),
        "indices": torch.arange(6),
        "is_query": torch.arange(6) == 0,
    }
    result = evaluate(items, map_ks=(1, 2, 3, 10))
    assert result["mAP@1"] == 1
    assert result["mAP@2"] == pytest.approx(1 / 2)
    assert result["mAP@3"] == pytest.approx((1 + 2 / 3) / 3)
    assert result["mAP@10"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3) == pytest.approx(result["mAP"])


@pytest.mark.parametrize("people", [3, 20])
def test_map_at_k_random(people: int) -> None:
    for items in (make_items(people=people, seed=1), tied_items()):
        result = evaluate(items, map_ks=(1, 3, 1000))
        assert result == pytest.approx(brute_force(items, map_ks=(1, 3, 1000)), abs=1e-6)


def test_groups_of_queries() -> None:
    """Each group is scored against the whole gallery; -1 is in none; a group without valid query is nan."""
    items = make_items(count=90, people=8)
    items["groups"] = torch.randint(-1, 3, (90,), generator=torch.Generator().manual_seed(3)) * 5
    items["groups"][items["groups"] < 0] = -1
    alone = int(items["is_query"].nonzero()[0])
    items["identities"][alone], items["groups"][alone] = 99, 77
    overall, groups = evaluate_groups(items, map_ks=(3,))
    assert overall == pytest.approx(brute_force(items, map_ks=(3,)), abs=1e-6)
    assert overall == evaluate({name: v for name, v in items.items() if name != "groups"}, map_ks=(3,))
    for group in (0, 5, 10, 77):
        expected = brute_force(items, map_ks=(3,), group=group)
        assert groups[group] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert set(groups) == {0, 5, 10, 77}
    assert math.isnan(groups[77]["mAP"]) and groups[77]["queries_skipped"] == 1


def test_more_positives_than_negatives() -> None:
    assert_equals_brute_force(make_items(count=200, people=2, cameras=None))


def test_agrees_with_pytorch_metric_learning() -> None:
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    accuracy_calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    items = make_items(count=80, cameras=None)
    items = {name: items[name] for name in ("embeddings", "identities", "indices")}
    theirs = accuracy_calculator.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=inference.CustomKNN(distances.CosineSimilarity()),
    ).get_accuracy(items["embeddings"], items["identities"])
    ours = evaluate(items)
    assert ours["rank1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


# --- ties and copies


def test_massive_ties_and_zero_vectors() -> None:
    assert_equals_brute_force(tied_items())


def test_ties_among_positives_do_not_matter() -> None:
    """Any order of tied positives gives them the same set of ranks, hence the same scores."""
    items = {
        "embeddings": on_a_circle(0, 10, 10, 10, 20),
        "identities": torch.tensor([1, 1, 1, 1, 2]),
        "indices": torch.arange(5),
        "is_query": torch.arange(5) == 0,
    }
    ((_, ranks),) = positive_ranks(as_set(items, "is_query"), as_set(items))
    assert ranks.tolist() == [[1, 2, 3]]
    swapped = items | {"indices": torch.tensor([0, 3, 1, 2, 4])}
    assert evaluate(items) == evaluate(swapped)


def test_copy_of_the_query_is_no_junk() -> None:
    """Only the item itself is left out; the same picture under another index is found or in the way."""
    items = {
        "embeddings": on_a_circle(0, 0, 0, 30),
        "identities": torch.tensor([1, 1, 2, 1]),
        "indices": torch.tensor([5, 2, 9, 4]),
        "is_query": torch.tensor([True, False, False, False]),
    }
    result = assert_equals_brute_force(items)
    assert result["rank1"] == 0  # the copy with another identity ties and stands first
    assert result["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_negative_cosines() -> None:
    items = {
        "embeddings": on_a_circle(0, 100, 120, 150, 170),
        "identities": torch.tensor([1, 1, 1, 2, 2]),
        "indices": torch.arange(5),
        "is_query": torch.arange(5) == 0,
        "is_gallery": torch.arange(5) > 0,
    }
    assert assert_equals_brute_force(items)["mAP"] == 1.0


def test_large_ids_do_not_collide() -> None:
    items = make_items(people=4)
    items["identities"] += 2**24
    items["cameras"] += 2**53
    items["indices"] += 2**62
    assert evaluate(items) == evaluate(make_items(people=4))


# --- nothing to find


def test_query_without_positive_is_counted() -> None:
    items = {
        "embeddings": on_a_circle(0, 10, 20),
        "identities": torch.tensor([1, 1, 2]),
        "indices": torch.arange(3),
    }
    result = assert_equals_brute_force(items)
    assert (result["queries"], result["queries_skipped"]) == (2, 1)


@pytest.mark.parametrize("case", ["one image", "constant camera", "no query", "no gallery"])
def test_no_valid_query_gives_nan_and_counts(case: str) -> None:
    items = make_items(count=1 if case == "one image" else 12)
    if case == "constant camera":
        items["cameras"] = torch.zeros(12, dtype=torch.int64)
    items["is_query"][:] = case != "no query"
    items["is_gallery"][:] = case != "no gallery"
    result = assert_equals_brute_force(items)
    assert math.isnan(result["mAP"]) and math.isnan(result["rank1"])
    assert result["queries"] == 0
    assert result["queries_skipped"] == items["is_query"].sum()


def test_nothing_at_all_is_refused() -> None:
    metrics = RetrievalMetrics()
    metrics.update(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 items"):
        metrics.compute()


# --- what is refused


def test_not_finite_is_refused_by_index() -> None:
    items = make_items(count=5)
    items["embeddings"][1, 2] = torch.nan
    items["embeddings"][4, 0] = torch.inf
    first, second = items["indices"][1].item(), items["indices"][4].item()
    metrics = RetrievalMetrics()
    with pytest.raises(ValueError, match=rf"\[{first}, {second}\] are nan"):
        metrics.update(**items)
    assert not metrics.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identities": torch.zeros(5)}, "identities are torch.float32"),
        ({"indices": torch.arange(4)}, r"indices have shape \(4,\) beside 5"),
        ({"embeddings": torch.ones(5)}, r"embeddings have shape \(5,\)"),
        ({"is_query": torch.ones(5)}, "is_query is torch.float32"),
        ({"groups": torch.ones(5)}, "groups are torch.float32"),
        ({"groups": torch.arange(4)}, r"groups are torch.int64 of shape \(4,\)"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalMetrics().update(**make_items(count=5) | change)


def test_one_index_for_two_items_is_refused() -> None:
    """As when queries and gallery are each numbered from 0."""
    metrics = RetrievalMetrics()
    items = make_items(count=4)
    metrics.update(**items)
    metrics.update(**items | {"identities": items["identities"] + 1})
    with pytest.raises(ValueError, match="Number queries and gallery together"):
        metrics.compute()


@pytest.mark.parametrize("column", ["identities", "cameras", "groups"])
def test_one_index_with_two_values_is_refused(column: str) -> None:
    items = make_items(count=4)
    items["groups"] = torch.zeros(4, dtype=torch.int64)
    metrics = RetrievalMetrics()
    metrics.update(**items)
    metrics.update(**items | {column: items[column] + 1})
    with pytest.raises(ValueError, match="or for two cameras or groups"):
        metrics.compute()


def test_two_widths_are_refused() -> None:
    metrics = RetrievalMetrics()
    metrics.update(**make_items(width=6))
    with pytest.raises(ValueError, match="4 wide after some of 6"):
        metrics.update(**make_items(width=4))


@pytest.mark.parametrize("options", [{"ks": ()}, {"ks": (0, 1)}, {"kss": (1,)}, {"map_ks": (0,)}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ks"):
        RetrievalMetrics(**options)


# --- the metric as a whole


def test_order_and_batches_do_not_change_a_bit() -> None:
    items = make_items(count=200, width=33)
    whole = evaluate(items)
    shuffled = RetrievalMetrics(compute_on_cpu=True)
    for part in torch.randperm(200, generator=torch.Generator().manual_seed(2)).split(7):
        shuffled.update(**{name: values[part] for name, values in items.items()})
    assert as_floats(shuffled.compute())[0] == whole


def test_the_same_index_counts_once() -> None:
    items = make_items()
    twice = {name: torch.cat([values, values[:20]]) for name, values in items.items()}
    assert evaluate(twice) == evaluate(items)


def test_roles_of_one_item_add_up() -> None:
    items = make_items()
    split = RetrievalMetrics()
    for query, gallery in [(True, False), (False, True)]:
        roles = {"is_query": items["is_query"] & query, "is_gallery": items["is_gallery"] & gallery}
        split.update(**items | roles)
    assert as_floats(split.compute())[0] == evaluate(items)


def test_half_precision_and_buffer_reuse() -> None:
    items = make_items()
    items["embeddings"] = (100 * items["embeddings"]).bfloat16()
    metrics = RetrievalMetrics()
    metrics.update(**items)
    expected = brute_force(items)
    assert metrics.embeddings[0].dtype == torch.float32
    as_float = items | {"embeddings": items["embeddings"].float()}
    metrics.reset()
    metrics.update(**as_float)
    as_float["embeddings"].zero_()
    assert as_floats(metrics.compute())[0] == pytest.approx(expected, abs=1e-6)


def test_forward_gives_the_batch_and_keeps_the_rest() -> None:
    items = make_items()
    metrics = RetrievalMetrics()
    parts = [{name: values[part] for name, values in items.items()} for part in torch.arange(60).split(30)]
    for part in parts:
        assert metrics(**part).total["mAP"].item() == pytest.approx(brute_force(part)["mAP"], abs=1e-6)
    assert metrics.compute().total["mAP"].item() == pytest.approx(brute_force(items)["mAP"], abs=1e-6)


def test_training_precision_does_not_leak_in() -> None:
    items = make_items(count=100, width=64)
    expected = evaluate(items)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert evaluate(items) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_scores_of_each_query() -> None:
    items = make_items()
    scores = score_queries(as_set(items, "is_query"), as_set(items, "is_gallery"), ks=(1,))
    for row, (_, relevance) in enumerate(ranked_relevance(items)):
        expected = float(relevance[0]) if any(relevance) else math.nan
        assert scores["rank1"][row].item() == pytest.approx(expected, nan_ok=True)


# --- processes


def _record_share(shares: list[int]) -> Any:
    """`score_queries` that notes how many queries it has scored."""

    def noted(*args: Any, **options: Any) -> dict[str, Tensor]:
        scores = score_queries(*args, **options)
        shares.append(int((~scores["mAP"].isnan()).sum()))
        return scores

    return noted


def _evaluate_shard(rank: int, folder: str, processes: int) -> None:
    """All processes with data, one of them without, and a group of two of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    items = items_of_all_processes()
    pair = dist.new_group([0, 1])
    thirds, halves = [range(0, 10), range(10, 60), range(60, 90)], [range(45, 90), range(0, 45)]
    shards = {
        "all": (thirds if processes == 3 else halves, None),
        "empty": ([range(0, 90), range(0, 0), range(50, 90)], None),  # items of rank 2 come twice
        "two": ([*halves, range(0)], pair),
    }
    shares: list[int] = []
    retrieval.score_queries = _record_share(shares)
    for name, (parts, group) in shards.items():
        if group is not None and rank == 2:
            continue
        metrics = RetrievalMetrics(map_ks=(3,), block_bytes=4_000, process_group=group)
        for start in range(0, len(parts[rank]), 8):
            part = list(parts[rank][start : start + 8])
            metrics.update(**{key: values[part] for key, values in items.items()})
        before = len(metrics.records)
        torch.save((tuple(metrics.compute()), shares[-1]), Path(folder) / f"{name}_{rank}.pt")
        assert len(metrics.records) == before  # each process has its own shard back
    dist.destroy_process_group()


def items_of_all_processes() -> dict[str, Tensor]:
    items = make_items(count=90, width=17)
    return items | {"groups": items["identities"] % 3 - 1, "cameras": items["cameras"] - 1}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_agree_to_the_bit(tmp_path: Path, processes: int) -> None:
    # A fork server imports the libraries once for all, and has no threads yet that a fork would lose.
    mp.get_context("forkserver").set_forkserver_preload(["zoo.metrics", "pytest"])
    mp.start_processes(_evaluate_shard, args=(str(tmp_path), processes), nprocs=processes, start_method="forkserver")
    expected = evaluate_groups(items_of_all_processes(), map_ks=(3,), block_bytes=4_000)
    queries = expected[0]["queries"]
    assert queries > 20 and "mAP@3" in expected[1][1]
    for name, count in (("all", processes), ("empty", processes), ("two", 2)):
        results = [torch.load(tmp_path / f"{name}_{rank}.pt") for rank in range(count)]
        for scores, share in results:
            assert as_floats(RetrievalScores(*scores)) == expected, name
            assert 0 < share < queries  # each has scored a part
        assert sum(share for _, share in results) == queries
