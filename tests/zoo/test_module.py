import math

import pytest
import torch
from torch import nn

from zoo.module import Optim, ZooModule, warmup_cosine


class Toy(ZooModule):
    def __init__(self, **options):
        super().__init__(**options)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 2)

    def lr_multipliers(self):
        return {"head": 10.0, "trunk": 0.5, "trunk.2": 0.25}


def names_of(module, group):
    ids = {id(p) for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in ids}


def test_groups_follow_the_longest_prefix_and_spare_vectors_from_decay():
    toy = Toy(optim=Optim(lr=0.1, weight_decay=0.3))
    groups = {(round(g["lr"], 6), g["weight_decay"]): names_of(toy, g) for g in toy.parameter_groups()}
    assert groups == {
        (1.0, 0.3): {"head.weight"},
        (1.0, 0.0): {"head.bias"},
        (0.05, 0.3): {"trunk.0.weight"},
        (0.05, 0.0): {"trunk.0.bias", "trunk.1.weight", "trunk.1.bias"},
        (0.025, 0.3): {"trunk.2.weight"},
        (0.025, 0.0): {"trunk.2.bias"},
    }


def test_what_is_frozen_has_no_group_no_gradient_and_keeps_its_statistics():
    toy = Toy(freeze=["trunk"])
    toy.apply_freezing()
    toy.train()
    assert set().union(*(names_of(toy, g) for g in toy.parameter_groups())) == {"head.weight", "head.bias"}
    before = toy.trunk[1].running_mean.clone()
    toy.head(toy.trunk(torch.randn(2, 3, 8, 8)).mean((2, 3))).sum().backward()
    assert torch.equal(toy.trunk[1].running_mean, before) and toy.head.training and not toy.trunk.training
    assert all(p.grad is None for p in toy.trunk.parameters())


def test_freezing_nothing_that_exists_is_refused():
    with pytest.raises(ValueError, match=r"'trnk' names no parameter.*head.*trunk"):
        Toy(freeze=["trnk"]).apply_freezing()


def test_warm_up_then_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup=4, total=12)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(2 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[12] == pytest.approx(0.0)


def test_another_architectures_checkpoint_is_refused_in_few_words():
    state = Toy().state_dict()
    state["trunk.0.weight"] = torch.zeros(1)
    del state["trunk.2.bias"]
    state["stray"] = torch.zeros(1)
    with pytest.raises(ValueError) as refusal:
        Toy().on_load_checkpoint({"state_dict": state})
    for part in ("1 missing, such as trunk.2.bias", "1 left over, such as stray", "such as trunk.0.weight"):
        assert part in str(refusal.value)


def test_only_plain_values_become_hyperparameters():
    class Root(ZooModule):
        def __init__(self, size: int = 3, part: type = Toy, optim: Optim | None = None) -> None:
            super().__init__(optim)
            self.save_plain_hyperparameters()

    root = Root(size=4, optim=Optim(lr=0.5))
    assert root.hparams["size"] == 4 and root.hparams["optim"]["lr"] == 0.5 and "part" not in root.hparams
    assert Root(**root.hparams).optim == Optim(lr=0.5)
