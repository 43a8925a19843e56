"""Data whose training batches go on where an interrupted run stopped."""

from lightning import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker


class ResumableData(LightningDataModule):
    """Base of the data modules: checkpoints keep which batch comes next, and samplers start there.

    A `train_dataloader` hands `resume_at` to its sampler: `sampler.resume(**self.resume_at)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resume_at = {"epoch": 0, "step": 0}

    def state_dict(self) -> dict[str, int]:
        """Epoch and step that a resumed run draws next; kept in every checkpoint."""
        assert self.trainer is not None
        epoch = self.trainer.fit_loop.epoch_progress.current
        assert isinstance(epoch, _ProcessedTracker)  # as Lightning makes it
        step = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if epoch.started == epoch.processed:  # between epochs
            return {"epoch": epoch.processed, "step": 0}
        if step < self.trainer.num_training_batches:
            return {"epoch": epoch.processed, "step": step}
        return {"epoch": epoch.processed + 1, "step": 0}  # after the last step, before the epoch is closed

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Called before the loaders are built, earlier than the trainer restores its own progress."""
        self.resume_at = state_dict
