"""Histograms of similarity against a count pair by pair."""

import numpy as np
import pytest

from tests.metrics.items import ONE_ROW_BLOCKS, as_set, make_items
from zoo.metrics import similarity_histogram


@pytest.mark.parametrize("block_bytes", [ONE_ROW_BLOCKS, 3_000, 2**26])
def test_every_pair_but_junk_is_counted_once(block_bytes: int) -> None:
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
