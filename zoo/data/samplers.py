"""Samplers: which images a step takes. The order is a function of (seed, epoch, step) and of nothing else, so that
neither a resume nor the number of workers can change it."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Key(NamedTuple):
    """What a sampler asks a dataset for: an image, and the epoch that seeds its augmentation."""

    epoch: int
    row: int


class StepSampler(Sampler[Key]):
    """Base of the samplers of training: a batch is a function of (epoch, step), so that a pass may start anywhere.

    Subclasses set `steps`, the length of an epoch in batches.
    """

    steps: int
    epoch = 0
    first_step = 0

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

    @abstractmethod
    def batch(self, epoch: int, step: int) -> list[int]:
        """Rows of this rank's part of one batch."""


class PKSampler(StepSampler):
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
        kinds: (N,) kind of every image of the index, to take a batch from `kinds_per_batch` of them only: their
            identities are harder to tell apart. They are then drawn anew for every batch.
        kinds_per_batch: how many kinds; 0 for all.

    Raises:
        ValueError: P that the ranks or kinds cannot share evenly, or more than there are identities.
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
        kinds: np.ndarray | None = None,
        kinds_per_batch: int = 0,
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
        self.kinds_per_batch = kinds_per_batch
        self._of_kind = [] if kinds is None or not kinds_per_batch else self._sorted_by(kinds)

    def _sorted_by(self, kinds: np.ndarray) -> list[np.ndarray]:
        """The identities of each kind that has enough of them."""
        share, rest = divmod(self.p, self.kinds_per_batch)
        if rest:
            raise ValueError(
                f"{self.p} identities in a batch cannot be shared evenly by {self.kinds_per_batch} kinds. "
                f"Choose a multiple of {self.kinds_per_batch}."
            )
        kind_of = np.array([kinds[rows[0]] for rows in self._rows_of])
        found = [np.flatnonzero(kind_of == kind) for kind in np.unique(kind_of)]
        enough = [identities for identities in found if len(identities) >= share]
        if len(enough) < self.kinds_per_batch:
            raise ValueError(
                f"Only {len(enough)} of {len(found)} categories have the {share} training identities that a batch "
                f"takes of each. Set categories_per_batch to at most {len(enough)}, or identities_per_batch lower."
            )
        return enough

    def __len__(self) -> int:
        return self.steps * self.p * self.k // self.world_size

    def batch(self, epoch: int, step: int) -> list[int]:
        """Rows of this rank's part of one batch, the K images of an identity next to each other."""
        chosen = self._of_some_kinds(epoch, step) if self._of_kind else self._of_all(epoch, step)
        draw = np.random.default_rng((self.seed, epoch, step, 1))
        rows = [self._draw_k(self._rows_of[identity], draw) for identity in chosen]
        share = self.p // self.world_size
        return [int(row) for part in rows[self.rank * share : (self.rank + 1) * share] for row in part]

    def _of_all(self, epoch: int, step: int) -> np.ndarray:
        groups = len(self._rows_of) // self.p
        round_, group = divmod(step, groups)
        permutation = np.random.default_rng((self.seed, epoch, round_)).permutation(len(self._rows_of))
        return permutation[group * self.p : (group + 1) * self.p]

    def _of_some_kinds(self, epoch: int, step: int) -> np.ndarray:
        """Kinds come as often as they have identities."""
        draw = np.random.default_rng((self.seed, epoch, step, 2))
        sizes = np.array([len(identities) for identities in self._of_kind])
        kinds = draw.choice(len(sizes), self.kinds_per_batch, replace=False, p=sizes / sizes.sum())
        share = self.p // self.kinds_per_batch
        return np.concatenate([draw.permutation(self._of_kind[kind])[:share] for kind in kinds])

    def _draw_k(self, rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        repeats = -(-self.k // len(rows))
        return np.concatenate([draw.permutation(rows) for _ in range(repeats)])[: self.k]


class ShuffledSampler(StepSampler):
    """Batches of rows in random order; every row comes once before any comes again.

    Args:
        rows: the rows to draw from.
        batch_size: rows in the global batch.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
        steps: length of an epoch in batches; None for as many as the rows fill.

    Raises:
        ValueError: no row, or a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
    ) -> None:
        if not len(rows):
            raise ValueError("There is nothing to draw batches from. Give at least one row.")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"A batch of {batch_size} cannot be shared evenly by {world_size} processes. "
                f"Choose a multiple of {world_size}."
            )
        self.rows, self.batch_size, self.seed, self.rank, self.world_size = rows, batch_size, seed, rank, world_size
        self.steps = steps if steps is not None else max(1, len(rows) // batch_size)
        self._turn, self._order = -1, rows  # the last permutation of the rows, as it is asked for many times

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.world_size

    def batch(self, epoch: int, step: int) -> list[int]:
        """This rank's part of one batch. Epochs follow each other through one endless sequence of permutations."""
        start = (epoch * self.steps + step) * self.batch_size
        drawn = []
        for place in range(start + self.rank, start + self.batch_size, self.world_size):
            turn, position = divmod(place, len(self.rows))
            drawn.append(int(self.rows[self._permutation(turn)[position]]))
        return drawn

    def _permutation(self, turn: int) -> np.ndarray:
        if self._turn != turn:
            self._turn = turn
            self._order = np.random.default_rng((self.seed, turn)).permutation(len(self.rows))
        return self._order


class MixedSampler(StepSampler):
    """Batches with a fixed number of rows from each of several parts; rows are numbered part after part.

    Args:
        parts: samplers of the parts' own batches, each over all rows of its part.
        steps: length of an epoch in batches; None for that of the longest part.
    """

    def __init__(self, parts: Sequence[ShuffledSampler], steps: int | None = None) -> None:
        self.parts = parts
        self.steps = steps if steps is not None else max(part.steps for part in parts)
        for part in parts:
            part.steps = self.steps  # an epoch is as long for each of them
        self.first_rows = np.cumsum([0, *(len(part.rows) for part in parts)])[:-1].tolist()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batch(self, epoch: int, step: int) -> list[int]:
        """Rows of this rank's part of one batch, those of a part next to each other."""
        parts = zip(self.parts, self.first_rows, strict=True)
        return [first_row + row for part, first_row in parts for row in part.batch(epoch, step)]


class ShardSampler(Sampler[Key]):
    """Every rank's own part of all rows, in order, none twice and none left out: for evaluation.

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
