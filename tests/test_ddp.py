"""One process against several, through the recipe as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from tests.recipes.test_expert_pet import WORLD


def launch(folder: Path, *flags: str, devices: int) -> str:
    """Run the pet recipe on this many processes; returns what it printed."""
    folder.mkdir(exist_ok=True)
    parallel = ["--trainer.accelerator=cpu", f"--trainer.devices={devices}"]
    parallel += ["--trainer.strategy=ddp"] if devices > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "recipes.expert_pet", flags[0], *WORLD, "--compare_with=[]", *flags[1:], *parallel],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1]), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    launch(folder, "fit", "--trainer.max_epochs=1", "--pictures.every_n_epochs=0", devices=1)
    return folder / "runs/pet/version_0/checkpoints/best.ckpt"


def scores(printed: str) -> list[str]:
    line = next(line for line in printed.splitlines() if re.match(r"\W*test\W", line))
    return re.findall(r"[\d.]+", line)


def test_evaluating_one_checkpoint_gives_the_same_scores_on_1_2_and_3_processes(checkpoint, tmp_path):
    found = [scores(launch(tmp_path, "test", f"--ckpt_path={checkpoint}", devices=n)) for n in (1, 2, 3)]
    assert len(found[0]) == 6 and found[0] == found[1] == found[2]


BARE = ["--model.backbone=test_vit", "--model.neck=null", "--model.optim.name=sgd", "--model.optim.lr=0.05"]


@pytest.mark.parametrize(("model", "tolerance"), [(BARE, 1e-5), ([], 0.05)], ids=["without BatchNorm", "with"])
def test_training_on_2_processes_agrees_with_1(model, tolerance, tmp_path):
    """After three steps of SGD on the same global batches. BatchNorm sees half a batch on each of two ranks, so
    there the relative tolerance of the update is wide."""
    states = []
    for devices in (1, 2):
        flags = [*(model or ["--model.optim.name=sgd", "--model.optim.lr=0.01"]), "--model.size=48"]
        launch(tmp_path / str(devices), "fit", "--trainer.max_epochs=1", *flags, devices=devices)
        path = tmp_path / str(devices) / "runs/pet/version_0/checkpoints/last.ckpt"
        states.append(torch.load(path, weights_only=True)["state_dict"])
    one, two = states
    weights = [name for name, value in one.items() if value.is_floating_point() and "running" not in name]
    difference = max(float((one[n] - two[n]).norm() / one[n].norm().clamp(min=1e-3)) for n in weights)
    assert difference < tolerance
