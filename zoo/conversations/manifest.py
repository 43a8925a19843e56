"""The manifest of conversations: galleries as a file that loads anywhere and records what it was made from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from zoo.cards import Card, card
from zoo.categories import Box
from zoo.home import worlds

KIND, VERSION = "instance-zoo conversations", 1
_KEY = b"instance-zoo"  # of a Parquet file's metadata
_BOX = pa.list_(pa.float32(), 4)
SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "category": pa.string(),
        "level": pa.string(),
        "tau": pa.float64(),
        "answer": pa.int64(),
        "query_path": pa.string(),
        "query_identity": pa.string(),
        "query_box": _BOX,
        "query_sha256": pa.string(),
        "gallery_paths": pa.list_(pa.string()),
        "gallery_identities": pa.list_(pa.string()),
        "gallery_boxes": pa.list_(_BOX),
        "gallery_sha256": pa.list_(pa.string()),
        "similarities": pa.list_(pa.float32()),
    }
)
"""Of a manifest's table: a row for each conversation."""


class ImageRef(NamedTuple):
    """One image of an identity.

    Args:
        path: posix, relative to the root of the conversations.
        identity: its name.
        box: x, y, w, h in pixels of the part that shows the identity; None for the whole image.
    """

    path: str
    identity: str
    box: Box | None


class Conversation(NamedTuple):
    """Which image of the gallery shows the query's identity?

    Args:
        query: the image asked about.
        gallery: K images of different identities.
        answer: 1-based place of the query's identity in the gallery, 0 where it is not there.
        category: of the experts, an entry of `zoo.categories`.
        split: train, val or test.
        tau: similarity to the query that every image of another identity exceeds.
        similarities: (K,) cosine similarity of each gallery image to the query, to the general encoder.
        level: how hard it is, such as "tau=0.5" or "quantile=0.9".
    """

    query: ImageRef
    gallery: tuple[ImageRef, ...]
    answer: int
    category: str
    split: str
    tau: float
    similarities: tuple[float, ...]
    level: str


class ImageCount(TypedDict):
    """How many image files a manifest names, and a sha256 over their sorted "path sha256" lines."""

    count: int
    sha256: str


class ManifestMeta(TypedDict, total=False):
    """What conversations were made from and what came out, as JSON has it.

    Args:
        encoder: name and sha256 of the weights of the general encoder.
        category: an entry of `zoo.categories`.
        rules: the fields of each `GalleryRule`.
        tau: split -> level -> threshold in force.
        skipped: split -> level -> reason -> queries without a conversation.
        quantiles: split -> share of the pairs of two identities -> similarity that they do not exceed.
        unreadable: "path: reason" of images that could not be read.
        copies: "path: of path" of images left out as copies of others.
        disputed: "path: identity" of images left out since they show two identities.
        identities: split -> number of identities asked about.
        images: of all conversations.
        split: where the split of the images came from, noted by the recipe.
    """

    encoder: dict[str, str]
    category: str
    rules: list[dict[str, Any]]
    tau: dict[str, dict[str, float]]
    skipped: dict[str, dict[str, dict[str, int]]]
    quantiles: dict[str, dict[str, float]]
    unreadable: list[str]
    copies: list[str]
    disputed: list[str]
    identities: dict[str, int]
    images: ImageCount
    split: dict[str, str | float]


class Conversations:
    """Conversations over the images below a folder; no image is held.

    Args:
        root: folder that all paths are relative to.
        table: a row for each conversation.
        meta: what they were made from. A selection keeps that of the whole.
    """

    def __init__(self, root: Path, table: pa.Table, meta: ManifestMeta) -> None:
        self.root = Path(root)
        self.meta: ManifestMeta = json.loads(json.dumps(meta))  # as a file gives it back
        self._table = table.cast(SCHEMA).combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> Conversation:
        """One conversation; negative numbers count from the end.

        Raises:
            IndexError: there are not that many.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"There is no conversation {i} among {len(self)}.")
        return _conversation(self._table.slice(i % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Conversation]:
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from map(_conversation, batch.to_pylist())

    def select(self, rows: np.ndarray) -> "Conversations":
        """Those at these positions (M,), or where this mask (N,) is true."""
        rows = np.asarray(rows)
        places = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return Conversations(self.root, self._table.take(pa.array(places)), self.meta)

    def column(self, name: str) -> np.ndarray:
        """One value of every conversation: split, category, level, tau, answer, query_path, query_identity, or k, the
        number of images in the gallery.

        Raises:
            ValueError: no such column.
        """
        if name == "k":
            lengths: np.ndarray = np.diff(self._table["similarities"].combine_chunks().offsets.to_numpy())
            return lengths
        known = [f.name for f in SCHEMA if not pa.types.is_nested(f.type) and not f.name.endswith("sha256")]
        if name not in known:
            raise ValueError(f"Unknown column {name!r}. Known: {', '.join([*known, 'k'])}.")
        values: np.ndarray = self._table[name].to_numpy()
        return values.astype(str) if values.dtype == object else values

    def refs(self) -> set[ImageRef]:
        """Every image that occurs, of every identity and box."""
        queries = [self._table[name] for name in ("query_path", "query_identity", "query_box")]
        shown = [self._table[name] for name in ("gallery_paths", "gallery_identities", "gallery_boxes")]
        columns = [*zip(queries, (column.combine_chunks().flatten() for column in shown), strict=True)]
        values = [first.to_pylist() + second.to_pylist() for first, second in columns]
        return {_image(*row) for row in zip(*values, strict=True)}

    def images(self) -> dict[str, str]:
        """Path -> sha256 of the file, of every image that occurs."""
        paths = pa.concat_arrays(
            [self._table["query_path"].combine_chunks(), self._table["gallery_paths"].combine_chunks().flatten()]
        )
        hashes = pa.concat_arrays(
            [self._table["query_sha256"].combine_chunks(), self._table["gallery_sha256"].combine_chunks().flatten()]
        )
        return dict(zip(paths.to_pylist(), hashes.to_pylist(), strict=True))

    # ------------------------------------------------------------------ checks

    def lacking(self) -> list[str]:
        """A sentence for each split that was asked for and has no conversation at any level: why, and what to do."""
        needed = [(int(np.min(rule["k"])), int(rule["no_match"] > 0)) for rule in self.meta.get("rules", ())]
        k, spare = min(needed, key=sum, default=(2, 0))
        sentences = []
        for split, skipped in self.meta["skipped"].items():
            if (self.column("split") == split).any():
                continue
            sentence = f"There is no {self.meta['category']} conversation in the {split} split"
            identities = self.meta.get("identities", {}).get(split, k + spare)
            if identities >= k + spare:
                sentence += f"; queries skipped: {skipped}. Lower --tau, --tau_quantile or --k, or add images."
            else:
                smaller = f", or mine with --k {identities - spare}" if identities - spare > 1 else ""
                sentence += f": it has {identities} identities, and a gallery needs {k + spare}. Add some{smaller}."
            sentences.append(sentence)
        return sentences

    def check(self, encoder: str | Path | None = None, images: bool = True, workers: int = 8) -> None:
        """Refuse conversations that do not fit an encoder or the images they were made from.

        Args:
            encoder: name on the shelf, folder or hub id that they have to be mined with; None for any.
            images: read every image file and compare it with its hash.
            workers: threads that read.

        Raises:
            ValueError: mined with another encoder, or images that are missing or changed.
        """
        if encoder is not None:
            wanted, made = signature(card(encoder)), self.meta["encoder"]
            if wanted != made:
                raise ValueError(
                    f"The conversations were mined with {made['name']} (sha256 {made['sha256'][:12]}), not with "
                    f"{wanted['name']} (sha256 {wanted['sha256'][:12]}): tau does not mean the same. Mine them again "
                    "with `python -m recipes.conversations --encoder`, or name the encoder that was used."
                )
        if images:
            expected = self.images()
            found = hashes(self.root, list(expected), workers)
            missing = [path for path, value in found.items() if value is None]
            changed = [path for path, value in found.items() if value is not None and value != expected[path]]
            if missing or changed:
                both = (missing, "missing"), (changed, "changed")
                counts = [f"{len(paths)} {what} (such as {paths[0]})" for paths, what in both if paths]
                raise ValueError(
                    f"Of {len(expected)} images of these conversations below {self.root}, {' and '.join(counts)}. "
                    "Restore the images, give the right root, or mine the conversations again."
                )

    # ------------------------------------------------------------------ files

    def save(self, path: Path | str) -> None:
        """Write .parquet or .jsonl, whole or not at all.

        The root is kept relative to the file where one of the two folders holds the other, and by the name of its
        world where it is one of the procedural ones. Where the two have at least a parent in common, the way from one
        to the other is kept, which `load` tries; anywhere else the root has to be given again.

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        suffix = _suffix(path)
        head = {"kind": KIND, "version": VERSION, "count": len(self), **_place(self.root, path.parent)}
        head["meta"] = self.meta
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        if suffix == ".parquet":
            pq.write_table(self._table.replace_schema_metadata({_KEY: json.dumps(head)}), partial)
        else:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                for entry in (head, *(row for batch in self._table.to_batches(1024) for row in batch.to_pylist())):
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path | str, root: Path | str | None = None) -> "Conversations":
        """Read a manifest again.

        Args:
            path: .parquet or .jsonl.
            root: folder of the images; None where the manifest has it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a manifest, one of a newer format, a truncated one, or a root that has to be given.
        """
        path = Path(path)
        suffix = _suffix(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. Check the path, or run python -m recipes.conversations.")
        try:
            head, table = (_read_parquet if suffix == ".parquet" else _read_jsonl)(path)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise ValueError(_no_manifest(path, str(error).partition("\n")[0])) from error
        if not isinstance(head, dict) or head.get("kind") != KIND:
            raise ValueError(_no_manifest(path, "it does not begin as one"))
        if head["version"] > VERSION:
            raise ValueError(
                f"{path} has format {head['version']}, newer than {VERSION}, the newest known here. "
                "Update instance-zoo, or write the manifest again with this version."
            )
        if table is None or len(table) != head["count"]:
            raise ValueError(
                f"{path} holds {0 if table is None else len(table)} conversations of {head['count']}: it is truncated. "
                "Fetch or write it again."
            )
        return cls(Path(root).expanduser() if root is not None else _root(head, table, path), table, head["meta"])


def _conversation(row: dict[str, Any]) -> Conversation:
    columns = row["gallery_paths"], row["gallery_identities"], row["gallery_boxes"]
    return Conversation(
        query=_image(row["query_path"], row["query_identity"], row["query_box"]),
        gallery=tuple(_image(*image) for image in zip(*columns, strict=True)),
        answer=row["answer"],
        category=row["category"],
        split=row["split"],
        tau=row["tau"],
        similarities=tuple(row["similarities"]),
        level=row["level"],
    )


def _image(path: str, identity: str, box: list[float] | None) -> ImageRef:
    return ImageRef(path, identity, None if box is None else (box[0], box[1], box[2], box[3]))


# ---------------------------------------------------------------------- files


def _suffix(path: Path) -> str:
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'!r}. A manifest ends in .parquet or .jsonl.")
    return path.suffix


def _no_manifest(path: Path, reason: str) -> str:
    return f"{path} is no manifest of conversations ({reason}). Give a file that python -m recipes.conversations wrote."


def _read_parquet(path: Path) -> tuple[Any, pa.Table | None]:
    table = pq.read_table(path)
    head = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    known = isinstance(head, dict) and head.get("version") == VERSION
    return head, table.select(SCHEMA.names).cast(SCHEMA) if known else None


def _read_jsonl(path: Path) -> tuple[Any, pa.Table | None]:
    with open(path, encoding="utf-8") as file:
        head = json.loads(file.readline() or "null")
        if not isinstance(head, dict) or head.get("version") != VERSION:
            return head, None
        return head, pa.Table.from_pylist([json.loads(line) for line in file], SCHEMA)


def _place(root: Path, folder: Path) -> dict[str, str]:
    """The root as a manifest in this folder records it; empty where the two have nothing in common."""
    here, there, drawn = (Path(os.path.abspath(path)) for path in (folder, root, worlds()))
    if there.is_relative_to(here) or here.is_relative_to(there):
        return {"root": Path(os.path.relpath(there, here)).as_posix()}
    if there.is_relative_to(drawn):
        return {"world": there.relative_to(drawn).as_posix()}
    if there.parts[:2] == here.parts[:2]:  # more in common than the drive
        return {"beside": Path(os.path.relpath(there, here)).as_posix()}
    return {}


def _root(head: Mapping[str, Any], table: pa.Table, path: Path) -> Path:
    if "root" in head:
        return path.parent / head["root"]
    if "world" in head:
        return worlds() / head["world"]
    tried = ""
    if "beside" in head:  # true until one of the two is moved
        root = Path(os.path.normpath(path.parent / head["beside"]))
        image = next(iter(table["query_path"].to_pylist()), "")
        if (root / image).exists():
            return root
        tried = f": {root / image} is not there"
    raise ValueError(
        f"{path} does not lie beside its images and does not record where they are{tried}. "
        f"Give their folder: --data.galleries '[{{manifest: {path}, root: PHOTOS}}]', or root=PHOTOS in Python."
    )


def hashes(root: Path, paths: Sequence[str], workers: int = 8, progress: bool = False) -> dict[str, str | None]:
    """Path -> sha256 of the file's bytes, None where there is none that can be read."""

    def read(path: str) -> str | None:
        try:
            with open(root / path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    with ThreadPoolExecutor(workers) as pool:
        found = track(pool.map(read, paths), "Hashing images", total=len(paths), disable=not progress)
        return dict(zip(paths, found, strict=True))


def signature(entry: Card) -> dict[str, str]:
    """What a manifest records of an encoder."""
    return {"name": entry.name, "sha256": entry.weights.sha256}
