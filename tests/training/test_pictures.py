"""When a run draws, and what it keeps where."""

from pathlib import Path

import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo.training.pictures import Occasion, RunPictures


class Square(RunPictures):
    def __init__(self, every_n_epochs: int) -> None:
        super().__init__(every_n_epochs)
        self.drawn: list[tuple[str, str, int, bool]] = []

    def draw(self, trainer: Trainer, module: LightningModule, occasion: Occasion) -> None:
        self.drawn.append((occasion.split, occasion.when, occasion.step, occasion.last))
        self.keep(trainer, {"square": Image.new("RGB", (4, 4))}, occasion)


def run(folder: Path, every: int, **options: object) -> tuple[Trainer, Square]:
    callback = Square(every)
    trainer = Trainer(
        **{"logger": TensorBoardLogger(folder, name="", version="")} | options,
        accelerator="cpu",
        max_epochs=5,
        limit_train_batches=2,
        limit_val_batches=1,
        limit_test_batches=1,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, callback


def test_a_run_draws_before_training_every_few_epochs_in_the_last_and_in_evaluations(tmp_path: Path) -> None:
    trainer, callback = run(tmp_path, 2)
    model = BoringModel()
    trainer.fit(model)
    trained = [
        ("val", "before training", 0, False),
        ("val", "epoch 2", 4, False),
        ("val", "epoch 4", 8, False),
        ("val", "epoch 5", 10, True),
    ]
    assert callback.drawn == trained
    trainer.validate(model, verbose=False)
    trainer.test(model, verbose=False)
    assert callback.drawn[4:] == [("val", "", 10, False), ("test", "", 10, False)]
    names = [f"val_square_{step:06d}.png" for step in (0, 4, 8, 10)]
    assert sorted(path.name for path in tmp_path.glob("pictures/*")) == ["test_square_000010.png", *names]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("val/square")] == [0, 4, 8, 10, 10]
    assert [image.step for image in events.Images("test/square")] == [10]


@pytest.mark.parametrize("every, options", [(0, {}), (1, {"fast_dev_run": True}), (1, {"logger": False})])
def test_zero_epochs_dry_runs_and_runs_without_loggers_draw_nothing(tmp_path, monkeypatch, every, options) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, callback = run(tmp_path, every, **options)
    trainer.fit(BoringModel())
    trainer.test(BoringModel(), verbose=False)
    assert not callback.drawn and not list(tmp_path.rglob("pictures"))


def test_a_title_says_when_only_in_training(tmp_path: Path) -> None:
    assert Occasion(tmp_path, "val", "epoch 3", 30, False).titled("galleries") == "val galleries, epoch 3"
    assert Occasion(tmp_path, "test", "", 30, False).titled("galleries") == "test galleries"
