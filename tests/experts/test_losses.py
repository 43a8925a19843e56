import pytest
import torch
from torch.nn import functional as F

from experts.losses import BatchHardTriplet


def brute_force(features, labels, margin, normalize):
    if normalize:
        features = F.normalize(features, dim=1)
    losses = []
    for a in range(len(features)):
        distance = [float((features[a] - f).norm()) for f in features]
        positive = [d for j, d in enumerate(distance) if labels[j] == labels[a] and j != a]
        negative = [d for j, d in enumerate(distance) if labels[j] != labels[a]]
        if positive and negative:
            losses.append(max(0.0, max(positive) - min(negative) + margin))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("case", ["random", "duplicates", "collapsed", "lonely", "one identity"])
def test_batch_hard_is_hardest_positive_against_hardest_negative(case, normalize):
    torch.manual_seed(1)
    features, labels = torch.randn(12, 5), torch.arange(12) // 3
    if case == "duplicates":
        features[1] = features[0]
        features[5] = features[9]
    elif case == "collapsed":
        features[:] = features[0]
    elif case == "lonely":  # an identity with one image has no positive
        labels[0] = 99
    elif case == "one identity":
        labels[:] = 7
    loss = BatchHardTriplet(margin=0.3, normalize=normalize)(features, labels)
    assert loss.item() == pytest.approx(brute_force(features, labels, 0.3, normalize), abs=1e-3)


def test_gradients_are_finite_on_duplicates_and_loss_stays_float32():
    features = torch.ones(8, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = BatchHardTriplet()(features * 1.0, torch.arange(8) // 2)
    loss.backward()
    assert loss.dtype == torch.float32 and features.grad is not None and features.grad.isfinite().all()
