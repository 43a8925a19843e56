"""One process against several, through the recipe as a user starts it."""

import re
from pathlib import Path

import pytest
import torch

from tests.processes import launch
from tests.recipes.test_expert_pet import SCRATCH, WORLD


def pet(folder: Path, command: str, *flags: str, devices: int) -> str:
    """Run the pet recipe on this many processes; returns what it printed."""
    folder.mkdir(exist_ok=True)
    flags = (command, *WORLD, *SCRATCH, "--compare_with=[]", *flags)
    return launch("expert_pet", *flags, folder=folder, devices=devices)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    pet(folder, "fit", "--trainer.max_epochs=1", "--pictures.every_n_epochs=0", devices=1)
    return folder / "runs/pet/version_0/checkpoints/best.ckpt"


def scores(printed: str) -> list[str]:
    """Every line of the printed tables: retrieval, also of each kind, pairs, and new images named by the head."""
    tables = printed[printed.index("identities never trained on") :]
    return [line for line in tables.splitlines() if re.search(r"\d+\.\d", line)]


def test_evaluating_one_checkpoint_gives_the_same_scores_on_1_2_and_3_processes(checkpoint, tmp_path):
    found = [scores(pet(tmp_path, "test", f"--ckpt_path={checkpoint}", devices=n)) for n in (1, 2, 3)]
    assert any("closed_top1" in line for line in found[0]) and any("roc_auc" in line for line in found[0])
    assert any("category=" in line for line in found[0])
    assert found[0] == found[1] == found[2]


def trained(folder: Path, devices: int, model: list[str]) -> torch.Tensor:
    """All weights after three steps of SGD."""
    pet(folder, "fit", "--trainer.max_epochs=1", "--pictures.every_n_epochs=0", *model, devices=devices)
    state = torch.load(folder / "runs/pet/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    weights = [v for name, v in state.items() if v.is_floating_point() and "running" not in name]
    return torch.cat([weight.flatten() for weight in weights])


def test_without_batchnorm_gradients_agree_on_1_and_2_processes(tmp_path):
    model = ["--model.backbone=test_vit", "--model.neck=null", "--model.optim.name=sgd", "--model.optim.lr=0.05"]
    one, two = (trained(tmp_path / str(n), n, model) for n in (1, 2))
    assert torch.allclose(one, two, atol=1e-5)


def test_with_batchnorm_2_processes_stay_near_1(tmp_path):
    """Each rank's BatchNorm sees half the batch, so the weights differ, by less than 2% of their length."""
    model = ["--model.optim.name=sgd", "--model.optim.lr=0.01"]
    one, two = (trained(tmp_path / str(n), n, model) for n in (1, 2))
    difference = float((one - two).norm() / one.norm())
    print("relative difference", difference)
    assert 0 < difference < 0.02
