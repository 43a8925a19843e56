"""When a run draws pictures of what it learns, and where it keeps them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from zoo.drawing import save_png


class Occasion(NamedTuple):
    """A time to draw.

    Args:
        folder: where its pictures go.
        split: that was evaluated, "val" or "test".
        when: in training, such as "epoch 3"; empty outside of it.
        step: of training, 0 before it.
        last: whether it is the last epoch of training.
    """

    folder: Path
    split: str
    when: str
    step: int
    last: bool

    def titled(self, what: str) -> str:
        """What is drawn, of which split and when, such as "val identities, epoch 3"."""
        return f"{self.split} {what}, {self.when}" if self.when else f"{self.split} {what}"


class RunPictures(Callback, ABC):
    """Draws before training, every few epochs and at the end, and after a validation or test on its own.

    Pictures go into the run's `pictures` folder and into TensorBoard. A dry run, or one without loggers, draws none.

    Args:
        every_n_epochs: epochs between two drawings; 0 draws nothing.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    @abstractmethod
    def draw(self, trainer: Trainer, module: LightningModule, occasion: Occasion) -> None:
        """Draw what has just been evaluated and `keep` it; nothing of a module that is not of the right kind.

        Called on all ranks; only rank zero may keep pictures.
        """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_n_epochs:
            return
        last = trainer.max_epochs is not None and trainer.current_epoch == trainer.max_epochs - 1
        if trainer.sanity_checking:
            self._draw(trainer, pl_module, "val", "before training", step=0)
        elif trainer.state.fn == "validate":
            self._draw(trainer, pl_module, "val", "", trainer.global_step)
        elif last or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, "val", f"epoch {trainer.current_epoch + 1}", trainer.global_step, last)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs:
            self._draw(trainer, pl_module, "test", "", trainer.global_step)

    def _draw(
        self, trainer: Trainer, module: LightningModule, split: str, when: str, step: int, last: bool = False
    ) -> None:
        if trainer.loggers and not getattr(trainer, "fast_dev_run", False):  # which Lightning's class does not declare
            folder = Path(trainer.log_dir or ".") / "pictures"  # asked of all ranks: Lightning broadcasts it
            self.draw(trainer, module, Occasion(folder, split, when, step, last))

    @staticmethod
    def keep(trainer: Trainer, pictures: Mapping[str, Image.Image], occasion: Occasion) -> None:
        """Save pictures, by name, as PNG and in TensorBoard."""
        split, step = occasion.split, occasion.step
        for name, picture in pictures.items():
            save_png(picture, occasion.folder / f"{split}_{name}_{step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"{split}/{name}", np.asarray(picture), step, dataformats="HWC")
