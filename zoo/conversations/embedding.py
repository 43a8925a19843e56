"""Images of an index as an encoder sees them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.contracts import IdentityEncoder
from zoo.data.dataset import Collate, IdentityDataset
from zoo.data.index import IdentityIndex
from zoo.data.samplers import ShardSampler
from zoo.distributed import from_all_ranks, gather_with_gradient, rank, world_size

SPLITS = ("train", "val", "test")


def sides(index: IdentityIndex, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the queries and of the images that galleries of a split are made from.

    Raises:
        ValueError: not one of train, val and test.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}; test takes in query and gallery.")
    return (index.rows("train"), index.rows("train")) if split == "train" else index.sides(split)


@dataclass(frozen=True)
class Embedded:
    """Images of an index as an encoder sees them.

    Args:
        rows: (N,) int64 rows of the index, rising.
        vectors: (N, D) float32 of length 1.
        unreadable: "path: reason" of every image that could not be read and is therefore not among them.
    """

    rows: np.ndarray
    vectors: Tensor
    unreadable: tuple[str, ...] = ()

    def sides(self, index: IdentityIndex, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`sides` without the images that could not be read.

        Raises:
            ValueError: not one of train, val and test.
        """
        queries, gallery = (np.intersect1d(side, self.rows) for side in sides(index, split))
        return queries, gallery

    def of(self, rows: np.ndarray) -> Tensor:
        """(M,) rows of the index -> (M, D) their vectors."""
        return self.vectors[torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.vectors.device)]


def embed(
    index: IdentityIndex,
    encoder: IdentityEncoder,
    rows: np.ndarray,
    workers: int = 2,
    progress: bool = True,
    batch_size: int = 128,
) -> Embedded:
    """Embed rows of an index, on the encoder's device, sharded where torch.distributed runs.

    Whole batches are dealt out to the ranks, so that their number cannot change the last bits of a vector.

    Args:
        index: the images.
        encoder: used in eval mode.
        rows: (M,) rows, without repetitions.
        workers: processes that decode, on each rank.
        progress: show a bar, on rank 0.
        batch_size: images in a batch.

    Returns:
        those that can be read, on every rank.

    Raises:
        ValueError: an embedding that is not finite.
    """
    rows = np.sort(rows)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)][rank() :: world_size()]
    loader = DataLoader(
        IdentityDataset(index, encoder.transform.compose()),
        batch_size=batch_size,
        sampler=ShardSampler(np.concatenate([*batches, rows[:0]])),
        collate_fn=Collate(index, encoder.transform.size),
        num_workers=workers,
    )
    vectors, done, unreadable = [torch.zeros(0, encoder.embed_dim)], [rows[:0]], []
    for batch in track(loader, "Embedding", total=len(batches), disable=not progress or rank() > 0):
        unreadable += batch.skipped
        if len(batch.images):
            vectors.append(encoder.embed(encoder.transform.normalise(batch.images.to(encoder.device))).cpu())
            done.append(batch.indices.numpy())
    where = encoder.device if world_size() > 1 and dist.get_backend() == "nccl" else torch.device("cpu")
    found = gather_with_gradient(torch.from_numpy(np.concatenate(done)).to(where)).cpu().numpy()
    everything = gather_with_gradient(torch.cat(vectors).to(where))
    order = np.argsort(found)
    everything = everything[torch.from_numpy(order).to(where)].to(encoder.device)
    broken = ~everything.isfinite().all(dim=1)
    if broken.any():
        path = index.paths[found[order][int(broken.nonzero()[0])]]
        raise ValueError(f"The embedding of {path} is not finite. Use another encoder, or train it again.")
    return Embedded(found[order], everything, tuple(sorted(sum(from_all_ranks(unreadable), []))))
