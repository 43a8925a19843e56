"""A world of one more category; in a module of its own, as the processes that render it import it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zoo.world import Sample, World
from zoo.world.base import box_of
from zoo.world.render.texture import stream


@dataclass(frozen=True)
class Marbles(World):
    """Marbles in families of one colour, in the layout of a folder for each identity."""

    NAME: ClassVar[str] = "marbles"
    READER: ClassVar[str] = "folder"

    def kind(self, family: int) -> str:
        return ("glass", "clay")[family % 2]

    def path_of(self, identity: int, view: int) -> str:
        return f"{self.split_of(identity)}/{self.name_of(identity)}/{view}.png"

    def render(self, identity: int, view: int) -> Sample:
        self.check(identity, view)
        family, member = divmod(identity, self.members)
        rng = stream(self.seed, 31, family, member, view)
        rows, columns = np.ogrid[: self.size, : self.size]
        radius = rng.uniform(0.2, 0.4) * self.size
        mask = (rows - self.size / 2) ** 2 + (columns - self.size / 2) ** 2 < radius**2
        image = np.full((self.size, self.size, 3), 128, np.uint8)
        image[mask] = stream(self.seed, 31, family).integers(0, 256, 3) // 2 + 8 * member
        return Sample(image, mask, box_of(mask), {"material": self.kind(family)})
