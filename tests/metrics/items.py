"""Items to rank and what the metric tests share to judge rankings by."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.metrics import TIE_WIDTH, EmbeddingSet, RetrievalMetrics, RetrievalScores, unit_norm

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
    """Score -> value over all queries."""
    return evaluate_groups(items, **options)[0]


def evaluate_groups(items: dict[str, Tensor], **options: Any) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Score -> value over all queries, and those over each group of them."""
    metrics = RetrievalMetrics(**options)
    metrics.update(**items)
    return as_floats(metrics.compute())


def as_floats(scores: RetrievalScores) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    total, *groups = (
        {name: value.item() for name, value in each.items()} for each in (scores.total, *scores.groups.values())
    )
    return total, dict(zip(scores.groups, groups, strict=True))


def as_set(items: dict[str, Tensor], role: str | None = None) -> EmbeddingSet:
    everything = EmbeddingSet(
        unit_norm(items["embeddings"]), items["identities"], items["indices"], items.get("cameras")
    )
    return everything if role is None else everything.select(items[role])


def on_a_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def tied_items() -> dict[str, Tensor]:
    items = make_items(width=3, seed=5)
    items["embeddings"] = torch.randint(-1, 2, (60, 3), generator=torch.Generator().manual_seed(1)).float()
    items["embeddings"][::20] = 0
    return items


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
            seen_there = camera is not None and camera[g] == camera[q] >= 0
            if not is_gallery[g] or index[g] == index[q] or (same and seen_there):
                continue
            score = float(rows[q] @ rows[g])
            # Pessimistic: a positive stands behind every negative that is as good.
            ranking_keys.append((-(score - TIE_WIDTH), 1, True) if same else (-score, 0, False))
        yield q, [positive for _, _, positive in sorted(ranking_keys)]


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result
