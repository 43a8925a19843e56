"""Without anything to validate on, the last epoch counts as the best."""

from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch.utils.data import DataLoader

from zoo.training.callbacks import LastIsBest


class Model(BoringModel):
    """Its score falls from epoch to epoch, so that the first is the best."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", float(-self.current_epoch))


class Data(BoringDataModule):
    def __init__(self, validates: bool) -> None:
        super().__init__()
        self.validates = validates

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return super().val_dataloader() if self.validates else []


@pytest.mark.parametrize(("validates", "kept"), [(True, 0), (False, 2)])
def test_the_last_epoch_is_kept_where_nothing_is_validated(validates: bool, kept: int, tmp_path: Path) -> None:
    watched = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val/score", mode="max")
    other = ModelCheckpoint(tmp_path, filename="by loss", monitor="train_loss", save_top_k=0)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[LastIsBest(), watched, other],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), Data(validates))
    assert Path(watched.best_model_path).name == f"epoch={kept}.ckpt"
    assert other.monitor == "train_loss", "a score of the training is there all the same"
