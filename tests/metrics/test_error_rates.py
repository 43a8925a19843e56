"""Error curves against scikit-learn and by hand; open-set identification against a plain loop."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from tests.metrics.items import as_set, make_items, on_a_circle
from zoo.metrics import (
    TIE_WIDTH,
    EmbeddingSet,
    ErrorCurve,
    OpenSetScores,
    enrolled_identities,
    error_curve,
    open_set_scores,
    similarity_histogram,
)


def make_scores(seed: int, levels: int | None = None, count: int = 200) -> tuple[Tensor, Tensor]:
    """Float32 scores, positives a little higher; few levels make many ties."""
    draw = torch.Generator().manual_seed(seed)
    same = torch.rand(count, generator=draw) < 0.3
    same[:2] = torch.tensor([True, False])
    scores = torch.randn(count, generator=draw) + same
    return (scores if levels is None else (scores * levels).round() / levels), same


CASES = [make_scores(seed, levels) for seed in range(3) for levels in (None, 3, 1)] + [
    (torch.tensor([0.5, 0.5]), torch.tensor([True, False])),
    (torch.tensor([0.1, 0.9]), torch.tensor([True, False])),
    (torch.tensor([0.9, 0.1]), torch.tensor([True, False])),
    (torch.ones(7), torch.arange(7) < 3),
]


@pytest.mark.parametrize("case", CASES)
def test_exact_curve_agrees_with_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    scores, same = case
    curve = ErrorCurve.of_scores(scores, same)
    far, tar, thresholds = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    assert np.array_equal(curve.far.flip(0).numpy(), far)
    assert np.allclose(1 - curve.frr.flip(0).numpy(), tar, atol=1e-15)
    assert np.array_equal(curve.thresholds.flip(0).numpy()[1:], thresholds[1:])  # theirs starts at infinity
    assert curve.auc() == pytest.approx(roc_auc_score(same.numpy(), scores.numpy()), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_rates_are_shares_of_pairs(case: tuple[Tensor, Tensor]) -> None:
    """At every threshold, also one beside all scores and one in the type of the scores."""
    scores, same = case
    curve = ErrorCurve.of_scores(scores, same)
    for threshold in [*curve.thresholds.tolist(), -9.0, 9.0, 0.3]:
        accepted = scores.double() >= threshold
        far, frr = curve.rates(threshold)
        assert far == pytest.approx(accepted[~same].double().mean().item(), abs=1e-15)
        assert frr == pytest.approx((~accepted[same]).double().mean().item(), abs=1e-15)
    assert not (scores >= float(curve.thresholds[-1])).any()  # float32 compared with float32


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("far", [0.0, 0.001, 0.01, 0.1, 0.5, 1.0])
def test_threshold_at_far(case: tuple[Tensor, Tensor], far: float) -> None:
    """The lowest one that keeps the promise: the next lower score breaks it."""
    scores, same = case
    curve = ErrorCurve.of_scores(scores, same)
    threshold = curve.threshold_at_far(far)
    negatives = scores[~same].double()
    assert (negatives >= threshold).double().mean() <= far
    lower = scores[scores < threshold].double()
    if len(lower):
        assert (negatives >= lower.max()).double().mean() > far
    assert curve.tar_at_far(far) == pytest.approx((scores[same].double() >= threshold).double().mean().item())


def test_far_of_exactly_one_in_ten() -> None:
    negatives = torch.arange(10.0)
    curve = ErrorCurve.of_scores(torch.cat([negatives, torch.tensor([8.5])]), torch.arange(11) == 10)
    assert curve.threshold_at_far(0.1) == 8.5
    assert curve.threshold_at_far(0.0999) == pytest.approx(9, abs=1e-5) and curve.threshold_at_far(0.0999) > 9
    assert (curve.tar_at_far(0.1), curve.tar_at_far(0.0999)) == (1, 0)


def test_equal_error_rate_by_hand() -> None:
    """4 negatives, 2 positives: far > frr at 0.4 with (2/4, 0), far < frr at 0.5 with (1/4, 1/2)."""
    scores = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.4, 0.7])
    curve = ErrorCurve.of_scores(scores, torch.tensor([False] * 4 + [True] * 2))
    rate, threshold = curve.eer()
    # On the line from (far, frr) = (1/2, 0) to (1/4, 1/2): 1/2 - s/4 = s/2 at s = 2/3.
    assert rate == pytest.approx(1 / 3)
    assert threshold == pytest.approx(0.6)


@pytest.mark.parametrize("case", CASES)
def test_equal_error_rate_lies_on_the_roc_curve(case: tuple[Tensor, Tensor]) -> None:
    scores, same = case
    rate, threshold = ErrorCurve.of_scores(scores, same).eer()
    far, tar, _ = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    # far - frr rises along the curve; where it is 0, on straight lines, far is the rate.
    assert rate == pytest.approx(np.interp(0, far - (1 - tar), far), abs=1e-12)
    at, before = ErrorCurve.of_scores(scores, same).rates(threshold), threshold - 1e-3
    assert at[0] <= at[1] and before < threshold


def test_perfect_and_reversed() -> None:
    scores, same = torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([True, True, False, False])
    perfect, reversed_ = ErrorCurve.of_scores(scores, same), ErrorCurve.of_scores(scores, ~same)
    assert (perfect.auc(), perfect.eer()[0]) == (1, 0)
    assert (reversed_.auc(), reversed_.eer()[0]) == (0, 1)


@pytest.mark.parametrize("only", [True, False])
def test_one_class_gives_nan(only: bool) -> None:
    curve = ErrorCurve.of_scores(torch.rand(5), torch.full((5,), only))
    assert math.isnan(curve.auc()) and math.isnan(curve.eer()[0])
    assert math.isnan(curve.tar_at_far(0.1))
    assert math.isnan(curve.threshold_at_far(0.1)) is only  # a threshold needs negatives only


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        (torch.empty(0), torch.empty(0, dtype=torch.bool), "0 pairs"),
        (torch.tensor([0.1, torch.nan]), torch.tensor([True, False]), "1 of 2 scores are nan"),
        (torch.rand(3), torch.ones(3), "same is torch.float32"),
        (torch.rand(3), torch.ones(2, dtype=torch.bool), r"\(3,\), same is torch.bool \(2,\)"),
        (torch.ones(2, dtype=torch.int64), torch.tensor([True, False]), "scores are torch.int64"),
    ],
)
def test_wrong_scores_are_refused(scores: Tensor, same: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ErrorCurve.of_scores(scores, same)


def test_far_out_of_range_is_refused() -> None:
    curve = ErrorCurve.of_scores(*CASES[0])
    with pytest.raises(ValueError, match="far is 1.5"):
        curve.threshold_at_far(1.5)


# --- from a retrieval


def all_pairs(query: EmbeddingSet, gallery: EmbeddingSet) -> tuple[Tensor, Tensor]:
    """Scores and sameness of all pairs that are not junk."""
    same = query.identities[:, None] == gallery.identities
    junk = query.indices[:, None] == gallery.indices
    assert query.cameras is not None and gallery.cameras is not None
    junk |= same & (query.cameras[:, None] == gallery.cameras)
    return (query.embeddings @ gallery.embeddings.T)[~junk], same[~junk]


def test_curve_of_a_retrieval_is_accurate_to_a_bin() -> None:
    items = make_items(count=120)
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")
    bins = 20_000
    curve, exact = (
        error_curve(query, gallery, bins, block_bytes=5_000),
        ErrorCurve.of_scores(*all_pairs(query, gallery)),
    )
    width, rounding = 2 / bins, 1e-6
    for far in (0.001, 0.01, 0.1, 0.3):
        threshold = curve.threshold_at_far(far)
        assert exact.rates(threshold + rounding)[0] <= far
        assert exact.rates(threshold - width - rounding)[0] > far  # a bin lower would break the promise
    assert curve.auc() == pytest.approx(exact.auc(), abs=1e-3)
    assert curve.eer()[0] == pytest.approx(exact.eer()[0], abs=1e-2)
    for threshold in curve.thresholds[::1000].tolist():
        lower, upper = exact.rates(threshold - width), exact.rates(threshold + width)
        far, frr = curve.rates(threshold)
        assert upper[0] <= far <= lower[0] and lower[1] <= frr <= upper[1]


def test_curve_of_a_histogram_with_similarity_one() -> None:
    """What stands in the last bin is rejected only above it."""
    items = EmbeddingSet(on_a_circle(0, 0, 90), torch.tensor([1, 2, 3]), torch.arange(3))
    curve = ErrorCurve.of_histogram(similarity_histogram(items, items, bins=10))
    assert curve.rates(0.8)[0] == pytest.approx(2 / 6)
    assert curve.threshold_at_far(0.1) > 1
    assert (curve.far[0], curve.far[-1]) == (1, 0)
    assert curve.frr.isnan().all()  # there is no positive pair


# --- open set


def open_set_by_hand(query: EmbeddingSet, gallery: EmbeddingSet, enrolled: set[int], threshold: float) -> tuple:
    identified = asked = alarms = strangers = skipped = 0
    for q in range(len(query)):
        identity = int(query.identities[q])
        best = {True: -math.inf, False: -math.inf}
        for g in range(len(gallery)):
            other = int(gallery.identities[g])
            same = other == identity
            if other not in enrolled or query.indices[q] == gallery.indices[g]:
                continue
            if same and query.cameras is not None and gallery.cameras is not None:  # noqa: SIM102
                if query.cameras[q] == gallery.cameras[g] >= 0:
                    continue
            best[same] = max(best[same], float(query.embeddings[q] @ gallery.embeddings[g]))
        if identity not in enrolled:
            strangers += 1
            alarms += best[False] >= threshold
        elif best[True] == -math.inf:
            skipped += 1
        else:
            asked += 1
            identified += best[True] > best[False] + TIE_WIDTH and best[True] >= threshold
    return identified / asked, alarms / strangers, skipped


@pytest.mark.parametrize("block_bytes", [1, 3_000, 2**26])
@pytest.mark.parametrize("seed", range(3))
def test_open_set_equals_a_plain_loop(seed: int, block_bytes: int) -> None:
    items = make_items(people=12, seed=seed)
    items["cameras"] -= 1
    query, gallery = as_set(items, "is_query"), as_set(items, "is_gallery")
    enrolled = enrolled_identities(items["identities"], seed=seed)
    scores = open_set_scores(query, gallery, enrolled, block_bytes)
    for threshold in (-1.0, 0.2, 0.6, 0.9, 2.0):
        detected, alarms, skipped = open_set_by_hand(query, gallery, set(enrolled.tolist()), threshold)
        assert scores.rates(threshold) == pytest.approx((detected, alarms), abs=1e-12)
        assert scores.skipped == skipped


def test_open_set_by_hand() -> None:
    """Enrolled: 1 at 0 degrees and 2 at 90. Queries: 1 at 10 and at 80, 2 at 85, strangers at 5, 45 and 180."""
    embeddings = on_a_circle(0, 90, 10, 80, 85, 5, 45, 180)
    identities = torch.tensor([1, 2, 1, 1, 2, 7, 8, 9])
    everything = EmbeddingSet(embeddings, identities, torch.arange(8))
    scores = open_set_scores(everything.select(torch.arange(2, 8)), everything, torch.tensor([1, 2]))
    # The other images of 1 and 2 are enrolled, too: 1 at 10 has 0, 1 at 80 is nearest to 2 at 85.
    assert scores.right.tolist() == [True, False, False]
    assert scores.enrolled.tolist() == pytest.approx([math.cos(math.radians(angle)) for angle in (10, 5, 5)], abs=1e-6)
    assert scores.rates(0.9) == pytest.approx((1 / 3, 1 / 3))
    assert scores.rates(0.8) == pytest.approx((1 / 3, 2 / 3))
    # Strangers score cos 5, cos 35 and cos 90 degrees. To keep two of them out, the next score above cos 35 will do.
    assert scores.threshold_at_far(1 / 3) == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    assert scores.dir_at_far(1 / 3) == pytest.approx(1 / 3)
    assert scores.dir_at_far(0) == 0


def test_open_set_ties_stand_against_the_query() -> None:
    items = EmbeddingSet(on_a_circle(0, 0, 0), torch.tensor([1, 1, 2]), torch.arange(3))
    scores = open_set_scores(items.select(torch.arange(1)), items, torch.tensor([1, 2]))
    assert scores.right.tolist() == [False] and scores.enrolled.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("enrolled", [[], [0, 1, 2, 3, 4, 5, 6]])
def test_open_set_with_one_side_only(enrolled: list[int]) -> None:
    items = as_set(make_items(cameras=None))
    scores = open_set_scores(items, items, torch.tensor(enrolled, dtype=torch.int64))
    detected, alarms = scores.rates(0.5)
    assert math.isnan(detected) is (not enrolled) and math.isnan(alarms) is bool(enrolled)
    assert math.isnan(scores.dir_at_far(0.1))
    if not enrolled:
        assert alarms == 0 and math.isfinite(scores.threshold_at_far(0.1))


def test_dir_at_far_takes_the_lowest_threshold() -> None:
    scores = OpenSetScores(torch.tensor([0.5, 0.7]), torch.tensor([True, True]), torch.tensor([0.4, 0.6]), 0)
    assert scores.threshold_at_far(0.5) == pytest.approx(0.5)
    assert (scores.dir_at_far(0.5), scores.dir_at_far(0.0), scores.dir_at_far(1.0)) == (1, 0.5, 1)


def test_who_is_enrolled() -> None:
    identities = torch.tensor([5, 3, 3, 9, 1, 5, 7, 2**40])
    chosen = enrolled_identities(identities)
    assert len(chosen) == 3 and set(chosen.tolist()) < set(identities.tolist())
    assert torch.equal(chosen, enrolled_identities(identities.flip(0).repeat(3)))
    others = [tuple(enrolled_identities(identities, seed=seed).tolist()) for seed in range(20)]
    assert len(set(others)) > 5
    assert torch.equal(enrolled_identities(identities, share=1), identities.unique())
    assert len(enrolled_identities(identities, share=0)) == 0
    with pytest.raises(ValueError, match="share is 2"):
        enrolled_identities(identities, share=2)
