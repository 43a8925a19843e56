"""What follows a fit in plain Lightning: a tiny expert and a tiny stage are saved, tested beside others, compared."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoo
from experts.expert import Expert
from tests.vlm.rig import data_of, galleries, rows, stage
from zoo.backbones import TimmEncoder
from zoo.data.module import InstanceData
from zoo.module import Connect, ZooModule
from zoo.scores import ScoreName, Scores
from zoo.training.callbacks import ControlRun, FinishedFit, SaveComponent, TestBeside, follow_fit
from zoo.training.checkpoints import read_checkpoint
from zoo.vlm.match import MatchData

MAP, ACCURACY = ScoreName("mAP"), ScoreName("accuracy")


def trainer(folder: Path, *callbacks: Callback, monitor: str | None = "val/mAP", **options: object) -> Trainer:
    """Two epochs on the CPU, of which the better one is kept."""
    best = ModelCheckpoint(folder / "checkpoints", monitor=monitor, mode="max", filename="best")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        **{"logger": TensorBoardLogger(folder, name="", version="")} | quiet | options,
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=[*callbacks, best],
    )


def pets(photos: Path) -> InstanceData:
    sizes = {"identities_per_batch": 4, "images_per_identity": 2, "steps_per_epoch": 2, "eval_batch_size": 16}
    return InstanceData(str(photos), **sizes, workers=0)


def expert(**options: object) -> Expert:
    return Expert(**{"category": "pet", "backbone": "test_resnet", "size": 32} | options)


def logged(folder: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """Two encoders with cards."""
    folders = [str(tmp_path_factory.mktemp("cards") / name) for name in ("one", "two")]
    for folder in folders:
        zoo.save(TimmEncoder("test_resnet", size=32), folder, name="encoder")
    return folders


@pytest.fixture(scope="module")
def fit(
    photos: Path, cards: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinishedFit, list[Scores]]:
    """An expert that has gone on from one of the cards, beside the other; and what was shown."""
    folder, shown = tmp_path_factory.mktemp("expert"), []
    run = trainer(folder, SaveComponent(str(folder / "kept"), "Rex & friends"), TestBeside([cards[1]]))
    model, data = expert(init_from=cards[0], backbone=None), pets(photos)
    run.fit(model, data)
    found = follow_fit(run, model, data, "made by hand", shown.append)
    assert found is not None
    return found, shown


# ---------------------------------------------------------------------- an expert


def test_the_component_is_the_best_checkpoint_with_its_threshold_and_its_scores(fit):
    found, _ = fit
    folder = found.folder / "kept"
    assert found.kept == {"component": folder} and found.best == found.folder / "checkpoints/best.ckpt"
    encoder, best = zoo.load(folder), read_checkpoint(found.best)["state_dict"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, best[f"encoder.{name}"]), name
    assert encoder.threshold == found.model.encoder.threshold is not None
    card = zoo.card(folder)
    assert (card.name, card.category, card.recipe) == ("Rex_friends", "pet", "made by hand")
    assert card.scores[0].values["mAP"] == pytest.approx(found.results["trained"][MAP], abs=1e-4)


def test_others_stand_before_the_trained_one_its_start_next_to_it(fit, cards):
    found, shown = fit
    assert list(found.results) == ["untrained", cards[1], cards[0], "trained"]
    assert [list(results) for results in shown] == [list(found.results)]
    assert all(MAP in scores for scores in found.results.values())


def test_only_the_trained_one_leaves_scores_in_the_logger(fit):
    found, _ = fit
    assert logged(found.folder, "test/mAP") == [pytest.approx(found.results["trained"][MAP])]
    assert len(logged(found.folder, "val/mAP")) == 2, "one of each epoch, none of the calibration"
    assert found.trainer.loggers, "which are attached again"


def test_each_is_tested_as_it_would_be_by_itself(fit, cards, photos):
    found, _ = fit
    alone = found.model.peer(cards[1])
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    run.test(alone, pets(photos), verbose=False)
    assert alone.scores == pytest.approx(found.results[cards[1]])


def test_without_a_folder_the_component_lies_in_the_runs(photos, tmp_path):
    run = trainer(tmp_path, SaveComponent())
    model, data = expert(), pets(photos)
    run.fit(model, data)
    found = follow_fit(run, model, data)
    assert found is not None and found.kept == {"component": tmp_path / "expert"}
    assert not found.results and zoo.card(tmp_path / "expert").scores == []
    assert zoo.card(tmp_path / "expert").name == "component"


# ---------------------------------------------------------------------- a stage


def test_a_stage_is_saved_and_tested_beside_its_base_and_its_control(tmp_path):
    made = galleries(tmp_path / "photos", "pet", [*rows("train", 8), *rows("val", 3), *rows("test", 5)])
    model = stage(experts={"pet": "pet_mobilenetv3s050.world"}, writes=False)

    def control() -> tuple[Trainer, ZooModule, MatchData]:
        run = trainer(tmp_path / "control", monitor="val/accuracy")
        return run, model.variant(**model.control), data_of(made)

    shown: list[list[str]] = []
    run = trainer(tmp_path, SaveComponent(), TestBeside(), ControlRun(control), monitor="val/accuracy")
    data = data_of(made)
    run.fit(model, data)
    found = follow_fit(run, model, data, show=lambda results: shown.append(list(results)))
    assert found is not None
    names = ["base model", "stage 1 without experts", "stage 1 with experts"]
    assert list(found.results) == names and shown == [[names[0], names[2]], names]
    assert all(scores[ScoreName("conversations")] == 5 for scores in found.results.values())
    kept, best = zoo.load(tmp_path / "stage"), read_checkpoint(found.best)["state_dict"]
    assert kept.component_state().keys() == best.keys() == model.component_state().keys()
    for name, tensor in kept.component_state().items():
        assert torch.equal(tensor, best[name]), name
    assert found.kept == {"component": tmp_path / "stage", "control": tmp_path / "control/checkpoints/best.ckpt"}
    trained = read_checkpoint(found.kept["control"])["state_dict"]
    assert trained and all(name.startswith("fused.projector.") for name in trained)
    for name, where in ((names[2], tmp_path), (names[1], tmp_path / "control")):
        assert logged(where, "test/accuracy") == [pytest.approx(found.results[name][ACCURACY])]


# ---------------------------------------------------------------------- when nothing follows


class Interrupt(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, number: int) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_an_interrupted_fit_is_followed_by_nothing(photos, tmp_path):
    run = trainer(tmp_path, SaveComponent(), TestBeside(), Interrupt())
    model, data = expert(), pets(photos)
    with pytest.raises(SystemExit):
        run.fit(model, data)
    assert run.checkpoint_callback.best_model_path, "there is a checkpoint of the first epoch"
    assert follow_fit(run, model, data) is None and not (tmp_path / "expert").exists()


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_train_batches": 0}])
def test_a_fit_without_a_checkpoint_is_followed_by_nothing(options, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(tmp_path, SaveComponent(), TestBeside(), **options)
    model, data = expert(), pets(photos)
    run.fit(model, data)
    assert follow_fit(run, model, data) is None and not (tmp_path / "expert").exists()


def test_a_card_that_is_not_there_is_refused_before_training(photos, tmp_path):
    run = trainer(tmp_path, TestBeside(["general_mobilnet"]))
    with pytest.raises(zoo.CardError, match="general_mobilenetv3s050.world"):
        run.fit(expert(), pets(photos))
    assert run.global_step == 0
    with pytest.raises(ValueError, match="is a AdditiveFusion, not an identity encoder"):
        expert().peer(_adapter(tmp_path / "adapter"))


def _adapter(folder: Path) -> str:
    from fusion import AdditiveFusion

    zoo.save(AdditiveFusion(8, 4), folder, name="adapter")
    return str(folder)


def test_data_that_hold_out_nothing_to_test_on_leave_an_untested_component(photos, tmp_path, capsys):
    run = trainer(tmp_path, SaveComponent(), TestBeside())
    model, data = expert(), InstanceData(str(photos), test_share=0.0, steps_per_epoch=1, workers=0)
    run.fit(model, data)
    found = follow_fit(run, model, data)
    assert found is not None and not found.results and zoo.card(tmp_path / "expert").scores == []
    assert "Nothing was tested" in capsys.readouterr().out


def test_callbacks_leave_a_root_that_is_not_the_zoos_alone(tmp_path):
    run = trainer(tmp_path, SaveComponent(), TestBeside(), Connect(), monitor=None, limit_train_batches=1)
    run.fit(BoringModel(), BoringDataModule())
    assert run.global_step == 2
