"""Random numbers without a state, which depend on what is drawn and not on what was drawn before."""

from zlib import crc32

import torch
from torch import Tensor

LAST_KEY = 2**63 - 1
"""The largest key that `random_keys` returns."""


def random_keys(seed: int, purpose: str, *numbers: Tensor | int) -> Tensor:
    """Pseudo-random integers from 0 to 2**63 - 1, a function of the arguments.

    Args:
        seed: another one gives other integers.
        purpose: what is drawn; draws for different purposes are independent.
        numbers: int64 tensors that broadcast, such as the row of a query, and that of an image.
    """
    state = _mixed(torch.tensor(seed) + torch.tensor(crc32(purpose.encode())) * _GOLDEN)
    for number in numbers:
        number = torch.as_tensor(number)
        state = _mixed((state.to(number.device) if number.ndim else state) + (number + 1) * _GOLDEN)
    return state & LAST_KEY


def _signed(value: int) -> int:
    return value - 2**64


# SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _mixed(state: Tensor) -> Tensor:
    """The output function of SplitMix64; products of int64 wrap around."""
    state = (state ^ ((state >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ ((state >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return state ^ ((state >> 31) & (2**33 - 1))
