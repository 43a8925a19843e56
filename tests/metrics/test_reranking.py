"""Sparse re-ranking against a dense one written out here, and query expansion by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.metrics.items import LargestTensor, as_set, make_items, on_a_circle
from zoo.metrics import (
    EmbeddingSet,
    expand_database,
    expand_queries,
    nearest,
    positive_ranks,
    reranked_blocks,
    score_queries,
    unit_norm,
)


def dense_distance(rows: np.ndarray, k1: int, k2: int, lambda_: float) -> np.ndarray:
    """Final distance of every item to every item, `(N, N)`: the paper's sets and vectors, one item at a time."""
    count = len(rows)
    similarity = rows.astype(np.float64) @ rows.T.astype(np.float64)
    distance = np.maximum(0, 2 - 2 * similarity)
    np.fill_diagonal(distance, 0)
    distance /= np.maximum(distance.max(axis=1, keepdims=True), 1e-12)
    # Itself first, then by similarity, then by position; float32, so that what should tie does.
    keys = similarity.astype(np.float32)
    np.fill_diagonal(keys, np.inf)
    ranking = [sorted(range(count), key=lambda other: (-keys[item, other], other)) for item in range(count)]

    def reciprocal(item: int, k: int) -> set[int]:
        return {other for other in ranking[item][: k + 1] if item in ranking[other][: k + 1]}

    vectors = np.zeros((count, count))
    for item in range(count):
        own = reciprocal(item, k1)
        members = set(own)
        for candidate in own:
            further = reciprocal(candidate, round(k1 / 2))
            if len(further & own) > 2 / 3 * len(further):
                members |= further
        chosen = sorted(members)
        vectors[item, chosen] = np.exp(-distance[item, chosen])
    vectors /= vectors.sum(axis=1, keepdims=True)
    vectors = np.stack([vectors[ranking[item][:k2]].mean(axis=0) for item in range(count)])
    jaccard = np.empty((count, count))
    for item in range(count):
        smaller = np.minimum(vectors[item], vectors).sum(axis=1)
        larger = np.maximum(vectors[item], vectors).sum(axis=1)
        jaccard[item] = 1 - smaller / larger
    return lambda_ * distance + (1 - lambda_) * jaccard


def rerank(query: EmbeddingSet, gallery: EmbeddingSet, *options: float, block_bytes: int = 2**26) -> Tensor:
    scores = torch.full((len(query), len(gallery)), torch.nan)
    for block in reranked_blocks(query, gallery, *options, block_bytes=block_bytes):  # type: ignore[arg-type]
        scores[block.queries] = block.similarity
    return scores


def two_sides(count: int, queries: int, width: int = 8, seed: int = 0) -> tuple[EmbeddingSet, EmbeddingSet]:
    items = as_set(make_items(count=count, people=6, width=width, seed=seed))
    return items.select(torch.arange(queries)), items.select(torch.arange(queries, count))


def both(query: EmbeddingSet, gallery: EmbeddingSet) -> np.ndarray:
    return torch.cat([query.embeddings, gallery.embeddings]).numpy()


# k1 of 5 halves to 2, of 7 to 4: rounded to even.
@pytest.mark.parametrize("options", [(20, 6, 0.3), (5, 3, 0.3), (7, 1, 0.0), (4, 30, 0.9), (1, 2, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_dense_reference(options: tuple[int, int, float], seed: int) -> None:
    query, gallery = two_sides(90, 20, seed=seed)
    expected = dense_distance(both(query, gallery), *options)[:20, 20:]
    assert np.allclose(rerank(query, gallery, *options).numpy(), -expected, atol=2e-6)


@pytest.mark.parametrize("count", [2, 3, 10, 21])
def test_fewer_items_than_neighbours(count: int) -> None:
    query, gallery = two_sides(count, 1)
    expected = dense_distance(both(query, gallery), 20, 6, 0.3)[:1, 1:]
    assert np.allclose(rerank(query, gallery).numpy(), -expected, atol=2e-6)


@pytest.mark.parametrize("block_bytes", [1, 20_000])
def test_blocks_change_nothing(block_bytes: int) -> None:
    query, gallery = two_sides(90, 20)
    assert torch.allclose(rerank(query, gallery, block_bytes=block_bytes), rerank(query, gallery), atol=1e-6)


@pytest.mark.parametrize("options", [(20, 6, 0.3), (5, 3, 0.3)])
def test_copies_of_items(options: tuple[int, int, float]) -> None:
    """Copies among the queries, in the gallery, and across; nine of one, more than a list of 5 + 1 holds."""
    items = make_items(count=90, width=8)
    rows = items["embeddings"]
    rows[30:38], rows[1], rows[50], rows[60] = rows[38], rows[2], rows[3], rows[61]
    everything = as_set(items)
    query, gallery = everything.select(torch.arange(20)), everything.select(torch.arange(20, 90))
    expected = dense_distance(both(query, gallery), *options)[:20, 20:]
    assert np.allclose(rerank(query, gallery, *options).numpy(), -expected, atol=2e-6)


def test_an_item_on_both_sides_stands_once() -> None:
    items = as_set(make_items(count=60, width=8))
    expected = dense_distance(items.embeddings.numpy(), 10, 4, 0.3)
    assert np.allclose(rerank(items, items, 10, 4, 0.3).numpy(), -expected, atol=2e-6)
    # Half of them on both sides, in another order: neighbours tie nowhere, so positions do not matter.
    query, gallery = items.select(torch.arange(40)), items.select(torch.arange(59, 19, -1))
    assert np.allclose(rerank(query, gallery, 10, 4, 0.3).numpy(), -expected[:40, 59:19:-1], atol=2e-6)


def test_original_distance_alone_keeps_the_ranking() -> None:
    query, gallery = two_sides(90, 20)
    plain, again = (
        score_queries(query, gallery),
        score_queries(query, gallery, blocks=reranked_blocks(query, gallery, 20, 6, 1.0)),
    )
    for name, values in plain.items():
        assert torch.allclose(values, again[name], equal_nan=True), name


def test_junk_is_left_out_afterwards() -> None:
    """Same ranks as from the dense distance with junk removed; junk helps as a neighbour all the same."""
    items = make_items(count=90, width=8)
    everything = as_set(items)
    query, gallery = everything.select(torch.arange(20)), everything.select(torch.arange(20, 90))
    distance = dense_distance(both(query, gallery), 20, 6, 0.3)[:20, 20:]
    assert query.cameras is not None and gallery.cameras is not None
    for queries, ranks in positive_ranks(query, gallery, blocks=reranked_blocks(query, gallery)):
        for q, row in zip(queries.tolist(), ranks.tolist(), strict=True):
            same = (gallery.identities == query.identities[q]).numpy()
            junk = same & (gallery.cameras == query.cameras[q]).numpy()
            order = [g for g in distance[q].argsort() if not junk[g]]
            assert [rank for rank in row if rank] == [n for n, g in enumerate(order, start=1) if same[g]]
    scores, positions = nearest(query, gallery, 3, blocks=reranked_blocks(query, gallery))
    assert torch.isfinite(scores).all() and (positions >= 0).all()


def test_it_helps_where_neighbours_agree() -> None:
    """Noisy identities of thirty images each."""
    items = make_items(count=300, people=10, cameras=None, width=16, seed=4)
    everything = as_set(items)
    plain = score_queries(everything, everything)["mAP"].nanmean()
    better = score_queries(everything, everything, blocks=reranked_blocks(everything, everything))["mAP"].nanmean()
    assert better > plain + 0.02


def test_collapsed_encoder_still_scores_badly() -> None:
    row = unit_norm(torch.randn(1, 33, generator=torch.Generator().manual_seed(0)))
    items = EmbeddingSet(row.repeat(200, 1), torch.arange(200) // 10, torch.arange(200))
    scores = score_queries(items, items, blocks=reranked_blocks(items, items))
    assert torch.isfinite(scores["mAP"]).all()
    assert scores["mAP"].mean() < 0.2


def test_zero_vectors_have_a_distance() -> None:
    items = make_items(count=90, width=8)
    items["embeddings"][::30] = 0
    everything = as_set(items)
    scores = rerank(everything, everything)
    assert scores.isfinite().all() and scores.min() >= -1 - 1e-6 and scores.max() <= 1e-6


def test_memory_is_bounded() -> None:
    """A matrix of all items would be 16 MB, in float32."""
    items = as_set(make_items(count=2000, people=300, cameras=None, width=4))
    budget = 2**19
    tracemalloc.start()
    with LargestTensor() as seen:
        for _ in reranked_blocks(items, items, k1=10, block_bytes=budget):
            pass
    _, peak = tracemalloc.get_traced_memory()  # of NumPy
    tracemalloc.stop()
    assert seen.largest <= budget
    assert peak < 4 * 2000**2 / 3


@pytest.mark.parametrize("options", [(0, 6, 0.3), (20, 0, 0.3), (20, 6, 1.5)])
def test_wrong_options_are_refused(options: tuple[int, int, float]) -> None:
    query, gallery = two_sides(10, 2)
    with pytest.raises(ValueError, match="lambda_"):
        next(reranked_blocks(query, gallery, *options))


def test_nothing_to_rank() -> None:
    query, gallery = two_sides(10, 2)
    nobody = query.select(torch.arange(0))
    assert not list(reranked_blocks(nobody, gallery)) and not list(reranked_blocks(query, nobody))


# --- query expansion


def test_expansion_by_hand() -> None:
    """Neighbours at 30 and 60 degrees with weights cos^2: 3/4 and 1/4; the one at 180 has none."""
    items = EmbeddingSet(on_a_circle(0, 30, 60, 180), torch.arange(4), torch.arange(4))
    query = items.select(torch.arange(1))
    expanded = expand_queries(query, items, k=3, alpha=2).embeddings[0]
    expected = sum(w * on_a_circle(a)[0] for w, a in ((1, 0), (3 / 4, 30), (1 / 4, 60)))
    assert torch.allclose(expanded, expected / expected.norm(), atol=1e-6)
    # At alpha 0 all count alike, the opposite one as well.
    mean = on_a_circle(0, 30, 60, 180).sum(0)
    assert torch.allclose(expand_queries(query, items, 9, 0).embeddings[0], mean / mean.norm(), atol=1e-6)


def test_expansion_knows_no_identities_and_no_cameras() -> None:
    items = make_items()
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")
    expected = expand_queries(query, gallery, 5).embeddings
    shuffled = EmbeddingSet(gallery.embeddings, gallery.identities.flip(0), gallery.indices, gallery.cameras)
    assert torch.equal(expand_queries(query, shuffled, 5).embeddings, expected)
    similarity = query.embeddings @ gallery.embeddings.T
    similarity.masked_fill_(query.indices[:, None] == gallery.indices, -torch.inf)
    best = similarity.topk(5, dim=1)
    weights = best.values.clamp(min=0) ** 3
    by_hand = query.embeddings + (weights[..., None] * gallery.embeddings[best.indices]).sum(1)
    assert torch.allclose(expected, unit_norm(by_hand), atol=1e-6)


def test_expansion_keeps_everything_else() -> None:
    items = as_set(make_items())
    expanded = expand_database(items, k=5)
    assert torch.equal(expanded.embeddings, expand_queries(items, items, 5).embeddings)
    assert torch.equal(expanded.indices, items.indices) and torch.equal(expanded.identities, items.identities)
    assert expanded.cameras is not None and items.cameras is not None
    assert torch.equal(expanded.cameras, items.cameras)
    assert torch.allclose(expanded.embeddings.norm(dim=1), torch.ones(len(items)))
    assert expand_queries(items, items, k=0) is items
    assert math.isfinite(float(expand_queries(items, items.select(torch.arange(2)), 9).embeddings.sum()))
    with pytest.raises(ValueError, match="k is -1"):
        expand_queries(items, items, k=-1)
