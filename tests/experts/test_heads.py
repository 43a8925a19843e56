import math

import pytest
import torch
from torch.nn import functional as F

from experts.heads import ArcFaceHead, CosFaceHead, CrossEntropyHead, SubCentreArcFaceHead

HEADS = [ArcFaceHead, CosFaceHead, SubCentreArcFaceHead, CrossEntropyHead]


def cosines(embeddings, weights):
    """(B, E), (E, C) -> B rows of C Python floats."""
    pairs = F.normalize(embeddings, dim=1).double() @ F.normalize(weights.detach(), dim=0).double()
    return pairs.clamp(-1, 1).tolist()


def cross_entropy(rows, labels):
    """Mean over B rows of logits, one number at a time."""
    total = sum(-row[y] + math.log(sum(math.exp(value) for value in row)) for row, y in zip(rows, labels, strict=True))
    return total / len(rows)


def batch(classes=5, width=8):
    torch.manual_seed(0)
    return torch.randn(6, width), torch.tensor([0, 1, 2, 3, 4, 0]) % classes


def test_arcface_is_equation_3_of_the_paper():
    embeddings, labels = batch()
    head = ArcFaceHead(5, 8, scale=20.0, margin=0.4)
    rows = [
        [20 * math.cos(math.acos(cosine) + (0.4 if j == y else 0)) for j, cosine in enumerate(row)]
        for row, y in zip(cosines(embeddings, head.loss.W), labels.tolist(), strict=True)
    ]
    assert head(embeddings, labels).item() == pytest.approx(cross_entropy(rows, labels.tolist()), rel=1e-4)


def test_cosface_is_equation_4_of_the_paper():
    embeddings, labels = batch()
    head = CosFaceHead(5, 8, scale=20.0, margin=0.25)
    rows = [
        [20 * (cosine - (0.25 if j == y else 0)) for j, cosine in enumerate(row)]
        for row, y in zip(cosines(embeddings, head.loss.W), labels.tolist(), strict=True)
    ]
    assert head(embeddings, labels).item() == pytest.approx(cross_entropy(rows, labels.tolist()), rel=1e-4)


def test_sub_centre_arcface_takes_the_nearest_centre_of_each_identity():
    embeddings, labels = batch()
    head = SubCentreArcFaceHead(5, 8, scale=20.0, margin=0.4, sub_centres=3)
    assert head.loss.W.shape == (8, 15)
    rows = []
    for row, y in zip(cosines(embeddings, head.loss.W), labels.tolist(), strict=True):
        nearest = [max(row[3 * j : 3 * j + 3]) for j in range(5)]
        rows.append([20 * math.cos(math.acos(c) + (0.4 if j == y else 0)) for j, c in enumerate(nearest)])
    assert head(embeddings, labels).item() == pytest.approx(cross_entropy(rows, labels.tolist()), rel=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_cross_entropy_smooths_its_targets(normalize):
    embeddings, labels = batch()
    head = CrossEntropyHead(5, 8, smoothing=0.2, cosine_scale=12.0 if normalize else None)
    assert head.linear.bias is None
    torch.nn.init.normal_(head.linear.weight)
    weights = head.linear.weight.T
    if normalize:
        rows = [[12 * cosine for cosine in row] for row in cosines(embeddings, weights)]
    else:
        rows = (embeddings.double() @ weights.detach().double()).tolist()
    total = 0.0
    for row, y in zip(rows, labels.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        total -= sum((0.2 / 5 + (0.8 if j == y else 0)) * (value - norm) for j, value in enumerate(row))
    assert head(embeddings, labels).item() == pytest.approx(total / 6, rel=1e-4)


def test_logits_carry_no_margin():
    embeddings, labels = batch()
    for kind in (ArcFaceHead, CosFaceHead):
        head = kind(5, 8, scale=20.0, margin=0.3)
        by_hand = 20 * torch.tensor(cosines(embeddings, head.loss.W))
        assert torch.allclose(head.logits(embeddings), by_hand, atol=1e-4)
        assert head(embeddings, labels) > cross_entropy(by_hand.tolist(), labels.tolist())
        without = kind(5, 8, scale=20.0, margin=0.0)
        rows = without.logits(embeddings).tolist()
        assert without(embeddings, labels).item() == pytest.approx(cross_entropy(rows, labels.tolist()), abs=1e-2)
    head = SubCentreArcFaceHead(5, 8, scale=20.0, sub_centres=2)
    by_hand = 20 * torch.tensor(cosines(embeddings, head.loss.W)).view(6, 5, 2).amax(2)
    assert torch.allclose(head.logits(embeddings), by_hand, atol=1e-4)
    head = CrossEntropyHead(5, 8)
    assert torch.allclose(head.logits(embeddings), embeddings @ head.linear.weight.T)


@pytest.mark.parametrize("kind", HEADS)
def test_new_images_of_known_identities_are_found_by_their_logits(kind):
    torch.manual_seed(0)
    head = kind(20, 16, smoothing=0.1) if kind is CrossEntropyHead else kind(20, 16)
    centres = torch.randn(20, 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        labels = torch.randint(20, (64,))
        optimizer.zero_grad()
        head(centres[labels] + 0.1 * torch.randn(64, 16), labels).backward()
        optimizer.step()
    unseen = centres + 0.1 * torch.randn(20, 16)
    assert torch.equal(head.logits(unseen).argmax(1), torch.arange(20))


@pytest.mark.parametrize("kind", HEADS)
def test_autocast_neither_demotes_the_weights_nor_the_loss(kind):
    head = kind(5, 8)
    embeddings, labels = batch()
    plain, plain_logits = head(embeddings, labels), head.logits(embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, mixed_logits = head(embeddings, labels), head.logits(embeddings)
    assert next(head.parameters()).dtype == mixed.dtype == mixed_logits.dtype == torch.float32
    assert torch.equal(plain, mixed) and torch.equal(plain_logits, mixed_logits)
    assert head(embeddings.bfloat16(), labels).dtype == head.logits(embeddings.bfloat16()).dtype == torch.float32
    assert next(head.parameters()).dtype == torch.float32


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("case", ["at its centre", "opposite", "duplicates", "zero", "one identity"])
def test_gradients_stay_finite(kind, case):
    torch.manual_seed(0)
    head = kind(5, 8)
    centres = head.linear.weight if kind is CrossEntropyHead else head.loss.W.T[:: head.loss.W.shape[1] // 5]
    embeddings, labels = torch.randn(6, 8), torch.arange(6) % 5
    if case == "at its centre":
        embeddings = centres.detach()[labels].clone()
    elif case == "opposite":
        embeddings = -centres.detach()[labels]
    elif case == "duplicates":
        embeddings[:] = embeddings[0]
    elif case == "zero":
        embeddings[:] = 0
    else:
        labels[:] = 3
    embeddings.requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_an_empty_batch_is_a_zero_that_reaches_every_weight(kind):
    head = kind(5, 8)
    loss = head(torch.zeros(0, 8, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_class_that_the_head_does_not_have_is_refused(kind, label):
    with pytest.raises(ValueError, match=f"Class {label} is not one of this head's 5"):
        kind(5, 8)(torch.randn(2, 8), torch.tensor([0, label]))


@pytest.mark.parametrize("kind", HEADS)
def test_one_identity_is_refused_and_two_are_told_apart(kind):
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"over {number} identities|needs 3 identities, here are {number}"):
            kind(number, 8)
    loss = kind(2, 8)(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))
    assert loss.isfinite() and loss > 0


def test_the_scale_follows_the_number_of_identities():
    embeddings, labels = batch()
    for kind in (ArcFaceHead, CosFaceHead, SubCentreArcFaceHead):
        torch.manual_seed(1)
        by_rule = kind(5, 8, scale=None)
        torch.manual_seed(1)
        by_hand = kind(5, 8, scale=math.sqrt(2) * math.log(4))
        assert by_rule(embeddings, labels) == by_hand(embeddings, labels)
        with pytest.raises(ValueError, match="needs 3 identities, here are 2"):
            kind(2, 8, scale=None)


def test_outliers_lie_far_from_the_centre_of_most():
    torch.manual_seed(0)
    head = SubCentreArcFaceHead(3, 4, sub_centres=2)
    axes = torch.eye(4)
    # Two centres each: of identity 0 on axes 0 and 1, of 1 on 1 and 2, of 2 on 2 and 3.
    head.loss.W.data = torch.stack([axes[0], axes[1], axes[1], axes[2], axes[2], axes[3]], dim=1)
    embeddings = torch.stack([axes[0], axes[0], axes[1], axes[1], axes[1] + 0.1 * axes[2], axes[2]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert head.outliers(embeddings, labels).tolist() == [False, False, True, False, False, True]
    assert not head.outliers(embeddings[:2], labels[:2]).any()
