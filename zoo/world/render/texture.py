"""Random streams and smooth noise."""

import numpy as np

from zoo.world.render.geometry import Floats


def stream(*key: int) -> np.random.Generator:
    """A random generator that depends on the numbers of ``key`` and nothing else."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


class Noise:
    """Smooth noise in [-1, 1], as a sum of plane waves in random directions.

    Args:
        rng: draws the waves.
        scale: typical size of a feature, in the units of the points.
        waves: how many waves are summed.
    """

    def __init__(self, rng: np.random.Generator, scale: float, waves: int = 7) -> None:
        direction = rng.normal(size=(waves, 3))
        direction /= np.sqrt((direction**2).sum(1, keepdims=True))
        length = rng.uniform(0.6, 1.7, (waves, 1)) * 3.0 / scale
        self.wave = (direction * length).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, waves).astype(np.float32)

    def __call__(self, points: Floats) -> Floats:
        """Values at points (3, N) or (2, N): (N,)."""
        total = np.zeros(points.shape[1], np.float32)
        for wave, phase in zip(self.wave, self.phase, strict=True):
            at = wave[0] * points[0] + wave[1] * points[1] + phase
            if len(points) == 3:
                at += wave[2] * points[2]
            total += np.sin(at)
        return total * np.float32(1.2 / len(self.wave))


def step(low: float, high: float, value: Floats) -> Floats:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((value - low) * np.float32(1.0 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def mix(base: Floats, other: Floats, share: Floats) -> Floats:
    """base (3, N) where ``share`` (N,) is 0, other (3,) or (3, N) where it is 1."""
    other = other[:, None] if other.ndim == 1 else other
    return base + (other - base) * share


def linear(*rgb: float) -> Floats:
    """A display colour in [0, 255] as linear light (3,)."""
    return ((np.array(rgb, np.float32) / 255) ** 2.2).astype(np.float32)


def share_of(colour: Floats, colours: Floats) -> float:
    """Share of ``colours`` (3, N) that are about ``colour`` (3,), as with grain, folds or wear; 0 where N is 0."""
    close = np.abs(colours - colour[:, None]) < 0.25 * colour[:, None] + 0.02
    return float(close.all(0).sum() / max(colours.shape[1], 1))
