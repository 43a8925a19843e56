"""How much of the training time goes into waiting for data."""

import logging
import time

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)


class DataTime(Callback):
    """Measures steps and the waits between them; logs both each epoch, and sums up at the end of training.

    Validation and checkpoints are in neither.

    Args:
        tolerable: share of the training time up to which waiting is not worth a word of advice.
    """

    def __init__(self, tolerable: float = 0.1) -> None:
        self.tolerable = tolerable
        self.stepping = self.waiting = self._epoch_stepping = self._epoch_waiting = 0.0
        self.steps = 0
        self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_stepping, self._epoch_waiting = self.stepping, self.waiting
        self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.waiting += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.stepping += self._lap()
        self.steps += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap()  # a validation in the middle of an epoch is no wait

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stepping, waiting = self.stepping - self._epoch_stepping, self.waiting - self._epoch_waiting
        pl_module.log("time/waiting_for_data", waiting / max(stepping + waiting, 1e-9))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.steps or not trainer.is_global_zero:
            return
        total = self.stepping + self.waiting
        share = self.waiting / total
        advice = " More data.workers may help, or smaller images on disk." if share > self.tolerable else ""
        log.info("%.3f s a step, %.0f%% of it waiting for data.%s", total / self.steps, 100 * share, advice)

    def _lap(self) -> float:
        """Seconds since it was last asked."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last
