"""The command line that all recipes share, on a root that knows nothing of identities: a line through points."""

import gc
import logging
import os
import re
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from recipes import cli
from recipes.cli import Recipe, RecipeCLI, config_files, parse, run
from recipes.process import use_cpu_well
from zoo.module import Optim, ZooModule
from zoo.scores import ScoreName

NEARNESS, ERROR = ScoreName("nearness"), ScoreName("error")


class Line(ZooModule):
    """y = slope x, fitted by gradient descent.

    Args:
        start: slope before training.
        optim: optimiser and schedule.
        note: plain data that nothing reads.
    """

    control_name = "from_zero"

    def __init__(self, start: float = 0.0, optim: Optim = Optim(lr=0.1), note: str | None = None) -> None:  # noqa: B008
        super().__init__(optim)
        self.save_plain_hyperparameters()
        self.slope = torch.nn.Parameter(torch.tensor(start))

    def error(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return (self.slope * x - y).abs().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.error(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.errors.append(float(self.error(batch)))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.errors.append(float(self.error(batch)))

    def on_validation_epoch_start(self) -> None:
        self.errors = []

    def on_test_epoch_start(self) -> None:
        self.errors = []

    def on_validation_epoch_end(self) -> None:
        self.report("val", {NEARNESS: -sum(self.errors) / len(self.errors)})

    def on_test_epoch_end(self) -> None:
        self.report("test", {ERROR: sum(self.errors) / len(self.errors)})

    @property
    def control(self) -> dict[str, object]:
        return {"start": 0.0, "note": "control"}


class Points(LightningDataModule):
    """Points of y = slope x.

    Args:
        slope: of the line that they lie on.
        held_out: whether some are kept to validate on.
    """

    def __init__(self, slope: float = 1.0, held_out: bool = True) -> None:
        super().__init__()
        self.slope, self.held_out = slope, held_out

    @property
    def validates(self) -> bool:
        return self.held_out

    def loader(self) -> DataLoader:
        x = torch.linspace(0, 1, 8)
        return DataLoader(TensorDataset(x, self.slope * x), batch_size=4)

    def train_dataloader(self) -> DataLoader:
        return self.loader()

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self.loader() if self.held_out else []

    def test_dataloader(self) -> DataLoader:
        return self.loader()


QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped base.yaml, with a family `line` and its recipe `line_fit`."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.yaml").write_text((cli.CONFIGS / "base.yaml").read_text())
    (folder / "line.yaml").write_text("name: family\nmonitor: val/nearness\nmodel: {note: family, start: 0.5}\n")
    (folder / "line_fit.yaml").write_text("model: {note: recipe}\ntrainer: {max_epochs: 3}\n")
    monkeypatch.setattr(cli, "CONFIGS", folder)
    return folder


def line(command: str, *flags: str) -> RecipeCLI:
    return run(Line, Points, "line_fit", [command, *QUICK, *flags])


# ---------------------------------------------------------------------- what is laid over what


def test_base_then_family_then_recipe_then_the_user(configs):
    assert [path.stem for path in config_files("line_fit")] == ["base", "line", "line_fit"]
    assert [path.stem for path in config_files("line")] == ["base", "line"], "each once"
    assert [path.stem for path in config_files("other_recipe")] == ["base"], "what is not there is left out"
    Path("mine.yaml").write_text("data: {slope: 3.0}\nmodel: {optim: {lr: 0.25}}\n")
    ran = line("fit", "--trainer.fast_dev_run=1", "-c", "mine.yaml", "--model.optim.lr=0.5")
    assert ran.config.fit.name == "family"
    assert ran.model.hparams["note"] == "recipe" and ran.model.hparams["start"] == 0.5
    assert ran.datamodule.slope == 3.0 and ran.model.optim.lr == 0.5
    assert ran.config.fit.trainer.max_epochs == 3 and ran.config.fit.trainer.default_root_dir == "runs/family"


def monitored(config: Namespace) -> list[str | None]:
    callbacks = config.fit.trainer.callbacks
    return [c.init_args.monitor for c in callbacks if c.class_path.endswith("ModelCheckpoint")]


def test_a_flag_names_the_score_of_the_best_checkpoint(configs):
    dry = "--trainer.fast_dev_run=1"
    assert monitored(line("fit", dry).config) == ["val/nearness", None]
    assert monitored(line("fit", dry, "--monitor=val/other").config) == ["val/other", None]
    assert monitored(line("fit", dry, "--monitor=null").config) == [None, None]


# ---------------------------------------------------------------------- a run


def test_a_fit_keeps_its_best_checkpoint_and_prints_its_scores(configs, capsys):
    """Momentum carries the slope past the line and back: the last epoch is not the best."""
    swings = ["--model.start=0.0", "--model.optim.name=sgd", "--model.optim.lr=0.2", "--trainer.max_epochs=4"]
    ran = line("fit", *swings)
    printed = capsys.readouterr().out
    saved = torch.load("runs/family/version_0/checkpoints/best.ckpt", weights_only=True)
    slope = float(saved["state_dict"]["slope"])
    assert saved["epoch"] == 1
    assert ran.results.keys() == {"trained"}
    assert ran.results["trained"][ERROR] == pytest.approx(abs(slope - 1) * 0.5, abs=1e-6)
    assert float(ran.trainer.checkpoint_callback.best_model_score) == pytest.approx(-abs(slope - 1) * 0.5, abs=1e-6)
    assert re.search(rf"error\s+{ran.results['trained'][ERROR]:.4g}\b", printed)
    assert "best checkpoint  runs/family/version_0/checkpoints/best.ckpt\nLook at it:  tensorboard" in printed
    assert ran.kept == {"best checkpoint": Path("runs/family/version_0/checkpoints/best.ckpt")}
    command = f"python -m recipes.line_fit fit {' '.join([*QUICK, *swings])}"
    assert f"{command} --ckpt_path=runs/family/version_0/checkpoints/last.ckpt" in printed.replace("\n", " ")


def test_of_data_without_validation_the_last_epoch_is_the_best(configs):
    ran = line("fit", "--data.held_out=false", "--model.optim.lr=0.01")
    saved = [
        torch.load(f"runs/family/version_0/checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")
    ]
    assert saved[0]["epoch"] == saved[1]["epoch"] == 2
    assert ran.model.slope.item() == saved[1]["state_dict"]["slope"].item()


@pytest.mark.parametrize("command, score", [("test", ERROR), ("validate", NEARNESS)])
def test_test_and_validate_print_their_scores(configs, capsys, command, score):
    ran = line(command, "--model.start=0.25")
    assert ran.results == {command: {score: pytest.approx(0.375 * (1 if command == "test" else -1))}}
    assert str(score) in capsys.readouterr().out


def test_a_dry_run_leaves_nothing_and_reports_nothing(configs, capsys):
    assert line("fit", "--trainer.fast_dev_run=1").results == {}
    assert not Path("runs").exists() and "If interrupted" not in capsys.readouterr().out


def test_resumed_flags_win_and_only_what_differs_is_printed(configs, capsys):
    line("fit", "--model.start=0.5", "--trainer.max_epochs=1", "--name=first")
    capsys.readouterr()
    checkpoint = "--ckpt_path=runs/first/version_0/checkpoints/last.ckpt"
    ran = line("fit", "--model.start=0.5", "--name=second", checkpoint)
    assert "the checkpoint was made with" not in capsys.readouterr().out
    assert ran.trainer.current_epoch == 3 and Path(ran.trainer.log_dir) == Path("runs/first/version_0")
    assert not Path("runs/second").exists(), "a resumed run goes on in its own folder"
    ran = line("test", "--model.note=null", "--model.optim.warmup=0.5", checkpoint)
    differing = [text for text in capsys.readouterr().out.splitlines() if "the checkpoint was made with" in text]
    assert [text.split()[0] for text in differing] == ["model.note", "model.optim"]
    assert differing[0] == "model.note is None, the checkpoint was made with recipe"
    assert ran.model.optim.warmup == 0.5


# ---------------------------------------------------------------------- what follows a fit


def test_a_control_is_a_run_of_its_own_with_its_own_configuration(configs, capsys):
    ran = line("fit", "--model.start=0.75", "--control=true", "--trainer.max_epochs=1")
    printed = capsys.readouterr().out
    assert list(ran.results) == ["trained from zero", "trained"]
    paths = [Path(f"runs/{name}/version_0/config.yaml") for name in ("family", "family_from_zero")]
    config, control = (yaml.safe_load(path.read_text()) for path in paths)
    assert config["control"] and not control["control"] and control["name"] == "family_from_zero"
    assert config["model"]["start"] == 0.75 and control["model"]["start"] == 0.0
    assert control["model"]["note"] == "control" and control["trainer"]["max_epochs"] == 1
    assert "The same from zero, to compare with:" in printed
    assert ran.kept["control"] == Path("runs/family_from_zero/version_0/checkpoints/best.ckpt")
    assert ran.model.hparams["start"] == 0.75 and ran.config.fit.name == "family", "the run itself is as it was"


def test_a_flag_of_what_a_recipe_does_not_have_is_refused(configs, monkeypatch, capsys):
    monkeypatch.setattr(Line, "control_name", "")
    for flag in ("--control=true", "--then=more"):
        with pytest.raises(SystemExit) as end:
            line("fit", flag)
        assert end.value.code == 2 and flag.partition("=")[0] in capsys.readouterr().err


def test_a_configuration_is_asked_for_without_running_anything(configs):
    """All defaults are filled in, values are plain, and the random state stays."""
    before = torch.random.get_rng_state()
    config = parse(Line, Points, Recipe("line_fit"), ["fit", *QUICK, "--model.optim.lr=0.5"])
    assert config["name"] == "family" and config["data"] == {"slope": 1.0, "held_out": True}
    assert config["model"]["optim"]["lr"] == 0.5 and config["model"]["note"] == "recipe"
    assert config["trainer"]["default_root_dir"] == "runs/family" and config["monitor"] == "val/nearness"
    assert torch.equal(torch.random.get_rng_state(), before) and not Path("runs").exists()
    with pytest.raises(SystemExit) as end:
        parse(Line, Points, "line_fit", ["fit", "--model.strat=1"])
    assert end.value.code == 2


# ---------------------------------------------------------------------- many runs in one process


def process_state() -> dict[str, object]:
    names = ("", "zoo", "lightning", "lightning.pytorch", "lightning.fabric")
    return {
        "handlers": [list(logging.getLogger(name).handlers) for name in names],
        "filters": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "path": list(sys.path),
    }


def test_nothing_of_a_run_stays_in_the_process(configs):
    first = line("fit", "--trainer.max_epochs=1")
    before, slope = process_state(), first.model.slope.item()
    for number in range(2):
        last = line("fit", "--trainer.max_epochs=1")
        assert last.trainer.log_dir.endswith(f"version_{number + 1}"), "each run has a folder of its own"
        assert last.model.slope.item() == slope and last.results == first.results, "each starts from the same seed"
    assert process_state() == before
    alive = [weakref.ref(thing) for thing in (first, last, first.model, last.model)]
    del first, last
    gc.collect()
    assert [reference() for reference in alive] == [None] * 4


@pytest.mark.parametrize(("busy", "given", "threads"), [(0, None, 4), (1, None, 3), (9, None, 1), (1, "7", None)])
def test_the_model_takes_the_cores_that_busy_loaders_leave(monkeypatch, busy, given, threads):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    use_cpu_well(busy)
    assert taken == ([] if threads is None else [threads])
