import pytest

from zoo.data.holdout import HoldOut


def test_splitting_depends_on_names_and_seed_only():
    names = [f"n{i}" for i in range(50)]
    split = HoldOut(0.1, 0.3, seed=4).split(names)
    assert split == HoldOut(0.1, 0.3, seed=4).split([*reversed(names), "n3"])
    assert split != HoldOut(0.1, 0.3, seed=5).split(names)
    assert sorted(split.values()).count("val") == 5 and sorted(split.values()).count("test") == 15


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.0, 0.99)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(ValueError, match="share"):
        HoldOut(*shares, seed=0).split(["a", "b", "c"])


def counts(number, val_share=0.1, test_share=0.3):
    kinds = list(HoldOut(val_share, test_share, seed=1).split([f"n{i}" for i in range(number)]).values())
    return tuple(kinds.count(kind) for kind in ("train", "val", "test"))


def test_one_identity_alone_is_never_held_out_and_two_are_left_to_train_on():
    assert [counts(n) for n in (4, 5, 6, 7, 20)] == [(2, 0, 2), (3, 0, 2), (2, 2, 2), (3, 2, 2), (12, 2, 6)]
    assert [counts(n, test_share=0) for n in (1, 3, 4, 6)] == [(1, 0, 0), (3, 0, 0), (2, 2, 0), (4, 2, 0)]
    assert counts(10, 0.5, 0.4) == (2, 5, 3) and counts(10, 0.1, 0.85) == (2, 2, 6) and counts(3, 0, 0) == (3, 0, 0)
    for number in range(4, 40):
        for shares in ((0.05, 0.05), (0.45, 0.45), (0.9, 0.05), (0.05, 0.9), (0, 0.99), (0.99, 0)):
            train, val, test = counts(number, *shares)
            assert train >= 2 and val != 1 and (test >= 2) == (shares[1] > 0)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_too_few_identities_to_test_on_are_refused_with_a_remedy(number):
    with pytest.raises(ValueError, match="set data.val_share and data.test_share to 0"):
        counts(number)
