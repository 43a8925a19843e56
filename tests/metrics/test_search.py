"""Search in large galleries: exact equals `nearest`, FAISS finds most of it, files come back as they were."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.metrics.items import LargestTensor
from zoo.metrics import EmbeddingSet, VectorIndex, exact_search, nearest, unit_norm

APPROXIMATE = {"ivf": 0.9, "hnsw": 0.95, "ivfpq": 0.5}


def make_vectors(count: int = 700, width: int = 16, seed: int = 0) -> Tensor:
    """Around 60 centres, as embeddings of identities are."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, width, generator=draw)
    return unit_norm(centres[torch.arange(count) % 60] + 0.5 * torch.randn(count, width, generator=draw))


def in_shards(vectors: Tensor) -> list[np.ndarray | Tensor]:
    return [vectors[:100].numpy(), vectors[100:100].numpy(), vectors[100:101], vectors[101:].numpy()]


def expected_neighbours(vectors: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    everything = EmbeddingSet(vectors, torch.arange(len(vectors)), torch.arange(len(vectors)))
    return nearest(everything.select(rows), everything, k)


@pytest.mark.parametrize("block_bytes", [1, 3_000, 2**26])
def test_exact_equals_nearest(block_bytes: int) -> None:
    vectors, rows = make_vectors(250), torch.arange(0, 250, 7)
    scores, positions = exact_search(vectors[rows], in_shards(vectors), 5, rows, block_bytes)
    expected = expected_neighbours(vectors, rows, 5)
    assert torch.equal(positions, expected[1])
    assert torch.allclose(scores, expected[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_exact_kinds_equal_nearest(kind: Any) -> None:
    vectors, rows = make_vectors(), torch.arange(3, 700, 7)
    if kind == "flat":
        pytest.importorskip("faiss")
    index = VectorIndex.build(in_shards(vectors), kind)
    scores, positions = index.search(vectors[rows], 5, exclude=rows)
    expected = expected_neighbours(vectors, rows, 5)
    assert torch.equal(positions, expected[1])
    assert torch.allclose(scores, expected[0], atol=1e-6)
    strangers = make_vectors(20, seed=1)
    found = index.search(strangers, 4)[1]
    assert torch.equal(found, (strangers @ vectors.T).topk(4).indices)
    assert len(index) == 700


def test_without_exclusion_an_item_finds_itself() -> None:
    vectors, rows = make_vectors(), torch.arange(10)
    assert torch.equal(exact_search(vectors[rows], [vectors], 1)[1][:, 0], rows)
    exclude = torch.tensor([0, -1] * 5)
    found = exact_search(vectors[rows], [vectors], 1, exclude)[1][:, 0]
    assert torch.equal(found[1:], rows[1:]) and found[0] != 0  # -1, or another row, leaves it in


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_copy_is_found_where_the_row_is_excluded(kind: Any) -> None:
    """By its index and not as the first of the list; also where copies fill the whole list."""
    if kind == "flat":
        pytest.importorskip("faiss")
    vectors = make_vectors(50)
    vectors[10:30] = vectors[5]
    rows = torch.arange(50)
    _, positions = VectorIndex.build([vectors], kind).search(vectors, 3, exclude=rows)
    assert not (positions == rows[:, None]).any()
    copies = {5, *range(10, 30)}
    assert all(set(positions[row].tolist()) <= copies for row in copies)
    assert all(len(set(row)) == 3 for row in positions.tolist())


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_too_few_vectors(kind: Any) -> None:
    if kind != "exact":
        pytest.importorskip("faiss")
    vectors = make_vectors(3)
    scores, positions = VectorIndex.build([vectors], kind).search(vectors, 5, exclude=torch.arange(3))
    assert (positions[:, 2:] == -1).all() and (scores[:, 2:] == -torch.inf).all()
    assert [sorted(row[:2]) for row in positions.tolist()] == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_kinds_find_most(kind: Any) -> None:
    pytest.importorskip("faiss")
    vectors, rows = make_vectors(6000, 32), torch.arange(0, 6000, 31)
    index = VectorIndex.build(in_shards(vectors), kind)
    scores, positions = index.search(vectors[rows], 10, exclude=rows)
    best = exact_search(vectors[rows], [vectors], 10, rows)[1]
    recall = (positions[:, :, None] == best[:, None]).any(2).double().mean()
    assert recall >= APPROXIMATE[kind]
    assert not (positions == rows[:, None]).any()
    assert (scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw", "ivfpq"])
def test_saved_index_finds_the_same(kind: Any, tmp_path: Path) -> None:
    if kind != "exact":
        pytest.importorskip("faiss")
    vectors = make_vectors(1500)
    index = VectorIndex.build(in_shards(vectors), kind)
    index.save(tmp_path / "index")
    loaded = VectorIndex.load(tmp_path / "index")
    assert (loaded.kind, loaded.width, len(loaded)) == (kind, 16, 1500)
    before, after = index.search(vectors[:40], 5), loaded.search(vectors[:40], 5)
    assert torch.equal(before[1], after[1]) and torch.equal(before[0], after[0])


def test_memory_map_in_half_precision(tmp_path: Path) -> None:
    vectors = make_vectors()
    file = np.lib.format.open_memmap(tmp_path / "half.npy", mode="w+", dtype=np.float16, shape=(700, 16))
    file[:] = vectors.numpy()
    file.flush()
    mapped = np.load(tmp_path / "half.npy", mmap_mode="r")
    _, positions = exact_search(vectors[:50], [mapped], 1)
    assert torch.equal(positions[:, 0], torch.arange(50))


def test_memory_is_bounded() -> None:
    vectors, budget = make_vectors(4000, 8), 2**16
    with LargestTensor() as seen:
        exact_search(
            vectors[:300],
            (vectors[start : start + 500].numpy() for start in range(0, 4000, 500)),
            5,
            block_bytes=budget,
        )
    assert 2**13 < seen.largest <= budget


def test_what_is_refused(tmp_path: Path) -> None:
    vectors = make_vectors(20)
    with pytest.raises(ValueError, match="k is 0"):
        exact_search(vectors, [vectors], 0)
    with pytest.raises(ValueError, match="not 1"):
        exact_search(vectors, [2 * vectors], 1)
    with pytest.raises(ValueError, match="not 1"):
        exact_search(2 * vectors, [vectors], 1)
    with pytest.raises(ValueError, match="Unknown kind of index 'tree'. Known: exact, flat"):
        VectorIndex.build([vectors], "tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 vectors"):
        VectorIndex.build([vectors[:0]])
    with pytest.raises(FileNotFoundError, match="index.json"):
        VectorIndex.load(tmp_path)


def test_few_vectors_are_refused_by_product_quantisation() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="cannot from 20 vectors"):
        VectorIndex.build([make_vectors(20)], "ivfpq")


def test_without_faiss_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = make_vectors(20)
    with pytest.raises(ImportError, match=r"pip install 'instance-zoo\[faiss\]'"):
        VectorIndex.build([vectors], "hnsw")
    assert len(VectorIndex.build([vectors])) == 20
