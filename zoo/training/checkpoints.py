"""Checkpoints: written whole or not at all, and read without running any code of them."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames. Lightning's own goes by way of the system's temporary folder, from
    where a checkpoint is copied over the earlier one when that is another file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Save, whole or not at all.

        Raises:
            OSError: the disk is full or the folder cannot be written to; the earlier checkpoint is intact.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open(draft, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What a run has saved, read without running any code of it.

    Raises:
        ValueError: the file is no checkpoint of a run, or cannot be read.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        if "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint:
            return checkpoint
        reason = "it is no checkpoint of a run"
    except Exception as error:  # torch raises whatever its readers run into
        reason = f"it cannot be read ({type(error).__name__})"
    raise ValueError(
        f"Checkpoint {path} is refused: {reason}. Give the .ckpt file of a run; "
        "`python -m recipes.zoo convert` takes foreign weights."
    )


def load_weights(module: LightningModule, path: Path | str) -> None:
    """Load the weights of a checkpoint into a module that is configured, as a run that starts from it would.

    Raises:
        ValueError: no checkpoint, or one of another model.
    """
    checkpoint = read_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
