"""IdentityIndex: the one table that every reader fills and everything else reads."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

#: train and val as everywhere; test images are both query and gallery, each against all others; data sets with
#: separate roles use query and gallery instead.
SPLITS = ("train", "val", "test", "query", "gallery")
_COLUMNS = ("path", "identity", "category", "camera", "split", "x", "y", "w", "h")
_NO_BOX = (-1.0, -1.0, -1.0, -1.0)


@dataclass(frozen=True)
class IdentityIndex:
    """N images of known identities.

    Identities are numbered over the whole index, in sorted order of their names, so that the numbers do not
    change from run to run and no two splits share one.

    Args:
        root: folder that `paths` are relative to.
        paths: (N,) str, posix.
        identities: (N,) int64, positions in `names`.
        names: names of the identities.
        splits: (N,) str, each one of train, val, test, query, gallery.
        categories: (N,) str, "" where unknown.
        cameras: (N,) int64, or None where the data has no cameras.
        boxes: (N, 4) float32 x, y, w, h in pixels, -1 where an image has none; or None.
        attributes: name -> (N,) str, what else is known of the images.
    """

    root: Path
    paths: np.ndarray
    identities: np.ndarray
    names: tuple[str, ...]
    splits: np.ndarray
    categories: np.ndarray
    cameras: np.ndarray | None = None
    boxes: np.ndarray | None = None
    attributes: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        root: Path,
        paths: Sequence[str],
        identity_names: Sequence[str],
        splits: Sequence[str],
        categories: Sequence[str] | None = None,
        cameras: Sequence[int] | None = None,
        boxes: np.ndarray | None = None,
        attributes: dict[str, np.ndarray] | None = None,
    ) -> "IdentityIndex":
        """An index from one name of an identity per image.

        Raises:
            ValueError: no image at all, an unknown split, or an identity that is in training and elsewhere.
        """
        if not len(paths):
            raise ValueError(f"No image found under {root}. Check the path and the reader.")
        unknown = set(splits) - set(SPLITS)
        if unknown:
            raise ValueError(f"Unknown split {sorted(unknown)[0]!r} in {root}. Known: {', '.join(SPLITS)}.")
        names, identities = np.unique(np.asarray(identity_names, dtype=str), return_inverse=True)
        index = cls(
            root=root,
            paths=np.asarray(paths, dtype=str),
            identities=identities.astype(np.int64),
            names=tuple(names.tolist()),
            splits=np.asarray(splits, dtype=str),
            categories=np.asarray(categories if categories is not None else [""] * len(paths), dtype=str),
            cameras=None if cameras is None else np.asarray(cameras, dtype=np.int64),
            boxes=boxes,
            attributes=attributes or {},
        )
        index._check_disjoint()
        return index

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, *splits: str) -> np.ndarray:
        """Row numbers of the images in any of these splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def select(self, rows: np.ndarray) -> "IdentityIndex":
        """The same index with these rows only; identities keep their numbers."""
        return replace(
            self,
            paths=self.paths[rows],
            identities=self.identities[rows],
            splits=self.splits[rows],
            categories=self.categories[rows],
            cameras=None if self.cameras is None else self.cameras[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            attributes={name: column[rows] for name, column in self.attributes.items()},
        )

    def describe(self) -> str:
        """One line: how many images and identities in each split."""
        parts = []
        for split in SPLITS:
            rows = self.rows(split)
            if len(rows):
                parts.append(f"{split} {len(rows):,} images of {len(np.unique(self.identities[rows])):,}")
        return "; ".join(parts) + " identities"

    # ------------------------------------------------------------------ manifest

    def manifest(self) -> str:
        """The index as CSV, paths relative to the root: what a run was trained and tested on."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *self.attributes])
        boxes = self.boxes if self.boxes is not None else np.tile(_NO_BOX, (len(self), 1))
        for row in range(len(self)):
            writer.writerow(
                [
                    self.paths[row],
                    self.names[self.identities[row]],
                    self.categories[row],
                    "" if self.cameras is None else self.cameras[row],
                    self.splits[row],
                    *([""] * 4 if boxes[row, 2] < 0 else [f"{v:g}" for v in boxes[row]]),
                    *(column[row] for column in self.attributes.values()),
                ]
            )
        return text.getvalue()

    def save(self, path: Path) -> str:
        """Write the manifest, whole or not at all.

        Returns:
            its sha256.
        """
        data = self.manifest().encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def load(cls, path: Path, root: Path) -> "IdentityIndex":
        """Read a manifest again, for images under `root`.

        Raises:
            ValueError: not a manifest.
        """
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            if header[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(
                    f"{path} is no manifest: its columns are {', '.join(header) or 'none'}, "
                    f"expected {', '.join(_COLUMNS)}. Give the manifest.csv that a run has written."
                )
            table = list(reader)
        has_cameras = any(row["camera"] for row in table)
        has_boxes = any(row["w"] for row in table)
        boxes = [[float(r[k]) for k in "xywh"] if r["w"] else list(_NO_BOX) for r in table]
        return cls.build(
            root,
            [row["path"] for row in table],
            [row["identity"] for row in table],
            [row["split"] for row in table],
            [row["category"] for row in table],
            [int(row["camera"]) for row in table] if has_cameras else None,
            np.array(boxes, dtype=np.float32) if has_boxes else None,
            {name: np.array([row[name] for row in table]) for name in header[len(_COLUMNS) :]},
        )

    def _check_disjoint(self) -> None:
        kinds = np.where(self.splits == "train", 0, np.where(self.splits == "val", 1, 2))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            shared = np.intersect1d(self.identities[kinds == a], self.identities[kinds == b])
            if len(shared):
                raise ValueError(
                    f"{len(shared)} identities of {self.root} are in more than one of train, val and test, such as "
                    f"{self.names[shared[0]]!r}. Their scores would be those of memory, not of recognition: "
                    "give every identity to one split."
                )


def split_identities(names: Sequence[str], val_share: float, test_share: float, seed: int) -> dict[str, str]:
    """Give every identity to train, val or test, by seed and independent of the order of `names`.

    Raises:
        ValueError: shares that leave no identity to train on, or too few to hold any out.
    """
    unique = sorted(set(names))
    # Few identities: rather one than none, where any are asked for.
    held_val, held_test = (max(round(share * len(unique)), share > 0) for share in (val_share, test_share))
    if min(val_share, test_share) < 0 or val_share + test_share >= 1 or held_val + held_test >= len(unique):
        raise ValueError(
            f"val_share {val_share} and test_share {test_share} leave no identity to train on, of {len(unique)}. "
            "Give shares that sum to less than 1."
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    kinds = ["val"] * held_val + ["test"] * held_test + ["train"] * (len(unique) - held_val - held_test)
    return {unique[position]: kind for position, kind in zip(order, kinds, strict=True)}
