"""LastIsBest: without anything to validate on, the last epoch counts as the best."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class LastIsBest(Callback):
    """Lets checkpoints that wait for a score of the validation keep the last epoch, where the data module `validates`
    nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage != "fit" or getattr(data, "validates", True):
            return
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and str(checkpoint.monitor).startswith("val/"):
                checkpoint.monitor = None
