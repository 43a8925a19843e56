"""Which pairs are above tau, and the similarities that quantiles come to."""

import numpy as np
import pytest
import torch

from tests.conversations.lookalikes import by_hand, exact, world
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.galleries import make_galleries
from zoo.conversations.rule import GalleryRule
from zoo.conversations.similarity import above, quantiles


def test_what_is_above_tau_does_not_depend_on_the_shape_of_a_block():
    """Every tau is a similarity itself, where a float32 product decides by its last bit."""
    vectors = world(150, 30, 512, seed=3)[1].vectors
    similar = exact(ImageEmbeddings(np.arange(150), vectors))
    for tau in np.unique(similar)[::200]:
        for rows in (1, 7, 150):
            found = torch.cat([above(part, vectors, float(tau)) for part in vectors.split(rows)])
            assert np.array_equal(found.numpy(), similar > tau)


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_leave_the_promised_share_of_pairs_above(seed):
    index, embedded = world(120, 15, seed=seed)
    different = exact(embedded)[index.identities[:, None] != index.identities[None]]
    shares = [0.0, 0.1, 0.5, 0.9, 0.99]
    for share, value in zip(shares, quantiles(index, embedded, "test", shares), strict=True):
        expected = np.quantile(different, share, method="inverted_cdf")
        assert expected - 1e-6 < value < expected + 3e-6
    rule = GalleryRule(k=3, tau=None, tau_quantile=0.9)
    made = make_galleries(index, embedded, rule, "test")
    assert made.tau == quantiles(index, embedded, "test", [0.9])[0] and len(made.query) > 10
    expected, _ = by_hand(index, embedded, rule, "test", made.tau, 1)
    assert made.query.tolist() == [row[0] for row in expected]
