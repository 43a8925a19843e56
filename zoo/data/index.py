"""IdentityIndex: a table of images of known identities, which readers fill and everything else reads."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.images import read_image

#: Splits of an index. train and val as everywhere; test images are both query and gallery, each against all others;
#: datasets with separate roles use query and gallery instead. closed: further images of training identities, kept out
#: of training, to recognise among the identities that the model was trained on.
INDEX_SPLITS = ("train", "val", "test", "query", "gallery", "closed")
#: Splits that a test ranks.
TESTED = ("test", "query", "gallery")
#: x, y, w, h of an image without a box.
NO_BOX = (-1.0, -1.0, -1.0, -1.0)
_COLUMNS = ("path", "identity", "category", "camera", "split", "x", "y", "w", "h")
_PAIR_COLUMNS = ("first", "second", "same", "fold", "first_path", "second_path")


@dataclass(frozen=True)
class Pairs:
    """V pairs of images to tell same from different: a published verification protocol.

    Args:
        first: (V,) int64, rows of an index.
        second: (V,) int64, rows of the same index.
        same: (V,) bool, whether both show one identity.
        fold: (V,) int64, 0 where the protocol has no folds.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray

    @classmethod
    def build(
        cls, first: Sequence[int], second: Sequence[int], same: Sequence[bool], fold: Sequence[int] | None = None
    ) -> "Pairs":
        """Pairs from plain sequences of one length."""
        return cls(
            np.asarray(first, dtype=np.int64),
            np.asarray(second, dtype=np.int64),
            np.asarray(same, dtype=bool),
            np.asarray(fold if fold is not None else [0] * len(first), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.first)


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
        splits: (N,) str, each one of `INDEX_SPLITS`.
        categories: (N,) str, the kind of thing, "" where unknown.
        cameras: (N,) int64, -1 where an image has none.
        boxes: (N, 4) float32 x, y, w, h in pixels, -1 where an image has none; or None.
        attributes: name -> (N,) str, what else is known of the images, "" where it is not.
        pairs: a verification protocol over the rows, or None.
        origins: names of the collections that the images come from, where datasets share one; not in the manifest.
    """

    root: Path
    paths: np.ndarray
    identities: np.ndarray
    names: tuple[str, ...]
    splits: np.ndarray
    categories: np.ndarray
    cameras: np.ndarray
    boxes: np.ndarray | None = None
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    pairs: Pairs | None = None
    origins: tuple[str, ...] = ()

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
        pairs: Pairs | None = None,
        origins: Sequence[str] = (),
    ) -> "IdentityIndex":
        """An index from one name of an identity per image; `cameras` is None where no image has one.

        Raises:
            ValueError: no image at all, an unknown split, or an identity that is in training and elsewhere.
        """
        if not len(paths):
            raise ValueError(f"No image found under {root}. Check the path and the reader.")
        unknown = set(splits) - set(INDEX_SPLITS)
        if unknown:
            raise ValueError(f"Unknown split {sorted(unknown)[0]!r} in {root}. Known: {', '.join(INDEX_SPLITS)}.")
        names = sorted(set(map(str, identity_names)))
        number = {name: position for position, name in enumerate(names)}
        index = cls(
            root=root,
            paths=np.asarray(paths, dtype=str),
            identities=np.array([number[str(name)] for name in identity_names], dtype=np.int64),
            names=tuple(names),
            splits=np.asarray(splits, dtype=str),
            categories=np.asarray(categories if categories is not None else [""] * len(paths), dtype=str),
            cameras=np.asarray(cameras if cameras is not None else [-1] * len(paths), dtype=np.int64),
            boxes=boxes,
            attributes=attributes or {},
            pairs=pairs,
            origins=tuple(origins),
        )
        index._check_disjoint()
        return index

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, *splits: str) -> np.ndarray:
        """Row numbers of the images in any of these splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def image(self, row: int) -> Image.Image:
        """The image of a row in RGB, cut to its box where it has one.

        Raises:
            UnreadableImage: a file that cannot be decoded, or a box outside of it.
        """
        x, y, w, h = NO_BOX if self.boxes is None else self.boxes[row].tolist()
        return read_image(self.root / str(self.paths[row]), (x, y, w, h) if w > 0 else None)

    def positives(self, queries: np.ndarray, gallery: np.ndarray, by_camera: bool = True) -> np.ndarray:
        """How many images each query has to find: of its identity, not itself, and not of its identity and camera.

        Args:
            queries: (Q,) rows.
            gallery: (G,) rows.
            by_camera: False counts images of one identity and camera, too.

        Returns:
            (Q,) int64.
        """
        cameras = self.cameras if by_camera else np.full(len(self), -1)
        same_identity = np.bincount(self.identities[gallery], minlength=len(self.names))[self.identities[queries]]
        scenes = np.unique(self.identities * (cameras.max(initial=-1) + 2) + cameras + 1, return_inverse=True)[1]
        same_scene = np.bincount(scenes[gallery], minlength=len(self))[scenes[queries]]
        junk = np.where(cameras[queries] >= 0, same_scene, 0)
        is_itself = np.isin(queries, gallery) & (cameras[queries] < 0)  # with a camera, it is junk already
        return same_identity - junk - is_itself

    def sides(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the queries and of the gallery when "val" or "test" is scored."""
        if split == "val":
            return self.rows("val"), self.rows("val")
        return self.rows("test", "query"), self.rows("test", "gallery")

    def select(self, rows: np.ndarray) -> "IdentityIndex":
        """The same index with these rows only; identities keep their numbers, pairs stay where both rows do."""
        return replace(
            self,
            paths=self.paths[rows],
            identities=self.identities[rows],
            splits=self.splits[rows],
            categories=self.categories[rows],
            cameras=self.cameras[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            attributes={name: column[rows] for name, column in self.attributes.items()},
            pairs=self._pairs_among(rows),
        )

    def _pairs_among(self, rows: np.ndarray) -> Pairs | None:
        if self.pairs is None:
            return None
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(self.paths[rows]))
        first, second = place[self.pairs.first], place[self.pairs.second]
        kept = (first >= 0) & (second >= 0)
        if not kept.any():
            return None
        return Pairs(first[kept], second[kept], self.pairs.same[kept], self.pairs.fold[kept])

    def describe(self) -> str:
        """One line: how many images and identities in each split."""
        parts = []
        for split in INDEX_SPLITS:
            rows = self.rows(split)
            if len(rows):
                parts.append(f"{split} {len(rows):,} images of {len(np.unique(self.identities[rows])):,}")
        pairs = f"; {len(self.pairs):,} pairs" if self.pairs is not None else ""
        return "; ".join(parts) + " identities" + pairs

    # ------------------------------------------------------------------ manifest

    def manifest(self) -> str:
        """The index as CSV, paths relative to the root: what a run was trained and tested on."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *self.attributes])
        boxes = self.boxes if self.boxes is not None else np.tile(NO_BOX, (len(self), 1))
        for row in range(len(self)):
            writer.writerow(
                [
                    self.paths[row],
                    self.names[self.identities[row]],
                    self.categories[row],
                    "" if self.cameras[row] < 0 else self.cameras[row],
                    self.splits[row],
                    *([""] * 4 if boxes[row, 2] < 0 else [f"{v:g}" for v in boxes[row]]),
                    *(column[row] for column in self.attributes.values()),
                ]
            )
        return text.getvalue()

    def save(self, path: Path) -> str:
        """Write the manifest, whole or not at all, and the pairs, if there are any, to `<stem>.pairs.csv` beside it.

        Returns:
            the manifest's sha256.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.pairs is not None:
            _write(_pairs_path(path), self._pairs_table().encode())
        else:
            _pairs_path(path).unlink(missing_ok=True)  # those of an earlier manifest of this name
        data = self.manifest().encode()
        _write(path, data)
        return hashlib.sha256(data).hexdigest()

    def _pairs_table(self) -> str:
        assert self.pairs is not None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_PAIR_COLUMNS)
        first, second = self.pairs.first, self.pairs.second
        columns = (first, second, self.pairs.same.astype(int), self.pairs.fold, self.paths[first], self.paths[second])
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
        return text.getvalue()

    @classmethod
    def load(cls, path: Path, root: Path) -> "IdentityIndex":
        """Read a manifest again, and its pairs, for images under `root`.

        Raises:
            ValueError: not a manifest, or pairs that are not of this manifest.
        """
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            if header[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(
                    f"{path} is no manifest: its columns are {', '.join(header) or 'none'}, "
                    f"expected {', '.join(_COLUMNS)}. Give the manifest.csv that a run has written."
                )
            table = list(reader)
        has_boxes = any(row["w"] for row in table)
        boxes = [[float(r[k]) for k in "xywh"] if r["w"] else list(NO_BOX) for r in table]
        return cls.build(
            root,
            [row["path"] for row in table],
            [row["identity"] for row in table],
            [row["split"] for row in table],
            [row["category"] for row in table],
            [int(row["camera"] or -1) for row in table],
            np.array(boxes, dtype=np.float32) if has_boxes else None,
            {name: np.array([row[name] for row in table]) for name in header[len(_COLUMNS) :]},
            _read_pairs(_pairs_path(path), [row["path"] for row in table]),
        )

    def _check_disjoint(self) -> None:
        trained = np.isin(self.splits, ("train", "closed"))
        kinds = np.where(trained, 0, np.where(self.splits == "val", 1, 2))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            shared = np.intersect1d(self.identities[kinds == a], self.identities[kinds == b])
            if len(shared):
                raise ValueError(
                    f"{len(shared)} identities of {self.root} are in more than one of train, val and test, such as "
                    f"{self.names[shared[0]]!r}. Their scores would be those of memory, not of recognition: "
                    "give every identity to one split."
                )


def _pairs_path(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}.pairs.csv")


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def _read_pairs(path: Path, images: Sequence[str]) -> Pairs | None:
    """The pairs of a manifest with these paths, or None where there is no such file."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    try:
        rows = [[int(row[name]) for row in table] for name in _PAIR_COLUMNS[:4]]
        for side in ("first", "second"):
            if any(int(row[side]) < 0 or images[int(row[side])] != row[f"{side}_path"] for row in table):
                raise IndexError
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} does not belong to the manifest beside it: it numbers other rows. "
            "Restore both as a run has written them, or remove the pairs."
        ) from error
    return Pairs.build(rows[0], rows[1], [bool(same) for same in rows[2]], rows[3])
