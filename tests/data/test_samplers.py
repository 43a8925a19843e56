from collections import Counter

import numpy as np
import pytest

from zoo.data.samplers import MixedSampler, PKSampler, ShardSampler, ShuffledSampler

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


# ---------------------------------------------------------------------- rows in random order

SOME = np.array([3, 5, 8, 13, 21, 34, 55])


def shuffled(**options):
    return ShuffledSampler(SOME, **{"batch_size": 4, "seed": 7, "steps": 3, **options})


def drawn_in(sampler, epochs):
    """Rows in the order in which epochs draw them."""
    rows = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler) and {key.epoch for key in keys} <= {epoch}
        rows += [key.row for key in keys]
    return rows


def test_every_row_comes_once_before_any_comes_again_also_across_epochs():
    rows = drawn_in(shuffled(), range(7))
    assert len(rows) == 84
    turns = [rows[start : start + 7] for start in range(0, 84, 7)]
    assert all(sorted(turn) == SOME.tolist() for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 12, "each turn has an order of its own"


@pytest.mark.parametrize(("batch_size", "steps", "expected"), [(4, None, 1), (3, None, 2), (10, None, 1), (7, 5, 5)])
def test_an_epoch_is_as_long_as_the_rows_fill_or_as_asked_for(batch_size, steps, expected):
    """At least one batch, also where there are fewer rows than it holds: they then repeat."""
    sampler = shuffled(batch_size=batch_size, steps=steps)
    assert sampler.steps == expected and len(drawn_in(sampler, [0])) == expected * batch_size
    assert set(drawn_in(shuffled(batch_size=20, steps=1), [0])) == set(SOME)


def test_shuffled_order_is_a_function_of_seed_epoch_and_step():
    assert drawn_in(shuffled(), [2, 0, 1]) == drawn_in(shuffled(), [2]) + drawn_in(shuffled(), [0, 1])
    assert drawn_in(shuffled(), [0]) != drawn_in(shuffled(seed=8), [0])
    assert drawn_in(shuffled(), [0]) != drawn_in(shuffled(), [1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_process(world_size):
    """Each global batch holds the same rows, whatever the number of processes."""
    one = drawn_in(shuffled(), [0, 1])
    parts = [drawn_in(shuffled(rank=rank, world_size=world_size), [0, 1]) for rank in range(world_size)]
    share = 4 // world_size
    for step in range(6):
        together = [row for part in parts for row in part[step * share : (step + 1) * share]]
        assert sorted(together) == sorted(one[step * 4 : step * 4 + 4])


def test_a_resumed_shuffle_continues_the_interrupted_one():
    whole, resumed = shuffled(), shuffled()
    rows = drawn_in(whole, [1, 2])
    resumed.resume(1, 2)
    resumed.set_epoch(1)
    assert [key.row for key in resumed] == rows[8:12]
    resumed.set_epoch(2)
    assert [key.row for key in resumed] == rows[12:]


def test_batches_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        ShuffledSampler(SOME[:0], 4)
    with pytest.raises(ValueError, match="multiple of 3"):
        shuffled(world_size=3)
    with pytest.raises(ValueError, match="cannot be shared"):
        shuffled(batch_size=0)


# ---------------------------------------------------------------------- parts in fixed numbers


def mixed(steps=None, sizes=(10, 4), batch=(3, 1), **options):
    parts = zip(sizes, batch, strict=True)
    return MixedSampler([ShuffledSampler(np.arange(size), share, 7, **options) for size, share in parts], steps)


def test_every_batch_has_its_number_of_rows_from_each_part():
    sampler = mixed(steps=20)
    assert len(sampler) == 80
    rows = drawn_in(sampler, [0])
    for step in range(20):
        first, second = rows[step * 4 : step * 4 + 3], rows[step * 4 + 3]
        assert set(first) <= set(range(10)) and 10 <= second < 14
    assert Counter(row for row in rows if row >= 10) == {10: 5, 11: 5, 12: 5, 13: 5}
    assert sorted(Counter(row for row in rows if row < 10).values()) == [6] * 10


def test_an_epoch_is_that_of_the_longest_part():
    assert mixed().steps == 4 and len(mixed()) == 16
    assert mixed(sizes=(30, 4)).steps == 10


def test_parts_go_on_from_epoch_to_epoch():
    """The shorter one comes to its end within an epoch, the longer one after several."""
    rows = drawn_in(mixed(steps=2), range(5))
    assert sorted(row for row in rows if row < 10) == sorted([*range(10)] * 3)
    later = [row for row in rows if row >= 10]
    assert sorted(later[:4]) == sorted(later[4:8]) == [10, 11, 12, 13]


def test_a_resumed_mixture_continues_the_interrupted_one():
    rows = drawn_in(mixed(), [3, 4])
    resumed = mixed()
    resumed.resume(3, 1)
    resumed.set_epoch(3)
    assert [key.row for key in resumed] == rows[4:16]
    resumed.set_epoch(4)
    assert [key.row for key in resumed] == rows[16:]


def test_ranks_share_the_batches_of_a_mixture():
    one = drawn_in(mixed(batch=(4, 2)), [0])
    parts = [drawn_in(mixed(batch=(4, 2), rank=rank, world_size=2), [0]) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(one) // 2
    for step in range(len(one) // 6):
        together = [row for part in parts for row in part[step * 3 : step * 3 + 3]]
        assert sorted(together) == sorted(one[step * 6 : step * 6 + 6])
