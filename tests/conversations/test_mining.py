"""Mining against plain loops, whatever the block, the number of processes and the data."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.speed.measure import peak_megabytes_over_now
from tests.conversations.lookalikes import by_hand, exact, index_of, listed, world
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.galleries import arrange
from zoo.conversations.mining import NO_POSITIVE, TOO_FEW, Candidates, mine
from zoo.conversations.rule import GalleryRule
from zoo.conversations.similarity import quantiles
from zoo.metrics.ranking import unit_norm

RULES = [
    GalleryRule(k=4, tau=0.3),
    GalleryRule(k=(2, 6), tau=0.0, seed=7),
    GalleryRule(k=3, tau=0.5, cross_camera=False, no_match=0.3),
    GalleryRule(k=1, tau=0.9, no_match=0.5),
    GalleryRule(k=2, tau=-1.0, seed=2**63 - 1),
    GalleryRule(k=30, tau=0.1),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_mining_is_that_of_loops(rule, seed):
    index, embedded = world(seed=seed)
    found = mine(index, embedded, rule, "test", rule.tau, per_query=2)
    expected, skipped = by_hand(index, embedded, rule, "test", rule.tau, 2)
    assert listed(found) == expected
    assert found.skipped == {NO_POSITIVE: skipped[NO_POSITIVE], TOO_FEW: skipped[TOO_FEW]}
    assert bool(expected) == (rule.k != 30), "something was tested"


@pytest.mark.parametrize("width", [8, 512])
def test_neither_blocks_nor_ranks_change_a_thing_even_where_pairs_are_at_tau(width):
    index, embedded = world(150, 30, width, seed=3)
    values = np.unique(exact(embedded))
    for tau in (values[len(values) // 2], values[-40], np.nextafter(values[-80], 2), 0.2):
        rule = GalleryRule(k=3, tau=float(tau))
        whole = mine(index, embedded, rule, "test", rule.tau)
        assert listed(whole) == by_hand(index, embedded, rule, "test", rule.tau, 1)[0]
        for block_bytes in (1, 30_000):
            assert listed(mine(index, embedded, rule, "test", rule.tau, block_bytes=block_bytes)) == listed(whole)
        for ranks in (2, 3):
            parts = [mine(index, embedded, rule, "test", rule.tau, shard=(r, ranks)) for r in range(ranks)]
            joined = Candidates.join(parts)
            assert listed(joined) == listed(whole) and joined.skipped == whole.skipped
            one, several = (arrange(index, embedded, part, rule, rule.tau, at_most=20) for part in (whole, joined))
            assert all(np.array_equal(a, b) for a, b in zip(one[:4], several[:4], strict=True))


def test_a_pair_at_tau_is_not_above_it():
    """The products are exact: 0.5, and 0.5 plus the least there is."""
    vectors = torch.zeros(4, 64)
    vectors[0, 0] = vectors[1, 0] = 1.0
    vectors[2, 0], vectors[2, 1] = 0.5, 0.75**0.5
    vectors[3, 0], vectors[3, 1] = float(np.nextafter(np.float32(0.5), np.float32(1))), 0.75**0.5
    index = index_of(["a", "a", "at", "above"])
    found = mine(index, ImageEmbeddings(np.arange(4), vectors), GalleryRule(k=2), "test", 0.5)
    assert listed(found)[0] == (0, 0, 2, 1, [3])
    assert mine(index, ImageEmbeddings(np.arange(4), vectors), GalleryRule(k=3), "test", 0.5).skipped[TOO_FEW] == 2


def test_distractors_are_uniform_over_identities_and_over_their_images_above_tau():
    """Of 10 other identities 8 are above tau, with 1 to 4 images each; chi-square over 1000 seeds."""
    names = ["q", "q"] + [f"o{n}" for n in range(10) for _ in range(1 + n % 4)]
    vectors = torch.zeros(len(names), 3)
    vectors[:, 0] = 1.0
    hidden = [row for row, name in enumerate(names) if name in ("o3", "o7")] + [names.index("o6")]
    vectors[hidden] = torch.tensor([0.0, 1.0, 0.0])
    index, embedded = index_of(names), ImageEmbeddings(np.arange(len(names)), vectors)
    seen, firsts = Counter(), Counter()
    for seed in range(1000):
        found = mine(index, embedded, GalleryRule(k=4, seed=seed), "test", 0.5)
        rows = listed(found)[0][4]
        seen.update(rows)
        firsts[names[rows[0]]] += 1
    assert not set(seen) & set(hidden)
    above = Counter(name for row, name in enumerate(names) if row > 1 and row not in hidden)
    drawn = Counter()
    for row, count in seen.items():
        drawn[names[row]] += count
    assert len(drawn) == len(firsts) == 8
    for counts, total in ((drawn, 3000), (firsts, 1000)):
        assert sum((n - total / 8) ** 2 / (total / 8) for n in counts.values()) < 24.3  # p = 0.001, 7 degrees
    for row, count in seen.items():
        expected = drawn[names[row]] / above[names[row]]
        assert abs(count - expected) < 4.5 * expected**0.5


def test_embeddings_that_are_not_of_length_1_are_refused():
    index = index_of(["a", "a", "b"])
    with pytest.raises(ValueError, match="unit_norm"):
        mine(index, ImageEmbeddings(np.arange(3), torch.ones(3, 4)), GalleryRule(), "test", 0.5)


# ---------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def test_memory_is_that_of_a_block():
    """2,000 queries against 20,000 images of 64 numbers: all pairs at once would take 160 MB, and mining several
    times that."""
    images, budget = 20_000, 16 * 2**20
    rng = np.random.default_rng(0)
    index = index_of([f"{n % 4000:04d}" for n in range(images)], ["query"] * 2000 + ["gallery"] * (images - 2000))
    embedded = ImageEmbeddings(np.arange(images), unit_norm(torch.from_numpy(rng.normal(size=(images, 64)))))
    rule = GalleryRule(tau=0.3)

    def work():
        assert len(mine(index, embedded, rule, "test", rule.tau, block_bytes=budget).query) > 1000

    with Largest() as largest:
        work()
    assert embedded.vectors.nbytes * 0.9 <= largest.bytes <= budget / 2
    work()
    assert not peak_megabytes_over_now(work) > 3 * budget / 1e6, "nan where it cannot be measured"
    with Largest() as largest:
        quantiles(index, embedded, "test", [0.5])
    assert largest.bytes <= 64 * 2**20
