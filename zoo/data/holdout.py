"""Which identities are validated and tested on, where a dataset does not publish it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST = 2  # identities of a split that is held out or trained on


@dataclass(frozen=True)
class HoldOut:
    """Shares of the identities to hold out, drawn by seed.

    Args:
        val_share: share to validate on; of the training identities where the test is published.
        test_share: share to test on, where no test is published.
        seed: which identities these are.
    """

    val_share: float = 0.1
    test_share: float = 0.3
    seed: int = 0

    def split(self, names: Sequence[str]) -> dict[str, str]:
        """Give every identity to train, val or test, by seed and independent of the order of `names`.

        With a share above 0, at least two identities are held out, since one alone cannot be mistaken for another; and
        at least two are left to train on. Where there are not enough for val and test, none are held out for val.

        Raises:
            ValueError: shares that are negative or leave nothing, or too few identities to test on and to train on.
        """
        unique = sorted(set(names))
        if not (self.val_share >= 0 and self.test_share >= 0 and self.val_share + self.test_share < 1):
            raise ValueError(
                f"val_share {self.val_share} and test_share {self.test_share} leave no identity to train on. "
                "Give shares of 0 or more that sum to less than 1."
            )
        wanted_val, wanted_test = (
            max(round(share * len(unique)), _FEWEST) * (share > 0) for share in (self.val_share, self.test_share)
        )
        free = max(len(unique) - _FEWEST, 0)
        if self.test_share > 0 and free < _FEWEST:
            raise ValueError(
                f"{len(unique)} identities are too few to hold out {_FEWEST} for the test and train on {_FEWEST}. Add "
                "some, or set data.val_share and data.test_share to 0 to hold out none."
            )
        held_val = min(wanted_val, free - _FEWEST * (self.test_share > 0))
        held_val = held_val if held_val >= _FEWEST else 0
        held_test = min(wanted_test, free - held_val)
        order = np.random.default_rng(self.seed).permutation(len(unique))
        kinds = ["val"] * held_val + ["test"] * held_test + ["train"] * (len(unique) - held_val - held_test)
        return {unique[position]: kind for position, kind in zip(order, kinds, strict=True)}
