"""Retrieval sheets: queries in rows, each beside the gallery images that are most similar to it."""

import torch
from PIL import Image
from torch import Tensor

from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.drawing import GREEN, GREY, RED, framed, sheet
from zoo.metrics import EmbeddingSet


def retrieval_sheet(
    index: IdentityIndex,
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    chosen: Tensor,
    scores: Tensor,
    positions: Tensor,
    title: str,
) -> Image.Image:
    """Some queries with their neighbours, in green frames where the identity is right, else in red ones.

    Args:
        index: where the images are.
        query: Q items.
        gallery: N items.
        chosen: (R,) positions of the queries that are drawn.
        scores: (Q, k) similarity of the neighbours, see `zoo.metrics.nearest`.
        positions: (Q, k) of the neighbours in the gallery, -1 for none.
        title: a line above.
    """
    rows, captions = [], []
    for q in chosen.tolist():
        rows.append([framed(image_of(index, int(query.indices[q])), GREY)])
        captions.append([index.names[int(query.identities[q])]])
        for position, score in zip(positions[q].tolist(), scores[q].tolist(), strict=True):
            if position < 0:
                continue
            right = bool(gallery.identities[position] == query.identities[q])
            rows[-1].append(framed(image_of(index, int(gallery.indices[position])), GREEN if right else RED))
            captions[-1].append(f"{score:.2f} {index.names[int(gallery.identities[position])]}")
    return sheet(rows, captions, title)


def surest_mistakes(query: EmbeddingSet, right: Tensor, score: Tensor, count: int) -> Tensor:
    """Queries whose nearest image is of another identity, the most similar first, one of each identity.

    Args:
        query: Q items.
        right: (Q,) bool, whether the nearest image is of the query's identity.
        score: (Q,) its similarity.
        count: how many to give at most.

    Returns:
        (R,) positions of queries.
    """
    chosen: dict[int, int] = {}
    for q in score.masked_fill(right, -torch.inf).argsort(descending=True, stable=True).tolist():
        if not right[q]:
            chosen.setdefault(int(query.identities[q]), q)
    return torch.tensor(list(chosen.values())[:count], dtype=torch.int64)


def image_of(index: IdentityIndex, row: int) -> Image.Image:
    """The image of a row; grey where it cannot be read any more."""
    try:
        return index.image(row)
    except UnreadableImage:  # readable when it was embedded, gone since
        return Image.new("RGB", (112, 112), GREY)
