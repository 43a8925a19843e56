"""What look-alikes are mixed from: numbers in [0, 1], each of which means the same on every individual."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from zoo.world.render.geometry import Floats


@dataclass(frozen=True)
class Traits:
    """Base of what marks an individual: coat, complexion, print. Every array holds numbers in [0, 1].

    Args:
        shift: what moves: places, sizes, slants, shades. Mixed by weighted mean.
        choice: what is there or not, by thresholds. Mixed by taking over single entries.
    """

    #: name -> shape of each array of `shift` and of `choice`; their order is the order of the draws.
    SHIFTS: ClassVar[dict[str, tuple[int, ...]]]
    CHOICES: ClassVar[dict[str, tuple[int, ...]]]

    shift: dict[str, Floats]
    choice: dict[str, Floats]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Random traits; always draws the same numbers in the same order."""
        return cls(
            {name: rng.random(shape, np.float32) for name, shape in cls.SHIFTS.items()},
            {name: rng.random(shape, np.float32) for name, shape in cls.CHOICES.items()},
        )

    def mixed(self, own: Self, share: float, rng: np.random.Generator) -> Self:
        """These traits with ``share`` in [0, 1] of them replaced by ``own``."""
        choice: dict[str, Floats] = {}
        for name, value in self.choice.items():
            choice[name] = np.where(rng.random(value.shape) < share, own.choice[name], value)
        shift: dict[str, Floats] = {}
        for name, value in self.shift.items():
            shift[name] = value + (own.shift[name] - value) * np.float32(share)
        return type(self)(shift, choice)
