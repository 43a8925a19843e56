"""Blocks of scores, neighbours and histograms against plain matrices."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.metrics.items import ONE_ROW_BLOCKS, LargestTensor, as_set, make_items, on_a_circle
from zoo.metrics import (
    EmbeddingSet,
    nearest,
    positive_ranks,
    score_queries,
    scored_blocks,
    similarity_blocks,
    unit_norm,
)


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


def test_raw_embeddings_are_refused_by_the_core() -> None:
    raw = EmbeddingSet(2 * torch.eye(3), torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="has length 2, not 1"):
        nearest(raw, raw, k=1)
    half = EmbeddingSet(torch.eye(3).half(), torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="float16"):
        next(similarity_blocks(half, half))


def test_shards_are_the_whole() -> None:
    """Every block comes in one shard, with the same bits."""
    items = as_set(make_items(count=50, width=33))
    whole = [(b.queries, b.similarity.clone()) for b in similarity_blocks(items, items, 1_000)]
    assert len(whole) > 6
    for processes in (1, 2, 3, 99):
        dealt = [list[tuple[Tensor, Tensor]]() for _ in range(processes)]
        for mine in range(processes):
            blocks = similarity_blocks(items, items, 1_000, shard=(mine, processes))
            dealt[mine] = [(b.queries, b.similarity.clone()) for b in blocks]
        assert sum(map(len, dealt)) == len(whole)
        for number, (queries, similarity) in enumerate(whole):
            got = dealt[number % processes][number // processes]
            assert torch.equal(got[0], queries) and torch.equal(got[1], similarity)


def test_scores_of_another_kind_are_ranked() -> None:
    """Blocks of negated similarity rank from the worst to the best, junk being left out as always."""
    items = make_items()
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")

    def worst(queries: Tensor, out: Tensor) -> None:
        out.copy_(-(query.embeddings[queries] @ gallery.embeddings.T))

    opposite = EmbeddingSet(-query.embeddings, query.identities, query.indices, query.cameras)
    expected = score_queries(opposite, gallery, map_ks=(3,))
    scores = score_queries(query, gallery, map_ks=(3,), blocks=scored_blocks(query, gallery, worst, 2_000))
    for name, values in expected.items():
        assert torch.allclose(values, scores[name], rtol=0, atol=1e-12, equal_nan=True), name
    found = nearest(query, gallery, 4, blocks=scored_blocks(query, gallery, worst))
    assert torch.equal(found[1], nearest(opposite, gallery, 4)[1])


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


@pytest.mark.parametrize("people", [1, 300])
@pytest.mark.parametrize("function", [score_queries, lambda q, g, block_bytes: nearest(q, g, 5, block_bytes)])
def test_memory_is_bounded(people: int, function: Any) -> None:
    """The whole matrix would be 1 MB. With one identity every gallery item is a positive of every query."""
    items = as_set(make_items(count=500, people=people, cameras=None, width=4))
    budget = 2**18
    with LargestTensor() as seen:
        function(items, items, block_bytes=budget)
    assert 2**16 <= seen.largest <= budget
