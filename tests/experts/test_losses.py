import inspect
import math
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_metric_learning import losses as library
from torch.nn import functional as F

from experts.losses import BatchHardTriplet, PairLoss
from recipes.expert_pet import main
from tests.recipes.test_expert_pet import TINY, assert_same_end

# ---------------------------------------------------------------------- batch-hard triplets


def brute_force(features, labels, margin, normalize):
    if normalize:
        features = F.normalize(features, dim=1)
    losses = []
    for a in range(len(features)):
        distance = [float((features[a] - f).norm()) for f in features]
        positive = [d for j, d in enumerate(distance) if labels[j] == labels[a] and j != a]
        negative = [d for j, d in enumerate(distance) if labels[j] != labels[a]]
        if positive and negative:
            violation = max(positive) - min(negative)
            losses.append(math.log1p(math.exp(violation)) if margin is None else max(0.0, violation + margin))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("margin, normalize", [(0.3, False), (0.3, True), (None, False)])
@pytest.mark.parametrize("case", ["random", "duplicates", "collapsed", "lonely", "one identity", "no positives"])
def test_batch_hard_is_hardest_positive_against_hardest_negative(case, margin, normalize):
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
    elif case == "no positives":
        labels = torch.arange(12)
    loss = BatchHardTriplet(margin, normalize)(features, labels)
    assert loss.item() == pytest.approx(brute_force(features, labels, margin, normalize), abs=1e-3)


@pytest.mark.parametrize("margin", [0.3, None])
def test_gradients_are_finite_on_duplicates_and_loss_stays_float32(margin):
    features = torch.ones(8, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = BatchHardTriplet(margin)(features * 1.0, torch.arange(8) // 2)
    loss.backward()
    assert loss.dtype == torch.float32 and features.grad is not None and features.grad.isfinite().all()


def test_the_soft_margin_is_refused_on_unit_norm():
    with pytest.raises(ValueError, match="soft margin does not suit unit-norm"):
        BatchHardTriplet(margin=None, normalize=True)


# ---------------------------------------------------------------------- the library's losses by name

PAIR_LOSSES = {
    *("AngularLoss", "CircleLoss", "ContrastiveLoss", "FastAPLoss", "GeneralizedLiftedStructureLoss"),
    *("IntraPairVarianceLoss", "LiftedStructureLoss", "MarginLoss", "MultiSimilarityLoss", "NCALoss", "NPairsLoss"),
    *("NTXentLoss", "PNPLoss", "RankedListLoss", "SignalToNoiseRatioContrastiveLoss", "SupConLoss"),
    *("ThresholdConsistentMarginLoss", "TripletMarginLoss"),
}
BATCH_ONLY = {
    *("FastAPLoss", "NPairsLoss", "PNPLoss", "RankedListLoss", "ThresholdConsistentMarginLoss"),
}
NEEDED = {"RankedListLoss": {"margin": 0.2, "Tn": 1}}


def by_name(name, **more):
    return PairLoss(name, NEEDED.get(name), **more)


def batch(rows=12, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator), torch.arange(rows) // 3


def multi_similarity(rows, labels, others, of, itself):
    """Wang et al., CVPR 2019, eq. 15 without its mining, with the library's alpha 2, beta 50, base 0.5."""
    similarity = F.normalize(rows, dim=1).double() @ F.normalize(others, dim=1).double().T
    total = 0.0
    for a, row in enumerate(similarity.tolist()):
        positive = [s for j, s in enumerate(row) if of[j] == labels[a] and not (itself and j == a)]
        negative = [s for j, s in enumerate(row) if of[j] != labels[a]]
        total += math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in positive)) / 2
        total += math.log(1 + sum(math.exp(50 * (s - 0.5)) for s in negative)) / 50
    return total / len(rows)


def test_options_reach_the_library():
    features, labels = batch()
    assert PairLoss()(features, labels).item() == pytest.approx(
        multi_similarity(features, labels, features, labels, itself=True), rel=1e-4
    )
    similarity = (F.normalize(features, dim=1) @ F.normalize(features, dim=1).T / 0.3).exp().tolist()
    terms = [
        -math.log(similarity[a][p] / (similarity[a][p] + sum(similarity[a][n] for n in range(12) if n // 3 != a // 3)))
        for a in range(12)
        for p in range(12)
        if p != a and p // 3 == a // 3
    ]
    loss = PairLoss("NTXentLoss", {"temperature": 0.3})(features, labels)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_a_miner_picks_the_pairs():
    features, labels = batch()
    mined = PairLoss("TripletMarginLoss", {"margin": 5.0}, miner="BatchHardMiner")(features, labels)
    hardest = brute_force(features, labels, 5.0, normalize=True)
    assert mined.item() == pytest.approx(hardest, rel=1e-4)
    assert mined > PairLoss("TripletMarginLoss", {"margin": 5.0})(features, labels)
    none_left = PairLoss(miner="MultiSimilarityMiner", miner_options={"epsilon": -9.0})(features, labels)
    assert none_left == 0


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
@pytest.mark.parametrize("case", ["random", "collapsed", "zero", "one identity", "lonely", "no positives", "empty"])
def test_every_pair_loss_stays_finite(name, case):
    features, labels = batch()
    if case == "collapsed":
        features[:] = features[0]
    elif case == "zero":
        features[:] = 0
    elif case == "one identity":
        labels[:] = 7
    elif case == "lonely":
        labels[0] = 99
    elif case == "no positives":
        labels = torch.arange(12)
    elif case == "empty":
        features, labels = features[:0], labels[:0]
    features.requires_grad_()
    loss_module = by_name(name, memory=0 if name in BATCH_ONLY else 20, width=6)
    for _ in range(2):  # the second time with a memory
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_module(features * 1.0, labels)
        features.grad = None
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and features.grad.isfinite().all()
        if case in ("no positives", "empty") and not loss_module.memory:
            assert loss == 0


@pytest.mark.parametrize("loss", [BatchHardTriplet(), BatchHardTriplet(None), PairLoss(), PairLoss("FastAPLoss")])
def test_without_positives_there_is_a_zero_with_a_graph(loss):
    for rows in (0, 1, 4):
        features = torch.randn(rows, 3, requires_grad=True)
        value = loss(features, torch.arange(rows))
        value.backward()
        assert value.item() == 0 and (features.grad == 0).all()


def test_only_losses_over_labelled_pairs_are_offered():
    offered, with_memory = set(), set()
    for name in [name for name, item in vars(library).items() if inspect.isclass(item)]:
        for found, memory in ((offered, 0), (with_memory, 4)):
            try:
                by_name(name, memory=memory)
                found.add(name)
            except ValueError as refusal:
                assert str(refusal).endswith(".")
    assert offered == PAIR_LOSSES and with_memory == PAIR_LOSSES - BATCH_ONLY


REFUSED = {
    "unknown loss": (dict(name="MultiSimilartyLoss"), "Did you mean MultiSimilarityLoss"),
    "unknown option": (dict(options={"alfa": 2}), "Did you mean alpha.* Options: alpha, beta, base"),
    "option of a base that is no value": (dict(options={"distance": "LpDistance"}), "no option 'distance'"),
    "value out of place": (dict(name="AngularLoss", options={"alpha": "wide"}), "AngularLoss does not take"),
    "missing option": (dict(name="RankedListLoss"), "needs a value for margin, Tn"),
    "classifier": (dict(name="ProxyAnchorLoss"), "it is a head"),
    "classifier without the mixin": (dict(name="P2SGradLoss"), "it is a head"),
    "fails on what the sampler may give": (dict(name="SmoothAPLoss"), "is refused: it fails where"),
    "wrapper": (dict(name="CrossBatchMemory"), "Unknown loss"),
    "unknown miner": (dict(miner="BatchHardMinr"), "Unknown miner.*Did you mean BatchHardMiner"),
    "unknown option of a miner": (dict(miner="MultiSimilarityMiner", miner_options={"eps": 0.1}), "no option 'eps'"),
    "options without a miner": (dict(miner_options={"epsilon": 0.1}), "belong to no miner"),
    "miner that knows no identities": (dict(miner="EmbeddingsAlreadyPackagedAsTriplets"), "does not work"),
    "strategy that the miner fixes": (dict(miner="BatchHardMiner", miner_options={"pos_strategy": "easy"}), "not take"),
    "loss that takes no memory": (dict(name="FastAPLoss", memory=8), "Set model.metric_loss.memory to 0"),
    "negative memory": (dict(memory=-1), "give 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_at_once(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        PairLoss(**arguments)


def test_making_a_loss_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    PairLoss("TripletMarginLoss", miner="DistanceWeightedMiner", memory=4)
    assert torch.rand(1) == expected


# ---------------------------------------------------------------------- memory


def test_memory_adds_earlier_rows_as_partners():
    loss = PairLoss(memory=20, width=6, warmup=1)
    batches = [batch(seed=seed) for seed in range(5)]
    for step, (features, labels) in enumerate(batches):
        expected = multi_similarity(features, labels, features, labels, itself=True)
        if step > 1:  # step 0 warms up, step 1 finds an empty memory
            kept = torch.cat([rows for rows, _ in batches[1:step]])[-20:]
            of = torch.cat([identities for _, identities in batches[1:step]])[-20:]
            expected += multi_similarity(features, labels, kept, of, itself=False)
        assert loss(features, labels).item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(loss.queue, torch.cat([rows for rows, _ in batches])[-20:])
    assert torch.equal(loss.queue_labels, torch.cat([identities for _, identities in batches])[-20:])


def test_a_row_meets_its_equal_of_an_earlier_step_but_never_itself():
    """NCALoss takes every partner into account, whatever pairs it is given, and easy positives would be the row."""
    features, labels = batch()
    loss = PairLoss("NCALoss", memory=20, width=6)
    alone = PairLoss("NCALoss")(features, labels)
    assert loss(features, labels) == alone
    assert loss(features, labels) > alone
    easy = {"pos_strategy": "easy", "neg_strategy": "hard"}
    loss = PairLoss("ContrastiveLoss", miner="BatchEasyHardMiner", miner_options=easy, memory=20, width=6)
    assert loss(features, labels) == PairLoss("ContrastiveLoss", miner="BatchEasyHardMiner", miner_options=easy)(
        features, labels
    )


def test_gradients_flow_through_the_batch_and_not_through_the_memory():
    loss = PairLoss(memory=20, width=6)
    first, second = (batch(seed=seed)[0].requires_grad_() for seed in (0, 1))
    loss(first, batch()[1])
    value = loss(second, batch()[1])
    value.backward()
    assert first.grad is None and (second.grad != 0).any() and not loss.queue.requires_grad


def test_memory_moves_in_training_only_and_lives_through_a_state_dict():
    loss = PairLoss(memory=16, width=6, warmup=1)
    for seed in range(3):
        loss(*batch(seed=seed))
    copy = PairLoss(memory=16, width=6, warmup=1)
    copy.load_state_dict(loss.state_dict())
    twin = deepcopy(loss)
    values = [module(*batch(seed=9)) for module in (loss, copy, twin)]
    assert values[0] == values[1] == values[2]
    before = loss.queue.clone()
    loss.eval()
    loss(*batch(seed=10))
    assert torch.equal(loss.queue, before)


def test_memory_takes_batches_larger_than_itself_and_empty_ones():
    loss = PairLoss(memory=5, width=6)
    features, labels = batch()
    loss(features, labels)
    loss(features[:0], labels[:0])
    assert torch.equal(loss.queue, features[-5:]) and torch.equal(loss.queue_labels, labels[-5:])


def test_a_memory_of_another_width_says_which_is_right():
    for width in (None, 5):
        with pytest.raises(ValueError, match="Set model.metric_loss.width to 6"):
            PairLoss(memory=8, width=width)(*batch())


# ---------------------------------------------------------------------- as a user asks for them

FLAGS = [
    "--model.metric_loss=experts.losses.PairLoss",
    "--model.metric_loss.name=MultiSimilarityLoss",
    "--model.metric_loss.options={alpha: 1.5, beta: 40}",
    "--model.metric_loss.miner=MultiSimilarityMiner",
    "--model.metric_loss.miner_options={epsilon: 0.2}",
    "--model.metric_loss.memory=40",
    "--model.metric_loss.width=1024",
    "--model.metric_loss.warmup=2",
]


def test_flags_are_understood(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", *FLAGS, "--model.head=experts.heads.CosFaceHead", "--model.head.scale=null", "--print_config"])
    printed = capsys.readouterr()
    assert not end.value.code, printed.err
    model = yaml.safe_load(printed.out)["model"]
    arguments = model["metric_loss"]["init_args"]
    assert arguments["options"] == {"alpha": 1.5, "beta": 40} and arguments["miner_options"] == {"epsilon": 0.2}
    assert arguments["memory"] == 40 and model["head"]["init_args"]["scale"] is None


def test_a_resumed_run_remembers(tmp_path, monkeypatch):
    """Resumed in the second of three epochs, the memory full: it must end where an uninterrupted one does."""
    monkeypatch.chdir(tmp_path)
    often = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.init_args.every_n_train_steps=1",
        "--trainer.callbacks.init_args.save_top_k=-1",
        "--trainer.callbacks.init_args.filename={step}",
    ]
    quick = ["--pictures.every_n_epochs=0"]
    main(["fit", *TINY, *FLAGS, *often, *quick])
    shutil.copytree("runs/pet/version_0", "uninterrupted")
    main(["fit", *TINY, *FLAGS, *quick, "--ckpt_path=runs/pet/version_0/checkpoints/step=5.ckpt"])
    assert_same_end(Path("runs/pet/version_0"), Path("uninterrupted"))
    state = torch.load("uninterrupted/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state["metric_loss.steps"] == 9 and (state["metric_loss.queue_labels"] >= 0).all()
