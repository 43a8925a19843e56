"""GalleryRule: what it refuses."""

import pytest

from zoo.conversations.rule import GalleryRule


@pytest.mark.parametrize(
    ("given", "message"),
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
def test_rules_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GalleryRule(**given)
