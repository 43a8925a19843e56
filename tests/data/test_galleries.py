"""Mining against plain loops, whatever the block, the number of processes and the data."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.speed.measure import peak_megabytes_over_now
from zoo.data.candidates import NO_POSITIVE, TOO_FEW, Candidates, _above, mine
from zoo.data.draws import random_keys
from zoo.data.embedded import Embedded
from zoo.data.galleries import arrange, galleries
from zoo.data.gallery_rule import GalleryRule, quantiles
from zoo.data.index import IdentityIndex
from zoo.metrics.ranking import unit_norm


def index_of(names, splits=None, cameras=None) -> IdentityIndex:
    paths = [f"{row}.png" for row in range(len(names))]
    return IdentityIndex.build(Path("/images"), paths, names, splits or ["test"] * len(names), cameras=cameras)


def world(images=60, identities=12, width=8, seed=0, cameras=3, splits=("test",)):
    """Look-alikes in clusters; identities with one image, with images of one camera only, exact copies."""
    rng = np.random.default_rng(seed)
    names = [f"id{n:04d}" for n in rng.integers(0, identities, images)]
    split_of = {name: splits[int(name[2:]) % len(splits)] for name in names}
    centres = rng.normal(size=(identities, width)) + 1.5 * rng.normal(size=(1, width))
    vectors = np.stack([centres[int(name[2:])] for name in names]) + 0.7 * rng.normal(size=(images, width))
    vectors[1::7] = vectors[0]  # copies under several names
    index = index_of(names, [split_of[name] for name in names], rng.integers(-1, cameras, images).tolist())
    return index, Embedded(np.arange(images), unit_norm(torch.from_numpy(vectors)))


def exact(embedded: Embedded) -> np.ndarray:
    vectors = embedded.vectors.double().numpy()
    return (vectors @ vectors.T).astype(np.float32).astype(np.float64)


def by_hand(index, embedded, rule, split, tau, per_query):
    """The rule in loops: (query, repeat, k, positive, distractors) of every query, and the reasons of the others."""
    similar, found, skipped = exact(embedded), [], Counter()
    place = {int(row): at for at, row in enumerate(embedded.rows)}
    queries, images = embedded.sides(index, split)
    fewest, most = rule.sizes

    def key(purpose, *numbers):
        return int(random_keys(rule.seed, purpose, *(torch.tensor(int(n)) for n in numbers)))

    for q in queries:
        others, positives = {}, []
        for g in sorted(images):
            same_camera = rule.cross_camera and index.cameras[q] >= 0 and index.cameras[q] == index.cameras[g]
            if index.identities[g] != index.identities[q]:
                if similar[place[q], place[g]] > tau and not same_camera:
                    others.setdefault(int(index.identities[g]), []).append(int(g))
                continue
            if g != q and not same_camera:
                positives.append(int(g))
        k = fewest + key("size", q) % (most - fewest + 1)
        need = k - 1 + (rule.no_match > 0)
        if not positives or len(others) < need:
            skipped[NO_POSITIVE if not positives else TOO_FEW] += 1
            continue
        for repeat in range(per_query):
            drawn = sorted(others, key=lambda other: key("identity", q, repeat, other))[:need]
            rows = [others[o][key("image", q, repeat, o) % len(others[o])] for o in drawn]
            found.append((int(q), repeat, k, positives[(key("positive", q) + repeat) % len(positives)], rows))
    return found, skipped


def listed(candidates: Candidates):
    columns = (column.tolist() for column in candidates[:5])
    return [(q, r, k, p, [row for row in rows if row >= 0]) for q, r, k, p, rows in zip(*columns, strict=True)]


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
            parts = [mine(index, embedded, rule, "test", rule.tau, rank=r, world_size=ranks) for r in range(ranks)]
            joined = Candidates.join(parts)
            assert listed(joined) == listed(whole) and joined.skipped == whole.skipped
            one, several = (arrange(index, embedded, part, rule, rule.tau, at_most=20) for part in (whole, joined))
            assert all(np.array_equal(a, b) for a, b in zip(one[:4], several[:4], strict=True))


def test_what_is_above_tau_does_not_depend_on_the_shape_of_a_block():
    """Every tau is a similarity itself, where a float32 product decides by its last bit."""
    vectors = world(150, 30, 512, seed=3)[1].vectors
    similar = exact(Embedded(np.arange(150), vectors))
    for tau in np.unique(similar)[::200]:
        for rows in (1, 7, 150):
            found = torch.cat([_above(part, vectors, float(tau)) for part in vectors.split(rows)])
            assert np.array_equal(found.numpy(), similar > tau)


def test_a_pair_at_tau_is_not_above_it():
    """The products are exact: 0.5, and 0.5 plus the least there is."""
    vectors = torch.zeros(4, 64)
    vectors[0, 0] = vectors[1, 0] = 1.0
    vectors[2, 0], vectors[2, 1] = 0.5, 0.75**0.5
    vectors[3, 0], vectors[3, 1] = float(np.nextafter(np.float32(0.5), np.float32(1))), 0.75**0.5
    index = index_of(["a", "a", "at", "above"])
    found = mine(index, Embedded(np.arange(4), vectors), GalleryRule(k=2), "test", 0.5)
    assert listed(found)[0] == (0, 0, 2, 1, [3])
    assert mine(index, Embedded(np.arange(4), vectors), GalleryRule(k=3), "test", 0.5).skipped[TOO_FEW] == 2


def test_an_encoder_that_maps_everything_to_one_point():
    index = index_of([f"{n % 50}" for n in range(100)])
    embedded = Embedded(np.arange(100), unit_norm(torch.ones(100, 32)))
    assert len(galleries(index, embedded, GalleryRule(tau=0.99), "test").query) == 100
    assert galleries(index, embedded, GalleryRule(tau=1.0), "test").skipped == {NO_POSITIVE: 0, TOO_FEW: 100}


def test_distractors_are_uniform_over_identities_and_over_their_images_above_tau():
    """Of 10 other identities 8 are above tau, with 1 to 4 images each; chi-square over 1000 seeds."""
    names = ["q", "q"] + [f"o{n}" for n in range(10) for _ in range(1 + n % 4)]
    vectors = torch.zeros(len(names), 3)
    vectors[:, 0] = 1.0
    hidden = [row for row, name in enumerate(names) if name in ("o3", "o7")] + [names.index("o6")]
    vectors[hidden] = torch.tensor([0.0, 1.0, 0.0])
    index, embedded = index_of(names), Embedded(np.arange(len(names)), vectors)
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


# ---------------------------------------------------------------------- galleries


@pytest.fixture(scope="module")
def many():
    return world(600, 60, 16, seed=5)


@pytest.mark.parametrize("no_match", [0.0, 0.25, 1.0])
def test_galleries_hold_what_they_promise(many, no_match):
    index, embedded = many
    rule, similar = GalleryRule(k=(3, 5), tau=0.1, no_match=no_match, seed=3), exact(embedded)
    made = galleries(index, embedded, rule, "test", per_query=2)
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
    everything = galleries(index, embedded, rule, "test")
    available = Counter(index.identities[everything.query].tolist())
    for at_most in (1, 40, 137, 10_000):
        made = galleries(index, embedded, rule, "test", at_most=at_most)
        assert len(made.query) == min(at_most, len(everything.query)) == len(set(made.query.tolist()))
        assert made.skipped == everything.skipped, "those of the whole split"
        taken = Counter(index.identities[made.query].tolist())
        most = max(taken.values())
        assert all(taken[i] >= min(most - 1, available[i]) for i in available)
    others = galleries(index, embedded, GalleryRule(k=3, tau=0.1, seed=1), "test", at_most=40)
    assert set(others.query.tolist()) != set(galleries(index, embedded, rule, "test", at_most=40).query.tolist())


def test_splits_stay_apart():
    index, embedded = world(200, 30, splits=("train", "val", "test"), cameras=0)
    for split in ("train", "val", "test"):
        made = galleries(index, embedded, GalleryRule(k=3, tau=-0.5), split)
        rows = np.append(made.gallery[made.gallery >= 0], made.query)
        assert len(made.query) > 20 and set(index.splits[rows].tolist()) == {split}
    with pytest.raises(ValueError, match="'closed'"):
        embedded.sides(index, "closed")


def test_queries_look_in_the_gallery_where_the_data_has_both():
    rng = np.random.default_rng(0)
    names, splits = [f"{n // 10}" for n in range(200)], ["query" if n % 10 < 3 else "gallery" for n in range(200)]
    index = index_of(names, splits, rng.integers(0, 4, 200).tolist())
    embedded = Embedded(np.arange(200), unit_norm(torch.from_numpy(rng.normal(size=(200, 8)))))
    made = galleries(index, embedded, GalleryRule(k=4, tau=0.0), "test")
    assert len(made.query) > 30
    assert set(index.splits[made.query].tolist()) == {"query"}
    assert set(index.splits[made.gallery.ravel()].tolist()) == {"gallery"}


def test_images_that_were_not_embedded_are_not_used():
    index, embedded = world(200, 20, seed=1)
    rows = np.flatnonzero(np.random.default_rng(0).random(200) < 0.6)
    part = Embedded(rows, embedded.vectors[torch.from_numpy(rows)])
    rule = GalleryRule(k=3, tau=0.2)
    assert listed(mine(index, part, rule, "test", 0.2)) == by_hand(index, part, rule, "test", 0.2, 1)[0]
    made = galleries(index, part, rule, "test")
    assert len(made.query) > 20 and set(np.append(made.gallery.ravel(), made.query).tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("names", [["a"] * 5, ["a", "b", "c"]])
def test_nothing_to_make_is_counted(names):
    index, embedded = index_of(names), Embedded(np.arange(len(names)), unit_norm(torch.ones(len(names), 4)))
    made = galleries(index, embedded, GalleryRule(k=2, tau=0.0), "test")
    reason = TOO_FEW if len(set(names)) == 1 else NO_POSITIVE
    assert made.gallery.shape == (0, 2) and made.skipped[reason] == len(names) == sum(made.skipped.values())
    if len(set(names)) == 1:
        assert quantiles(index, embedded, "test", [0.5]) == [1.0], "there is no pair of two identities"


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


def test_embeddings_that_are_not_of_length_1_are_refused():
    index = index_of(["a", "a", "b"])
    with pytest.raises(ValueError, match="unit_norm"):
        mine(index, Embedded(np.arange(3), torch.ones(3, 4)), GalleryRule(), "test", 0.5)


# ---------------------------------------------------------------------- quantiles


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


# ---------------------------------------------------------------------- memory, draws


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
    embedded = Embedded(np.arange(images), unit_norm(torch.from_numpy(rng.normal(size=(images, 64)))))
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


def test_keys_are_splitmix64_and_do_not_depend_on_what_they_are_drawn_with():
    from zoo.data.draws import _GOLDEN, _mixed

    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of seed 0
    assert [int(v) % 2**64 for v in _mixed(torch.arange(1, 4) * _GOLDEN)] == published
    rows, others = torch.arange(50), torch.arange(1000)
    keys = random_keys(3, "identity", rows[:, None], 1, others)
    assert keys.shape == (50, 1000) and len(keys.unique()) == 50_000 and (keys >= 0).all()
    assert keys[7, 13] == random_keys(3, "identity", torch.tensor(7), 1, torch.tensor(13))
    assert not (keys == random_keys(3, "image", rows[:, None], 1, others)).any()
    bits = torch.stack([(keys >> bit) & 1 for bit in range(63)]).double().mean((1, 2))
    assert (bits - 0.5).abs().max() < 0.012  # five standard deviations
