"""Checkpoints are written whole or not at all, and read without running any code of them."""

import pickle
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from zoo.module import ZooModule
from zoo.training.checkpoints import AtomicCheckpointIO, load_weights, read_checkpoint


def test_a_save_that_fails_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "last.ckpt"
    io.save_checkpoint({"weights": torch.ones(3)}, path)
    earlier = path.read_bytes()

    def full_disk(checkpoint, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"weights": torch.zeros(3)}, path)
    assert path.read_bytes() == earlier
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"], "no draft is left behind"


class Wide(ZooModule):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 2)


def saved(model: ZooModule, path: Path) -> Path:
    """The checkpoint of a run that has not trained."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


def test_the_weights_of_a_checkpoint_are_loaded_to_the_last_bit(tmp_path):
    model, other = Wide(), Wide()
    path = saved(model, tmp_path / "a.ckpt")
    assert read_checkpoint(path)["state_dict"].keys() == model.state_dict().keys()
    load_weights(other, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_of_another_model_are_refused_and_none_are_loaded(tmp_path):
    other = Wide(4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="is not of this Wide: of 2 tensors, 1 of another shape"):
        load_weights(other, saved(Wide(), tmp_path / "a.ckpt"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


class Trap:
    """Running it would leave a file."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [b"no checkpoint", b"", {"weights": torch.zeros(1)}, Trap()], ids=type)
def test_what_is_no_checkpoint_of_a_run_is_refused_and_no_code_of_it_is_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("a.ckpt").write_bytes(content)
    elif isinstance(content, dict):
        torch.save(content, "a.ckpt")
    else:
        Path("a.ckpt").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="Checkpoint a.ckpt is refused: it .* Give the .ckpt file of a run"):
        read_checkpoint("a.ckpt")
    assert not Path("ran").exists()
