"""A world of identities: its fields, its look-alike families and their splits, and one rendered sample."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.world.render.texture import stream
from zoo.world.rendered import RenderedDataset

_BOX = ("x", "y", "w", "h")


@dataclass(frozen=True)
class Sample:
    """One rendered view.

    Args:
        image: (H, W, 3) uint8.
        mask: visible silhouette, (H, W) bool.
        box: x, y, width, height of the silhouette in pixels.
        attributes: what the image shows, by column name; shared by many individuals.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    attributes: dict[str, str]


@dataclass(frozen=True)
class World(RenderedDataset):
    """Base of the worlds of one category: identities in look-alike families, each rendered in several views.

    Args:
        families: number of look-alike families.
        members: identities in each family.
        views: images of each identity.
        size: height and width of an image in pixels.
        difficulty: how alike the members of a family are, from 0 (as different as strangers of the same breed
            and pattern) to 1 (almost twins).
        seed: another seed is another world.
        val_share: share of the families held out for validation.
        test_share: share of the families held out for testing.
    """

    families: int = 80
    members: int = 5
    views: int = 10
    size: int = 112
    difficulty: float = 0.5
    seed: int = 0
    val_share: float = 0.1
    test_share: float = 0.25

    NAME: ClassVar[str] = "world"
    VERSION: ClassVar[int] = 1
    READER: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        for name, least in (("families", 3), ("members", 1), ("views", 2), ("size", 32), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}. Give a larger whole number.")
        for name, high in (("difficulty", 1.0), ("val_share", 0.5), ("test_share", 0.8)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ValueError(f"{name} must be from 0 to {high:g}, got {value!r}. Give a number in this range.")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one world and have one folder
        held_out = self._held_out("val_share") + self._held_out("test_share")
        if held_out >= self.families:
            raise ValueError(
                f"val_share {self.val_share} and test_share {self.test_share} hold out {held_out} of "
                f"{self.families} families and leave none to train on. Lower the shares or raise families."
            )

    def _held_out(self, share: str) -> int:
        return max(1, round(self.families * getattr(self, share)))

    # What a world defines.

    def kind(self, family: int) -> str:
        """Kind of a family, such as its species; identities are named after it."""
        raise NotImplementedError

    def render(self, identity: int, view: int) -> Sample:
        """Draws one view of one identity; depends on nothing but the fields and the two numbers."""
        raise NotImplementedError

    def path_of(self, identity: int, view: int) -> str:
        """Path of an image under the world's folder, with forward slashes, in the layout that `READER` reads."""
        raise NotImplementedError

    def views_of(self, identity: int) -> int:
        """Number of images of an identity."""
        return self.views

    def draw(self, identity: int, view: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """An image and its identity, family, attributes and box, all as text."""
        sample = self.render(identity, view)
        row = {"identity": self.name_of(identity), "family": f"{identity // self.members:03d}"} | sample.attributes
        return sample.image, row | {side: str(length) for side, length in zip(_BOX, sample.box, strict=True)}

    def write_lists(self, root: Path, records: list[dict[str, Any]]) -> None:
        """Writes ``attributes.csv`` and what the layout has beside it, see `finish`."""
        first = ("path", "identity", "family")
        names = [*first, *(name for name in records[0] if name not in (*first, "split", *_BOX)), *_BOX]
        with (root / "attributes.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows({name: row[name] for name in row if name != "split"} for row in records)
        self.finish(root, records)

    def finish(self, root: Path, rows: list[dict[str, str]]) -> None:
        """Writes what the layout has beside the images, such as lists of them.

        Args:
            root: the world's folder.
            rows: path, identity, family, split, attributes and box of every image, sorted by path.
        """

    # What follows from it.

    @property
    def identities(self) -> int:
        """Number of identities, numbered family by family."""
        return self.families * self.members

    @property
    def own_share(self) -> float:
        """Share of an individual's looks that is its own and not its family's."""
        return 1.0 - 0.85 * self.difficulty

    @property
    def units(self) -> int:
        """Number of identities."""
        return self.identities

    def name_of(self, identity: int) -> str:
        """Name of an identity, e.g. ``cat_012_3``: kind, family, member."""
        family, member = divmod(identity, self.members)
        return f"{self.kind(family)}_{family:03d}_{member}"

    @cached_property
    def _split_of_family(self) -> dict[int, str]:
        """Whole families are held out, taking turns over the kinds so that every split has its share."""
        by_kind: dict[str, list[int]] = {}
        for family in stream(self.seed, 1).permutation(self.families).tolist():
            by_kind.setdefault(self.kind(family), []).append(family)
        kinds = [by_kind[kind] for kind in sorted(by_kind)]
        turns = [kind[k] for k in range(self.families) for kind in kinds if k < len(kind)]
        test, val = self._held_out("test_share"), self._held_out("val_share")
        names = ["test"] * test + ["val"] * val + ["train"] * (self.families - test - val)
        return dict(zip(turns, names, strict=True))

    def split_of(self, identity: int) -> str:
        """``train``, ``val`` or ``test``."""
        return self._split_of_family[identity // self.members]

    def check(self, identity: int, view: int) -> None:
        """
        Raises:
            IndexError: there is no such identity or view.
        """
        if not 0 <= identity < self.identities:
            raise IndexError(f"identity must be from 0 to {self.identities - 1}, got {identity}. Make more families.")
        if not 0 <= view < self.views_of(identity):
            raise IndexError(f"view must be from 0 to {self.views_of(identity) - 1}, got {view}. Make more views.")


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x, y, width, height of the smallest box around a mask; all 0 where the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
