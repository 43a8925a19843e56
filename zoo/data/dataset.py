"""IdentityDataset: a key in, a decoded and transformed image out; broken files are passed on by name."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from zoo.contracts import IdentityBatch
from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.data.samplers import Key


class Item(NamedTuple):
    """One row of an index: its image, or why it cannot be read."""

    row: int
    image: Tensor | None
    reason: str = ""


class IdentityDataset(Dataset[Item]):
    """Decodes rows of an index lazily; its memory does not grow with the images seen.

    Args:
        index: the rows.
        transform: RGB image -> (3, H, W) uint8.
        seed: with the key's epoch and row, seeds the random parts of `transform`.
    """

    def __init__(self, index: IdentityIndex, transform: Callable[[Image.Image], Tensor], seed: int = 0) -> None:
        self.index, self.transform, self.seed = index, transform, seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Key) -> Item:
        try:
            image = self.index.image(key.row)
        except UnreadableImage as error:
            return Item(key.row, None, str(error))
        # A worker process draws nothing else; in the main process the global random state must stay as it is.
        in_worker = get_worker_info() is not None
        with nullcontext() if in_worker else torch.random.fork_rng(devices=[]):
            torch.manual_seed(augmentation_seed(self.seed, key))
            return Item(key.row, self.transform(image))


def augmentation_seed(seed: int, key: Key) -> int:
    """A well-mixed 64-bit seed of (seed, epoch, row)."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0])


def classes_of(column: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The values of a column of an index in sorted order, and each row's place among them, -1 where it is "".

    Args:
        column: (N,) str.

    Returns:
        C values, and (N,) int64.
    """
    values, codes = np.unique(column, return_inverse=True)
    unknown = int(len(values) > 0 and values[0] == "")
    return values[unknown:].tolist(), codes.astype(np.int64) - unknown


class IdentityCollate:
    """Items -> `IdentityBatch`. A class, not a closure, so that worker processes can be spawned.

    Args:
        index: the index that the rows belong to.
        size: height and width of an image.
    """

    def __init__(self, index: IdentityIndex, size: tuple[int, int]) -> None:
        self.index, self.size = index, size
        columns = [classes_of(column)[1] for column in index.attributes.values()]
        self.attributes = np.stack(columns, axis=1) if columns else np.zeros((len(index), 0), dtype=np.int64)

    def __call__(self, items: Sequence[Item]) -> IdentityBatch:
        images = [item.image for item in items if item.image is not None]
        rows = np.array([item.row for item in items if item.image is not None], dtype=np.int64)
        return IdentityBatch(
            images=torch.stack(images) if images else torch.zeros(0, 3, *self.size, dtype=torch.uint8),
            identities=torch.from_numpy(self.index.identities[rows]),
            cameras=torch.from_numpy(self.index.cameras[rows]),
            indices=torch.from_numpy(rows),
            attributes=torch.from_numpy(self.attributes[rows].astype(np.int64)),
            skipped=tuple(f"{self.index.paths[i.row]}: {i.reason}" for i in items if i.image is None),
        )
