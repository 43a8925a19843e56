import pytest
import torch

from zoo.training.checkpoints import AtomicCheckpointIO


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
