"""Retrieval metrics against a plain ranking written out here, against a library, and over processes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.metrics import (
    TIE_WIDTH,
    EmbeddingSet,
    RetrievalMetrics,
    nearest,
    positive_ranks,
    score_queries,
    similarity_blocks,
    similarity_histogram,
    unit_norm,
)

ONE_ROW_BLOCKS = 1


def make_items(
    count: int = 60, people: int = 7, cameras: int | None = 3, width: int = 6, seed: int = 0
) -> dict[str, Tensor]:
    """Random items as `RetrievalMetrics.update` takes them: some query, some gallery, some both."""
    draw = torch.Generator().manual_seed(seed)
    identities = torch.randint(people, (count,), generator=draw)
    centres = torch.randn(people, width, generator=draw)
    noise = torch.randn(count, width, generator=draw)
    items = {
        "embeddings": centres[identities] + 1.5 * noise,
        "identities": identities,
        "indices": torch.randperm(10 * count, generator=draw)[:count],
        "is_query": torch.rand(count, generator=draw) < 0.5,
        "is_gallery": torch.rand(count, generator=draw) < 0.8,
    }
    if cameras is not None:
        items["cameras"] = torch.randint(cameras, (count,), generator=draw)
    return items


def evaluate(items: dict[str, Tensor], **options: Any) -> dict[str, float]:
    metrics = RetrievalMetrics(**options)
    metrics.update(**items)
    return {name: value.item() for name, value in metrics.compute().items()}


def as_set(items: dict[str, Tensor], role: str | None = None) -> EmbeddingSet:
    everything = EmbeddingSet(
        unit_norm(items["embeddings"]), items["identities"], items["indices"], items.get("cameras")
    )
    return everything if role is None else everything.select(items[role])


def ranked_relevance(items: dict[str, Tensor]) -> Iterator[tuple[int, list[bool]]]:
    """For each query: its position and, from the best gallery item to the worst, whether it is a positive."""
    rows = items["embeddings"].double().numpy()
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    identity, index = items["identities"].tolist(), items["indices"].tolist()
    camera = items["cameras"].tolist() if "cameras" in items else None
    everyone = [True] * len(rows)
    is_query = items["is_query"].tolist() if "is_query" in items else everyone
    is_gallery = items["is_gallery"].tolist() if "is_gallery" in items else everyone
    for q in range(len(rows)):
        if not is_query[q]:
            continue
        ranking_keys = []
        for g in range(len(rows)):
            same = identity[g] == identity[q]
            seen_there = camera is not None and camera[g] == camera[q]
            if not is_gallery[g] or index[g] == index[q] or (same and seen_there):
                continue
            score = float(rows[q] @ rows[g])
            # Pessimistic: a positive stands behind every negative that is as good.
            ranking_keys.append((-(score - TIE_WIDTH), 1, True) if same else (-score, 0, False))
        yield q, [positive for _, _, positive in sorted(ranking_keys)]


def brute_force(items: dict[str, Tensor], ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    totals = dict.fromkeys([*(f"rank{k}" for k in ks), "mAP", "mINP", "r_precision", "map_at_r"], 0.0)
    queries = skipped = 0
    for _, relevance in ranked_relevance(items):
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
        for k in ks:
            totals[f"rank{k}"] += any(relevance[:k])
    means = {name: total / queries if queries else math.nan for name, total in totals.items()}
    return means | {"queries": queries, "queries_skipped": skipped}


def assert_equals_brute_force(items: dict[str, Tensor], **options: Any) -> dict[str, float]:
    result = evaluate(items, **options)
    assert result == pytest.approx(brute_force(items), abs=1e-6, nan_ok=True)
    return result


def on_a_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


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


def tied_items() -> dict[str, Tensor]:
    items = make_items(width=3, seed=5)
    items["embeddings"] = torch.randint(-1, 2, (60, 3), generator=torch.Generator().manual_seed(1)).float()
    items["embeddings"][::20] = 0
    return items


def test_massive_ties_and_zero_vectors() -> None:
    assert_equals_brute_force(tied_items())


@pytest.mark.parametrize("block_bytes", [ONE_ROW_BLOCKS, 20_000, 2**26])
def test_collapsed_encoder_ranks_last(block_bytes: int) -> None:
    """Also where float32 products of identical vectors differ in the last bit, as they do between kernels."""
    row = torch.randn(1, 513, generator=torch.Generator().manual_seed(0))
    items = EmbeddingSet(unit_norm(row).repeat(101, 1), torch.arange(101) % 10, torch.arange(101))
    for queries, ranks in positive_ranks(items, items, block_bytes):
        for query, row_ranks in zip(queries.tolist(), ranks.tolist(), strict=True):
            positives = 10 if query % 10 == 0 else 9
            negatives = 100 - positives
            assert row_ranks[:positives] == list(range(negatives + 1, negatives + positives + 1))


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


def test_cameras_in_some_updates_only_are_refused() -> None:
    metrics = RetrievalMetrics()
    metrics.update(**make_items(count=4))
    later = make_items(count=4, cameras=None)
    metrics.update(**later | {"indices": later["indices"] + 1000})
    with pytest.raises(ValueError, match="4 of 8 items have no camera"):
        metrics.compute()


def test_two_widths_are_refused() -> None:
    metrics = RetrievalMetrics()
    metrics.update(**make_items(width=6))
    with pytest.raises(ValueError, match="4 wide after some of 6"):
        metrics.update(**make_items(width=4))


def test_raw_embeddings_are_refused_by_the_core() -> None:
    raw = EmbeddingSet(2 * torch.eye(3), torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="has length 2, not 1"):
        nearest(raw, raw, k=1)
    half = EmbeddingSet(torch.eye(3).half(), torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="float16"):
        next(similarity_blocks(half, half))


@pytest.mark.parametrize("options", [{"ks": ()}, {"ks": (0, 1)}, {"kss": (1,)}])
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
    assert {name: value.item() for name, value in shuffled.compute().items()} == whole


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
    assert {name: value.item() for name, value in split.compute().items()} == evaluate(items)


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
    assert {k: v.item() for k, v in metrics.compute().items()} == pytest.approx(expected, abs=1e-6)


def test_forward_gives_the_batch_and_keeps_the_rest() -> None:
    items = make_items()
    metrics = RetrievalMetrics()
    parts = [{name: values[part] for name, values in items.items()} for part in torch.arange(60).split(30)]
    for part in parts:
        assert metrics(**part)["mAP"].item() == pytest.approx(brute_force(part)["mAP"], abs=1e-6)
    assert metrics.compute()["mAP"].item() == pytest.approx(brute_force(items)["mAP"], abs=1e-6)


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


# --- neighbours and histogram


@pytest.mark.parametrize("block_bytes", [ONE_ROW_BLOCKS, 3_000, 2**26])
def test_nearest(block_bytes: int) -> None:
    items = make_items()
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")
    scores, positions = nearest(query, gallery, k=5, block_bytes=block_bytes)
    similarity = query.embeddings.double() @ gallery.embeddings.double().T
    assert query.cameras is not None and gallery.cameras is not None
    junk = query.identities[:, None] == gallery.identities
    junk &= query.cameras[:, None] == gallery.cameras
    junk |= query.indices[:, None] == gallery.indices
    expected = similarity.masked_fill(junk, -torch.inf).sort(dim=1, descending=True)
    assert torch.equal(positions, expected.indices[:, :5])
    assert torch.allclose(scores.double(), expected.values[:, :5], atol=1e-6)


def test_nearest_with_too_few() -> None:
    items = EmbeddingSet(on_a_circle(0, 10, 25), torch.tensor([1, 1, 2]), torch.arange(3))
    scores, positions = nearest(items, items, k=5)
    assert positions.tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1], [1, 0, -1, -1, -1]]
    assert (scores[:, 2:] == -torch.inf).all()
    with pytest.raises(ValueError, match="k is 0"):
        nearest(items, items, k=0)


@pytest.mark.parametrize("block_bytes", [ONE_ROW_BLOCKS, 3_000, 2**26])
def test_histogram(block_bytes: int) -> None:
    items = make_items()
    items["embeddings"][7] = items["embeddings"][3]  # a similarity of 1 belongs to the last bin
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")
    histogram = similarity_histogram(query, gallery, bins=20, block_bytes=block_bytes)
    positive, negative = np.zeros(20, int), np.zeros(20, int)
    for q in range(len(query)):
        for g in range(len(gallery)):
            score = float(query.embeddings[q].double() @ gallery.embeddings[g].double())
            place = min(19, int((score + 1) * 10))
            same = bool(query.identities[q] == gallery.identities[g])
            junk = bool(query.indices[q] == gallery.indices[g])
            assert query.cameras is not None and gallery.cameras is not None
            junk |= same and bool(query.cameras[q] == gallery.cameras[g])
            if not junk:
                (positive if same else negative)[place] += 1
    assert histogram.positive.tolist() == positive.tolist()
    assert histogram.negative.tolist() == negative.tolist()
    assert len(histogram.edges) == 21


# --- memory


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("people", [1, 300])
@pytest.mark.parametrize("function", [score_queries, lambda q, g, block_bytes: nearest(q, g, 5, block_bytes)])
def test_memory_is_bounded(people: int, function: Any) -> None:
    """The whole matrix would be 1 MB. With one identity every gallery item is a positive of every query."""
    items = as_set(make_items(count=500, people=people, cameras=None, width=4))
    budget = 2**18
    with LargestTensor() as seen:
        function(items, items, block_bytes=budget)
    assert 2**16 <= seen.largest <= budget


# --- processes


def _evaluate_shard(rank: int, folder: str) -> None:
    """Three processes: all with data, one of them without, and a group of two of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    items = make_items(count=90, width=17)
    pair = dist.new_group([0, 1])
    shards = {
        "three": ([range(0, 10), range(10, 60), range(60, 90)], None),
        "empty": ([range(0, 55), range(0, 0), range(50, 90)], None),  # five items come twice
        "two": ([range(45, 90), range(0, 45), range(0, 0)], pair),
    }
    for name, (parts, group) in shards.items():
        if group is not None and rank == 2:
            continue
        metrics = RetrievalMetrics(process_group=group)
        for start in range(0, len(parts[rank]), 8):
            part = list(parts[rank][start : start + 8])
            metrics.update(**{key: values[part] for key, values in items.items()})
        before = len(metrics.records)
        torch.save(metrics.compute(), Path(folder) / f"{name}_{rank}.pt")
        assert len(metrics.records) == before  # each process has its own shard back
    dist.destroy_process_group()


def test_processes_agree_to_the_bit(tmp_path: Path) -> None:
    # A fork server imports the libraries once for all three, and has no threads yet that a fork would lose.
    mp.get_context("forkserver").set_forkserver_preload(["zoo.metrics", "pytest"])
    mp.start_processes(_evaluate_shard, args=(str(tmp_path),), nprocs=3, start_method="forkserver")
    expected = evaluate(make_items(count=90, width=17))
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 3 + 3 + 2
    for file in files:
        assert {name: value.item() for name, value in torch.load(file).items()} == expected, file.name
