"""Which images a step sees. Stateless: the order is a function of (seed, epoch, step) and of nothing else, so
neither a resume nor the number of workers can change it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Key(NamedTuple):
    """What a sampler asks a dataset for: an image, and the epoch that seeds its augmentation."""

    epoch: int
    row: int


class PKSampler(Sampler[Key]):
    """Batches of P identities with K images each, as metric learning needs them.

    Every pass over the identities is a permutation of its own, cut into groups of P; what is left over by the cut
    differs from pass to pass. An identity with fewer than K images repeats some, newly augmented. With several
    ranks, each yields its own P / world_size identities of the same global batch.

    Args:
        identities: (N,) identity of every image of the index.
        rows: the rows to draw from.
        p: identities in the global batch.
        k: images of each.
        seed: seed of all choices.
        rank: this process.
        world_size: number of processes.
        steps: length of an epoch in batches; None for as many as the images fill.

    Raises:
        ValueError: P that the ranks cannot share evenly, or more than there are identities.
    """

    def __init__(
        self,
        identities: np.ndarray,
        rows: np.ndarray,
        p: int,
        k: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
    ) -> None:
        if p < 1 or k < 1:
            raise ValueError(f"A batch needs at least one identity and one image of each, got {p} x {k}.")
        if p % world_size:
            raise ValueError(
                f"{p} identities in a batch cannot be shared evenly by {world_size} processes. "
                f"Choose a multiple of {world_size}."
            )
        ordered = rows[np.argsort(identities[rows], kind="stable")]
        self._rows_of = np.split(ordered, np.flatnonzero(np.diff(identities[ordered])) + 1)
        if p > len(self._rows_of) or not len(rows):
            raise ValueError(
                f"A batch of {p} identities is asked for, but only {len(self._rows_of)} have training images. "
                f"Set identities_per_batch to at most {len(self._rows_of)}."
            )
        self.p, self.k, self.seed, self.rank, self.world_size = p, k, seed, rank, world_size
        self.steps = steps if steps is not None else max(1, len(rows) // (p * k))
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        return self.steps * self.p * self.k // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of every epoch."""
        if epoch != self.epoch:
            self.epoch, self.first_step = epoch, 0

    def resume(self, epoch: int, step: int) -> None:
        """Start the next pass at this step of this epoch, as if the steps before had been drawn."""
        self.epoch, self.first_step = epoch, step

    def __iter__(self) -> Iterator[Key]:
        epoch, first = self.epoch, self.first_step
        self.first_step = 0
        for step in range(first, self.steps):
            yield from (Key(epoch, row) for row in self.batch(epoch, step))

    def batch(self, epoch: int, step: int) -> list[int]:
        """Rows of this rank's part of one batch, the K images of an identity next to each other."""
        groups = len(self._rows_of) // self.p
        round_, group = divmod(step, groups)
        permutation = np.random.default_rng((self.seed, epoch, round_)).permutation(len(self._rows_of))
        chosen = permutation[group * self.p : (group + 1) * self.p]
        draw = np.random.default_rng((self.seed, epoch, step, 1))
        rows = [self._draw_k(self._rows_of[identity], draw) for identity in chosen]
        share = self.p // self.world_size
        return [int(row) for part in rows[self.rank * share : (self.rank + 1) * share] for row in part]

    def _draw_k(self, rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        repeats = -(-self.k // len(rows))
        return np.concatenate([draw.permutation(rows) for _ in range(repeats)])[: self.k]


class ShardSampler(Sampler[Key]):
    """Every rank's own part of all rows, in order, nothing twice and nothing left out: for evaluation.

    Args:
        rows: rows to visit.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, rows: np.ndarray, rank: int = 0, world_size: int = 1) -> None:
        self.rows = rows[rank::world_size]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Key]:
        return (Key(0, int(row)) for row in self.rows)
