from collections import Counter

import numpy as np
import pytest

from zoo.data.samplers import PKSampler, ShardSampler

IDENTITIES = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])[np.random.default_rng(0).permutation(55)]
ROWS = np.flatnonzero(IDENTITIES != 4)  # 9 identities, 50 images


def sampler(**options):
    return PKSampler(IDENTITIES, ROWS, **{"p": 4, "k": 3, "seed": 7, **options})


def batches(sampler, size):
    keys = list(sampler)
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def test_every_batch_is_p_identities_of_k_images_from_the_rows_given():
    for epoch in range(5):
        drawn = sampler()
        drawn.set_epoch(epoch)
        assert len(drawn) == 48 and len(list(drawn)) == 48
        for batch in batches(drawn, 12):
            rows = [key.row for key in batch]
            assert {key.epoch for key in batch} == {epoch} and set(rows) <= set(ROWS)
            assert Counter(Counter(IDENTITIES[rows]).values()) == {3: 4}
            for identity in set(IDENTITIES[rows]):  # no repeat where there are enough images
                mine = [row for row in rows if IDENTITIES[row] == identity]
                assert len(set(mine)) == min(3, (identity == IDENTITIES).sum())


def test_a_pass_visits_identities_at_most_once():
    drawn = sampler(p=3)
    first_pass = [IDENTITIES[row] for step in range(3) for row in drawn.batch(0, step)[::3]]
    assert len(set(first_pass)) == 9


def test_order_is_a_function_of_seed_epoch_and_step():
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=8))
    other = sampler()
    other.set_epoch(1)
    assert [key.row for key in other] != [key.row for key in sampler()]


def test_ranks_share_the_same_global_batch():
    whole = [key.row for key in sampler()]
    parts = [[key.row for key in sampler(rank=rank, world_size=2)] for rank in range(2)]
    together = [row for step in range(4) for part in parts for row in part[step * 6 : step * 6 + 6]]
    assert together == whole


def test_a_resumed_pass_continues_the_interrupted_one():
    uninterrupted = sampler()
    uninterrupted.set_epoch(3)
    resumed = sampler()
    resumed.resume(3, 2)
    resumed.set_epoch(3)  # as the trainer does before the epoch
    assert list(resumed) == list(uninterrupted)[24:]
    resumed.set_epoch(4)
    assert len(list(resumed)) == 48


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        sampler(world_size=3)
    with pytest.raises(ValueError, match="at most 9"):
        sampler(p=10)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_cover_everything_once(world_size):
    rows = np.array([4, 8, 15, 16, 23])
    shards = [[key.row for key in ShardSampler(rows, rank, world_size)] for rank in range(world_size)]
    assert sorted(sum(shards, [])) == rows.tolist()


def test_a_batch_of_few_kinds_takes_its_share_of_each():
    identities = np.repeat(np.arange(30), 3)
    kinds = np.array(["mug", "lamp", "sofa"])[identities % 3]
    kinds[identities >= 27] = "fan"  # three identities, too few for a batch
    sampler = PKSampler(identities, np.arange(90), p=8, k=2, steps=60, kinds=kinds, kinds_per_batch=2)
    seen = set()
    for step in range(60):
        rows = np.array(sampler.batch(0, step))
        assert len(rows) == 16 and len(set(identities[rows])) == 8
        names, count = np.unique(kinds[rows], return_counts=True)
        assert len(names) == 2 and set(count) == {8}
        seen |= set(identities[rows])
    assert seen == set(range(27))
    parts = [PKSampler(identities, np.arange(90), 8, 2, 0, r, 2, 60, kinds, 2).batch(0, 5) for r in (0, 1)]
    assert parts[0] + parts[1] == sampler.batch(0, 5)


def test_kinds_that_cannot_fill_a_batch_are_refused():
    identities = np.repeat(np.arange(6), 2)
    kinds = np.where(identities < 5, "mug", "lamp")
    with pytest.raises(ValueError, match="Only 1 of 2 categories have the 2 training identities"):
        PKSampler(identities, np.arange(12), p=4, k=2, kinds=kinds, kinds_per_batch=2)
    with pytest.raises(ValueError, match="shared evenly by 3 kinds"):
        PKSampler(identities, np.arange(12), p=4, k=2, kinds=kinds, kinds_per_batch=3)
