"""Images as vectors: the same alone, in batches, in a predict run and on several processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning import Trainer
from torch import distributed as dist

import zoo
from tests.conftest import write_identities
from tests.conversations.conftest import ENCODER, index_of
from zoo.conversations.embedding import ImageEmbeddings, embed

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def same(first: ImageEmbeddings, second: ImageEmbeddings) -> bool:
    vectors = torch.equal(first.vectors, second.vectors)
    return vectors and np.array_equal(first.rows, second.rows) and first.unreadable == second.unreadable


def test_embedding_is_that_of_one_image_at_a_time(photos):
    index, encoder = index_of(photos), zoo.load(ENCODER)
    encoder.train()
    rows = np.array([7, 3, 40, 41])
    found = embed(index, encoder, rows, workers=0, progress=False, batch_size=3)
    alone = torch.cat([encoder.embed(encoder.transform(index.image(row))[None]) for row in sorted(rows)])
    assert found.rows.tolist() == [3, 7, 40, 41] and torch.allclose(found.vectors, alone, atol=1e-5)
    assert torch.equal(found.of(np.array([40, 3])), found.vectors[[2, 0]])
    assert len(embed(index, encoder, rows[:0], workers=0, progress=False).rows) == 0


def test_an_encoder_that_gives_no_numbers_is_refused(photos):
    index, encoder = index_of(photos), zoo.load(ENCODER)
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The embedding of id_000/0.png is not finite"):
        embed(index, encoder, np.arange(2), workers=0, progress=False)


def test_a_predict_run_gives_the_same_vectors(tmp_path):
    root = write_identities(tmp_path / "photos", identities=8)
    (root / "id_001/0.png").write_bytes(b"")
    index, encoder, rows = index_of(root), zoo.load(ENCODER), np.arange(30)
    trainer = Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, **QUIET)
    alone = embed(index, encoder, rows, workers=0, progress=False, batch_size=4)
    assert same(alone, embed(index, encoder, rows, workers=0, progress=False, batch_size=4, trainer=trainer))
    assert len(alone.rows) == 29 and alone.unreadable == ("id_001/0.png: empty file",)
    alone.vectors[0] = 0  # no tensor of inference mode, which could not be changed


CASES = {"several batches each": (np.arange(20), 4), "one batch, for one of them": (np.arange(5), 7)}


def work(number: int, folder: str, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    for name, (rows, batch_size) in CASES.items():
        found = embed(index_of(Path(root)), zoo.load(ENCODER), rows, workers=0, progress=False, batch_size=batch_size)
        torch.save((found.rows.tolist(), found.vectors), f"{folder}/{number} {name}")
    dist.destroy_process_group()


def test_two_processes_give_the_vectors_of_one_to_the_last_bit(photos, tmp_path):
    """With as many threads each, on which the last bits depend."""
    mp.spawn(work, (str(tmp_path), str(photos)), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (rows, batch_size) in CASES.items():
            one = embed(index_of(photos), zoo.load(ENCODER), rows, workers=0, progress=False, batch_size=batch_size)
            for number in (0, 1):
                found_rows, vectors = torch.load(tmp_path / f"{number} {name}")
                assert found_rows == one.rows.tolist() and torch.equal(vectors, one.vectors)
    finally:
        torch.set_num_threads(threads)
