"""Galleries hold what they promise, whichever images there are."""

from collections import Counter

import numpy as np
import pytest
import torch

from tests.conversations.lookalikes import by_hand, exact, index_of, listed, world
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.galleries import make_galleries
from zoo.conversations.mining import NO_POSITIVE, TOO_FEW, mine
from zoo.conversations.rule import GalleryRule
from zoo.conversations.similarity import quantiles
from zoo.metrics.ranking import unit_norm


@pytest.fixture(scope="module")
def many():
    return world(600, 60, 16, seed=5)


@pytest.mark.parametrize("no_match", [0.0, 0.25, 1.0])
def test_galleries_hold_what_they_promise(many, no_match):
    index, embedded = many
    rule, similar = GalleryRule(k=(3, 5), tau=0.1, no_match=no_match, seed=3), exact(embedded)
    made = make_galleries(index, embedded, rule, "test", per_query=2)
    assert len(made.query) > 500
    assert (made.answer == 0).sum() == round(no_match * len(made.query))
    places = {k: Counter() for k in (3, 4, 5)}
    for query, gallery, answer, similarity in zip(*made[:4], strict=True):
        rows = gallery[gallery >= 0]
        others = np.delete(rows, answer - 1) if answer else rows
        identities = index.identities[rows]
        assert len(set(identities.tolist())) == len(rows) and query not in rows
        assert index.identities[query] not in index.identities[others]
        assert (similar[query, others] > rule.tau).all()
        assert index.cameras[query] < 0 or index.cameras[query] not in index.cameras[rows], "no background in common"
        assert (similarity[: len(rows)] == similar[query, rows].astype(np.float32)).all()
        assert np.isnan(similarity[len(rows) :]).all()
        if answer:
            positive = rows[answer - 1]
            assert index.identities[query] == index.identities[positive]
            places[len(rows)][answer] += 1
    if no_match < 1:
        for k, counts in places.items():
            assert set(counts) == set(range(1, k + 1)) and max(counts.values()) - min(counts.values()) <= 1


def test_a_limit_is_spread_evenly_over_identities(many):
    index, embedded = many
    rule = GalleryRule(k=3, tau=0.1)
    everything = make_galleries(index, embedded, rule, "test")
    available = Counter(index.identities[everything.query].tolist())
    for at_most in (1, 40, 137, 10_000):
        made = make_galleries(index, embedded, rule, "test", at_most=at_most)
        assert len(made.query) == min(at_most, len(everything.query)) == len(set(made.query.tolist()))
        assert made.skipped == everything.skipped, "those of the whole split"
        taken = Counter(index.identities[made.query].tolist())
        most = max(taken.values())
        assert all(taken[i] >= min(most - 1, available[i]) for i in available)
    others = make_galleries(index, embedded, GalleryRule(k=3, tau=0.1, seed=1), "test", at_most=40)
    assert set(others.query.tolist()) != set(make_galleries(index, embedded, rule, "test", at_most=40).query.tolist())


def test_splits_stay_apart():
    index, embedded = world(200, 30, splits=("train", "val", "test"), cameras=0)
    for split in ("train", "val", "test"):
        made = make_galleries(index, embedded, GalleryRule(k=3, tau=-0.5), split)
        rows = np.append(made.gallery[made.gallery >= 0], made.query)
        assert len(made.query) > 20 and set(index.splits[rows].tolist()) == {split}
    with pytest.raises(ValueError, match="'closed'"):
        embedded.query_and_gallery_rows(index, "closed")


def test_queries_look_in_the_gallery_where_the_data_has_both():
    rng = np.random.default_rng(0)
    names, splits = [f"{n // 10}" for n in range(200)], ["query" if n % 10 < 3 else "gallery" for n in range(200)]
    index = index_of(names, splits, rng.integers(0, 4, 200).tolist())
    embedded = ImageEmbeddings(np.arange(200), unit_norm(torch.from_numpy(rng.normal(size=(200, 8)))))
    made = make_galleries(index, embedded, GalleryRule(k=4, tau=0.0), "test")
    assert len(made.query) > 30
    assert set(index.splits[made.query].tolist()) == {"query"}
    assert set(index.splits[made.gallery.ravel()].tolist()) == {"gallery"}


def test_images_that_were_not_embedded_are_not_used():
    index, embedded = world(200, 20, seed=1)
    rows = np.flatnonzero(np.random.default_rng(0).random(200) < 0.6)
    part = ImageEmbeddings(rows, embedded.vectors[torch.from_numpy(rows)])
    rule = GalleryRule(k=3, tau=0.2)
    assert listed(mine(index, part, rule, "test", 0.2)) == by_hand(index, part, rule, "test", 0.2, 1)[0]
    made = make_galleries(index, part, rule, "test")
    assert len(made.query) > 20 and set(np.append(made.gallery.ravel(), made.query).tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("names", [["a"] * 5, ["a", "b", "c"]])
def test_nothing_to_make_is_counted(names):
    index, embedded = index_of(names), ImageEmbeddings(np.arange(len(names)), unit_norm(torch.ones(len(names), 4)))
    made = make_galleries(index, embedded, GalleryRule(k=2, tau=0.0), "test")
    reason = TOO_FEW if len(set(names)) == 1 else NO_POSITIVE
    assert made.gallery.shape == (0, 2) and made.skipped[reason] == len(names) == sum(made.skipped.values())
    if len(set(names)) == 1:
        assert quantiles(index, embedded, "test", [0.5]) == [1.0], "there is no pair of two identities"


def test_an_encoder_that_maps_everything_to_one_point():
    index = index_of([f"{n % 50}" for n in range(100)])
    embedded = ImageEmbeddings(np.arange(100), unit_norm(torch.ones(100, 32)))
    assert len(make_galleries(index, embedded, GalleryRule(tau=0.99), "test").query) == 100
    assert make_galleries(index, embedded, GalleryRule(tau=1.0), "test").skipped == {NO_POSITIVE: 0, TOO_FEW: 100}
