"""Images of an index as vectors of a general encoder, computed by one process or several."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.contracts import IdentityBatch, IdentityEncoder
from zoo.conversations.rule import CONVERSATION_SPLITS
from zoo.data.dataset import IdentityCollate, IdentityDataset
from zoo.data.index import IdentityIndex
from zoo.data.samplers import ShardSampler
from zoo.distributed import from_all_ranks, gather_with_gradient, rank, world_size


def query_and_gallery_rows(index: IdentityIndex, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) rows of the images that are asked about in a split, and (G,) of those that its galleries are filled with.

    Raises:
        ValueError: not one of train, val and test.
    """
    if split not in CONVERSATION_SPLITS:
        known = ", ".join(CONVERSATION_SPLITS)
        raise ValueError(f"Unknown split {split!r}. Known: {known}; test takes in query and gallery.")
    return (index.rows("train"), index.rows("train")) if split == "train" else index.sides(split)


@dataclass(frozen=True)
class ImageEmbeddings:
    """Vectors of the images of an index that could be read.

    Args:
        rows: (N,) int64 rows of the index, rising.
        vectors: (N, D) float32 of length 1.
        unreadable: "path: reason" of every image that could not be read and is therefore not among them.
    """

    rows: np.ndarray
    vectors: Tensor
    unreadable: tuple[str, ...] = ()

    def query_and_gallery_rows(self, index: IdentityIndex, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The same as the function of this name, less the images that have no vector.

        Raises:
            ValueError: not one of train, val and test.
        """
        queries, gallery = (np.intersect1d(rows, self.rows) for rows in query_and_gallery_rows(index, split))
        return queries, gallery

    def of(self, rows: np.ndarray) -> Tensor:
        """(M,) rows of the index -> (M, D) their vectors."""
        return self.vectors[torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.vectors.device)]

    def select(self, kept: np.ndarray) -> "ImageEmbeddings":
        """Those where this mask (N,) is true."""
        return ImageEmbeddings(
            self.rows[kept], self.vectors[torch.from_numpy(kept).to(self.vectors.device)], self.unreadable
        )


def embed(
    index: IdentityIndex,
    encoder: IdentityEncoder,
    rows: np.ndarray,
    workers: int = 2,
    progress: bool = True,
    batch_size: int = 128,
    trainer: Trainer | None = None,
) -> ImageEmbeddings:
    """Embed rows of an index, shared by all processes.

    Args:
        index: the images.
        encoder: used in eval mode.
        rows: (M,) rows, without repetitions.
        workers: processes that decode, on each rank.
        progress: show a bar, on rank 0.
        batch_size: images in a batch.
        trainer: runs it as a predict run, on its devices; None computes in the processes that are there already, as
            inside of another run, on the encoder's device.

    Returns:
        vectors of those that can be read, the same on every rank.

    Raises:
        ValueError: an embedding that is not finite.
    """
    run = EmbeddingRun(index, encoder, rows, workers, batch_size)
    if trainer is not None:
        predicted = cast(list[EmbeddedBatch] | None, trainer.predict(run))  # None where there was no batch
        return run.gathered(predicted or [], trainer.strategy.root_device)
    loader = run.predict_dataloader()
    batches = track(loader, "Embedding", total=len(loader), disable=not progress or rank() > 0)
    return run.gathered(map(run.predict_step, batches), encoder.device)


class EmbeddedBatch(NamedTuple):
    """What an encoder makes of one batch: (B,) rows, (B, D) vectors on the CPU, and "path: reason" of the others."""

    rows: np.ndarray
    vectors: Tensor
    unreadable: tuple[str, ...]


class EmbeddingRun(LightningModule):
    """A predict run that embeds images. `embed` starts it, and does the same without a trainer.

    Whole batches are dealt out to the ranks: the last bits of a vector depend on the shape of its batch, which must
    not depend on the number of ranks.

    Args:
        index: the images.
        encoder: used in eval mode.
        rows: (M,) rows, without repetitions.
        workers: processes that decode, on each rank.
        batch_size: images in a batch.
    """

    def __init__(
        self, index: IdentityIndex, encoder: IdentityEncoder, rows: np.ndarray, workers: int, batch_size: int
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer batches than ranks
        self.index, self.encoder, self.rows = index, encoder, np.sort(rows)
        self.workers, self.batch_size = workers, batch_size

    def predict_dataloader(self) -> DataLoader:
        starts = range(0, len(self.rows), self.batch_size)
        batches = [self.rows[start : start + self.batch_size] for start in starts][rank() :: world_size()]
        return DataLoader(
            IdentityDataset(self.index, self.encoder.transform.compose()),
            batch_size=self.batch_size,
            sampler=ShardSampler(np.concatenate([*batches, self.rows[:0]])),
            collate_fn=IdentityCollate(self.index, self.encoder.transform.size),
            num_workers=self.workers,
        )

    def predict_step(self, batch: IdentityBatch, batch_idx: int = 0) -> EmbeddedBatch:
        encoder = self.encoder
        if not len(batch.images):
            return EmbeddedBatch(self.rows[:0], torch.zeros(0, encoder.embed_dim), batch.skipped)
        vectors = encoder.embed(encoder.transform.normalise(batch.images.to(encoder.device))).cpu()
        return EmbeddedBatch(batch.indices.cpu().numpy(), vectors, batch.skipped)

    def gathered(self, batches: Iterable[EmbeddedBatch], device: torch.device) -> ImageEmbeddings:
        """The batches of all ranks, on every rank.

        Args:
            batches: of this rank.
            device: where the vectors are wanted.

        Raises:
            ValueError: an embedding that is not finite.
        """
        nothing = EmbeddedBatch(self.rows[:0], torch.zeros(0, self.encoder.embed_dim), ())
        own_rows, own_vectors, unreadable = zip(nothing, *batches, strict=True)
        where = device if world_size() > 1 and dist.get_backend() == "nccl" else torch.device("cpu")
        rows = gather_with_gradient(torch.from_numpy(np.concatenate(own_rows)).to(where)).cpu().numpy()
        vectors = gather_with_gradient(torch.cat(own_vectors).to(where))
        order = np.argsort(rows)
        rows, vectors = rows[order], vectors[torch.from_numpy(order).to(where)].to(device)
        broken = ~vectors.isfinite().all(dim=1)
        if broken.any():
            path = self.index.paths[rows[int(broken.nonzero()[0])]]
            raise ValueError(f"The embedding of {path} is not finite. Use another encoder, or train it again.")
        every_rank = from_all_ranks([line for lines in unreadable for line in lines])
        return ImageEmbeddings(rows, vectors, tuple(sorted(sum(every_rank, []))))
