"""The base of every component: freezing, learning rates, hyperparameters, and how a run connects model and data."""

import math
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader

from zoo.module import Connect, Optim, ZooModule, warmup_cosine


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


@pytest.mark.parametrize("option", ["freeze", "unfreeze"])
def test_freezing_nothing_that_exists_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option}: 'trnk' names no parameter.*head.*trunk"):
        Toy(**{option: ["trnk"]}).apply_freezing()


class Frozen(Toy):
    def frozen_parts(self):
        return ("trunk",)


def trained_names(toy):
    return set().union(*(names_of(toy, group) for group in toy.parameter_groups()))


def test_of_a_frozen_part_what_unfreeze_names_trains():
    """Its neighbours stay in eval mode, so that the statistics of a BatchNorm between them do not move."""
    toy = Frozen(unfreeze=["trunk.2"])
    toy.apply_freezing()
    toy.train()
    assert trained_names(toy) == {"head.weight", "head.bias", "trunk.2.weight", "trunk.2.bias"}
    assert toy.trunk[2].training and not toy.trunk[0].training and not toy.trunk[1].training
    before = {name: tensor.clone() for name, tensor in toy.trunk[1].state_dict().items()}
    toy.head(toy.trunk(torch.randn(2, 3, 8, 8)).mean((2, 3))).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.trunk[1].state_dict().items())
    assert {name for name, p in toy.named_parameters() if p.grad is not None} == trained_names(toy)
    toy.eval()
    toy.train()
    assert toy.trunk[2].training and not toy.trunk[1].training, "also after an evaluation"


def test_a_batchnorm_that_unfreeze_names_has_moving_statistics():
    toy = Frozen(unfreeze=["trunk.1.*"])
    toy.apply_freezing()
    toy.train()
    before = toy.trunk[1].running_mean.clone()
    toy.trunk(torch.randn(2, 3, 8, 8))
    assert not torch.equal(toy.trunk[1].running_mean, before)
    assert trained_names(toy) == {"head.weight", "head.bias", "trunk.1.weight", "trunk.1.bias"}


def test_freeze_wins_over_unfreeze():
    toy = Frozen(unfreeze=["trunk"], freeze=["trunk.2.bias", "head"])
    toy.apply_freezing()
    assert trained_names(toy) == {"trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias", "trunk.2.weight"}


def test_multiples_of_the_optimiser_win_over_those_of_the_root_the_longest_of_each_first():
    toy = Toy(optim=Optim(lr=1.0, weight_decay=0.0, multiples={"trunk": 3.0, "*.bias": 2.0, "trunk.1.bias": 7.0}))
    rates = {name: group["lr"] for group in toy.parameter_groups() for name in names_of(toy, group)}
    assert rates == {
        "head.weight": 10.0,
        "head.bias": 2.0,
        "trunk.0.weight": 3.0,
        "trunk.0.bias": 2.0,
        "trunk.1.weight": 3.0,
        "trunk.1.bias": 7.0,
        "trunk.2.weight": 3.0,
        "trunk.2.bias": 2.0,
    }


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


# ---------------------------------------------------------------------- model and data


class Line(ZooModule):
    """Notes what happens in a run of it, in order."""

    def __init__(self, events: list[str], name: str = "model") -> None:
        super().__init__(Optim(lr=0.1))
        self.layer, self.events, self.name = nn.Linear(32, 2), events, name
        self.connected: list[object] = []

    def connect(self, data: "Points") -> None:
        self.connected.append(data)
        self.events.append(f"{self.name}.connect")

    def configure_model(self) -> None:
        self.events.append(f"{self.name}.configure_model")

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...


class Points(LightningDataModule):
    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events, self.connected = events, []

    def setup(self, stage: str) -> None:
        self.events.append("data.setup")

    def connect(self, model: Line) -> None:
        self.connected.append(model)
        self.events.append("data.connect")

    def loader(self) -> DataLoader:
        self.events.append("data.loader")
        return DataLoader(RandomDataset(32, 4))

    def train_dataloader(self) -> DataLoader:
        return self.loader()

    def test_dataloader(self) -> DataLoader:
        return self.loader()


def trainer_in(folder: Path, **options: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet | options
    )


@pytest.mark.parametrize("callbacks", [[], [Connect()]], ids=["by the root", "given"])
def test_data_and_model_are_connected_once_a_call_before_the_model_and_loaders_are_made(callbacks, tmp_path):
    events: list[str] = []
    model, other, data = Line(events), Line(events, "other"), Points(events)
    trainer = trainer_in(tmp_path, callbacks=callbacks)
    order = ["data.setup", "data.connect", "{}.connect", "{}.configure_model", "data.loader"]
    for call, root in ((trainer.fit, model), (trainer.test, model), (trainer.test, other), (trainer.test, model)):
        call(root, datamodule=data)
        assert events == [event.format(root.name) for event in order], call
        events.clear()
    assert data.connected == [model, model, other, model]
    assert model.connected == [data] * 3 and other.connected == [data]


def test_data_and_roots_that_know_nothing_of_it_are_left_alone(tmp_path):
    events: list[str] = []
    trainer_in(tmp_path).fit(Line(events), datamodule=BoringDataModule())
    assert events == ["model.connect", "model.configure_model"], "the root takes what it can"
    trainer_in(tmp_path, callbacks=[Connect()]).fit(BoringModel(), datamodule=BoringDataModule())


def test_without_a_data_module_a_run_goes_by_its_loaders(tmp_path):
    events: list[str] = []
    model = Line(events)
    trainer = trainer_in(tmp_path)
    trainer.fit(model, train_dataloaders=DataLoader(RandomDataset(32, 4)))
    assert trainer.global_step == 4 and events == ["model.configure_model"]
    trainer.test(model, dataloaders=DataLoader(RandomDataset(32, 4)), verbose=False)
    assert not model.connected
