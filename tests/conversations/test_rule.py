"""GalleryRule, and what its quantiles come to."""

import numpy as np
import pytest

from tests.conversations.lookalikes import by_hand, exact, world
from zoo.conversations.galleries import galleries
from zoo.conversations.rule import GalleryRule, quantiles


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 0}, "from 1 on"),
        ({"k": (4, 3)}, "fewest <= most"),
        ({"k": 1}, "always the right one asks nothing. Give k from 2 on, or let no_match be above 0"),
        ({"k": (1, 5)}, "always the right one asks nothing"),
        ({"tau_quantile": 0.9}, "Give one of them"),
        ({"tau": None}, "Give one of them"),
        ({"tau": 1.5}, "cosine similarity"),
        ({"tau": None, "tau_quantile": 1.0}, "below 1"),
        ({"no_match": -0.1}, "from 0 to 1"),
        ({"seed": -1}, "whole number"),
    ],
)
def test_rules_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        GalleryRule(**given)


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_leave_the_promised_share_of_pairs_above(seed):
    index, embedded = world(120, 15, seed=seed)
    different = exact(embedded)[index.identities[:, None] != index.identities[None]]
    shares = [0.0, 0.1, 0.5, 0.9, 0.99]
    for share, value in zip(shares, quantiles(index, embedded, "test", shares), strict=True):
        expected = np.quantile(different, share, method="inverted_cdf")
        assert expected - 1e-6 < value < expected + 3e-6
    rule = GalleryRule(k=3, tau=None, tau_quantile=0.9)
    made = galleries(index, embedded, rule, "test")
    assert made.tau == quantiles(index, embedded, "test", [0.9])[0] and len(made.query) > 10
    expected, _ = by_hand(index, embedded, rule, "test", made.tau, 1)
    assert made.query.tolist() == [row[0] for row in expected]
