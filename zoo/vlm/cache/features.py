"""Frozen towers' features on disk: what never changes is computed once."""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from zoo.cards.registry import class_path_of
from zoo.module import ZooModule

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# What an index file holds for each image; the check covers the fields before it.
_RECORD = np.dtype([("key", "S16"), ("offset", "<i8"), ("count", "<i4"), ("check", "<u4")])
# Entries of a model's configuration that do not change what it computes.
_NO_CONFIG = {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype"}


class FeatureCache:
    """The tokens of every image that a frozen tower has seen, mapped from disk, so that memory does not grow.

    Features of one model, width and type lie in a folder of their own, `<folder>/<key>-<width>-<dtype>`, so those of
    another model are never found. In it every process that writes has a pair of files that only grow: `.bin` with
    the numbers and `.idx` with a record for each image. A record is written when the image's numbers are on the disk,
    so an entry is either whole or not there: a writer may be killed at any time, and any number of processes may
    write. What others have written since is found after `refresh`.

    In memory, an image takes 32 bytes. Copies for other processes, by fork or pickle, write files of their own.

    Args:
        folder: where the caches of all models lie.
        key: which model the features come from, see `model_key`.
        width: C, width of a token.
        dtype: float32, bfloat16 or float16; what is put must have it.

    Raises:
        ValueError: a type that is not kept, or a key that is no plain name.
    """

    def __init__(self, folder: Path, key: str, width: int, dtype: torch.dtype = torch.bfloat16) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"Features of {dtype} are not cached. Known: {', '.join(_DTYPES.values())}.")
        if not key or not all(letter.isalnum() or letter in "._-" for letter in key):
            raise ValueError(f"key {key!r} names a folder: give letters, digits, dots and dashes, as model_key does.")
        self._arguments = (Path(folder), key, width, dtype)
        self.folder = Path(folder) / f"{key}-{width}-{_DTYPES[dtype]}"
        self.width, self.dtype = width, dtype
        self._bytes_per_token = width * dtype.itemsize
        self._shards: list[Path] = []
        self._read_to: dict[str, int] = {}  # bytes of each index file that were taken in
        self._maps: dict[int, Tensor] = {}
        self._writer: _Writer | None = None
        # Parallel, in the order of the keys.
        self._keys = np.empty(0, "S16")
        self._offsets, self._counts, self._shard = (np.empty(0, kind) for kind in (np.int64, np.int32, np.int32))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __reduce__(self) -> tuple[type["FeatureCache"], tuple[Path, str, int, torch.dtype]]:
        return FeatureCache, self._arguments

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return bool(self._find([key])[0] >= 0)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The places of those keys that are not in the cache."""
        return np.flatnonzero(self._find(keys) < 0).tolist()

    def get(self, keys: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """The tokens of images, copied out and packed one after another.

        Returns:
            tokens (T, C) and how many each image has (I,) int64, both on the CPU; None where `missing` names any.
        """
        rows = self._find(keys)
        if (rows < 0).any():
            return None
        counts = torch.from_numpy(self._counts[rows].astype(np.int64))
        tokens = torch.empty(int(counts.sum()), self.width, dtype=self.dtype, device="cpu")
        for row, place in zip(rows.tolist(), tokens.split(counts.tolist()), strict=True):
            place.copy_(self._mapped(row))
        return tokens, counts

    def put(self, keys: Sequence[str], tokens: Tensor, counts: Tensor) -> None:
        """Keep the tokens of images; those of known keys are left as they are. They are on the disk on return.

        Args:
            keys: I keys, see `image_key`.
            tokens: (T, C), the tokens of the images packed one after another, in the cache's type.
            counts: (I,) integers, how many of them each image has.

        Raises:
            ValueError: shapes or types that do not fit together or the cache.
            OSError: the disk is full, or fails; what was in the cache stays, nothing of this call is added.
        """
        self._check(keys, tokens, counts)
        names, first = np.unique(_digests(keys), return_index=True)
        new = np.zeros(len(keys), dtype=bool)
        new[first] = self._find_digests(names) < 0
        if not new.any():
            return
        sizes = counts.cpu().numpy()
        parts = tokens.detach().cpu().contiguous().split(sizes.tolist())
        data = [_raw(part) for part, is_new in zip(parts, new, strict=True) if is_new]
        records = _records(_digests(keys)[new], sizes[new], self._bytes_per_token)
        if self._writer is None or self._writer.process != os.getpid():
            self._writer = _Writer(self.folder)
        try:
            records = self._writer.append(data, records)
        except OSError as error:
            writer, self._writer = self._writer, None
            writer.give_up()
            full = " The disk is full: free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise OSError(
                error.errno,
                f"{int(new.sum())} images could not be added to the {len(self)} in the feature cache: "
                f"{error.strerror}. Those are intact.{full}",
                str(writer.data),
            ) from error
        self._read_to[self._writer.data.stem] = self._writer.index_size
        self._take_in(self._writer.data, records)

    def refresh(self) -> None:
        """Find what other processes have written by now."""
        for path in sorted(self.folder.glob("*.idx")):
            seen = self._read_to.get(path.stem, 0)
            with open(path, "rb") as file:
                file.seek(seen)
                found = file.read()
            whole = len(found) // _RECORD.itemsize * _RECORD.itemsize
            records = np.frombuffer(found[:whole], _RECORD)
            # Neither a torn record nor one whose numbers were lost counts, nor what comes after it.
            data = path.with_suffix(".bin")
            size = data.stat().st_size if data.is_file() else 0
            ends = records["offset"] + records["count"] * np.int64(self._bytes_per_token)
            good = (records["check"] == _checks(records)) & (ends <= size)
            records = records[: int(np.argmin(good)) if not good.all() else len(good)]
            if len(records):
                self._read_to[path.stem] = seen + records.nbytes
                self._take_in(data, records)

    def close(self) -> None:
        """Close the files. The cache may be read and written on; it opens what it needs."""
        self._maps.clear()
        if self._writer is not None and self._writer.process == os.getpid():
            self._writer.close()
        self._writer = None

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        return self._find_digests(_digests(keys))

    def _find_digests(self, digests: np.ndarray) -> np.ndarray:
        """(K,) S16 -> (K,) rows, -1 where there is none."""
        if not len(self._keys):
            return np.full(len(digests), -1)
        rows = np.searchsorted(self._keys, digests).clip(max=len(self._keys) - 1)
        return np.where(self._keys[rows] == digests, rows, -1)

    def _take_in(self, data: Path, records: np.ndarray) -> None:
        """Sort records of one shard in; of several with one key, the first stays."""
        names, first = np.unique(records["key"], return_index=True)
        fresh = self._find_digests(names) < 0
        records = records[first[fresh]]
        if data not in self._shards:
            self._shards.append(data)
        place = np.searchsorted(self._keys, records["key"])
        self._keys = np.insert(self._keys, place, records["key"])
        self._offsets = np.insert(self._offsets, place, records["offset"])
        self._counts = np.insert(self._counts, place, records["count"])
        self._shard = np.insert(self._shard, place, self._shards.index(data))

    def _mapped(self, row: int) -> Tensor:
        """(N, C), not copied."""
        shard, start = int(self._shard[row]), int(self._offsets[row])
        end = start + int(self._counts[row]) * self._bytes_per_token
        if end == start:
            return torch.empty(0, self.width, dtype=self.dtype)
        if shard not in self._maps or len(self._maps[shard]) < end:
            path = self._shards[shard]
            self._maps[shard] = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8, device="cpu")
        return self._maps[shard][start:end].view(self.dtype).view(-1, self.width)

    def _check(self, keys: Sequence[str], tokens: Tensor, counts: Tensor) -> None:
        if tokens.dtype != self.dtype or tokens.ndim != 2 or tokens.shape[1] != self.width:
            raise ValueError(
                f"tokens are {tokens.dtype} {tuple(tokens.shape)}, this cache keeps {self.dtype} (T, {self.width}). "
                "Convert them before they are used, so that every epoch sees the same numbers."
            )
        if counts.shape != (len(keys),) or (counts < 0).any() or int(counts.sum()) != len(tokens):
            raise ValueError(
                f"{len(keys)} keys and counts {tuple(counts.shape)} that sum to {int(counts.sum())} do not fit "
                f"{len(tokens)} tokens. Give each image one key and the number of its tokens."
            )


class _Writer:
    """The pair of files that one process appends to."""

    def __init__(self, folder: Path) -> None:
        self.process = os.getpid()
        name = f"{self.process}-{uuid4().hex}"
        self.data, self.index = folder / f"{name}.bin", folder / f"{name}.idx"
        self._size = self.index_size = 0  # of the complete entries, in bytes
        self._files: list[FileIO] = []

    def append(self, data: list[memoryview], records: np.ndarray) -> np.ndarray:
        """Write numbers, then records; returns the records, their offsets and checks filled in."""
        if not self._files:
            self._files = [FileIO(path, "ab") for path in (self.data, self.index)]
        records["offset"] += self._size
        records["check"] = _checks(records)
        for part in data:
            _write_all(self._files[0], part)
        os.fsync(self._files[0].fileno())
        _write_all(self._files[1], memoryview(records.tobytes()))
        self._size += sum(part.nbytes for part in data)
        self.index_size += records.nbytes
        return records

    def give_up(self) -> None:
        """Take back what of the last call was written, as far as the disk lets us."""
        for path, size in ((self.index, self.index_size), (self.data, self._size)):
            with suppress(OSError):
                os.truncate(path, size)
        self.close()

    def close(self) -> None:
        for file in self._files:
            with suppress(OSError):
                file.close()


def _write_all(file: FileIO, data: memoryview) -> None:
    while data.nbytes:
        data = data[file.write(data) :]


def _raw(tokens: Tensor) -> memoryview:
    return tokens.reshape(-1).view(torch.uint8).numpy().data


def settings_of(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """What a configuration of transformers sets otherwise than its class does, so that entries that another version
    of transformers adds, with their defaults, make no other model of it.

    Args:
        config: of transformers; {} of anything else.
        without: further names that are left out.
    """
    if not hasattr(config, "to_dict"):
        return {}
    parts = {name: part for name, part in vars(config).items() if hasattr(part, "to_dict") and name not in without}
    usual = type(config)().to_dict()
    own = {
        name: value
        for name, value in config.to_dict().items()
        if name not in {*parts, *without, *_NO_CONFIG} and (name not in usual or usual[name] != value)
    }
    return own | {name: settings_of(part) for name, part in parts.items()}


def _digests(keys: Sequence[str]) -> np.ndarray:
    """(K,) S16; numpy drops zeros at the end of each, from all of them alike."""
    return np.array([hashlib.sha256(key.encode()).digest()[:16] for key in keys], dtype="S16")


def _records(digests: np.ndarray, counts: np.ndarray, bytes_per_token: int) -> np.ndarray:
    records = np.zeros(len(digests), _RECORD)
    sizes = counts.astype(np.int64) * bytes_per_token
    records["key"], records["count"], records["offset"] = digests, counts, sizes.cumsum() - sizes
    return records


def _checks(records: np.ndarray) -> np.ndarray:
    """(K,) uint32, the CRC of each record's other fields; not 0 for the zeros that a crash of the machine may leave."""
    step, data = _RECORD.itemsize, records.tobytes()
    return np.array([zlib.crc32(data[i : i + step - 4]) for i in range(0, len(data), step)], dtype=np.uint32)


def image_key(path: Path, size: Sequence[int]) -> str:
    """Key of an image: the hash of its file and the resolution that the tower sees it in.

    The hash is taken once for a file of the same path, time of change and size.

    Args:
        path: file of the image.
        size: height and width in pixels, or whatever else decides them.
    """
    status = os.stat(path)
    return f"{_file_hash(os.fspath(path), status.st_mtime_ns, status.st_size)}@{'x'.join(map(str, size))}"


@lru_cache(maxsize=2**17)
def _file_hash(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def model_key(model: nn.Module) -> str:
    """Hash of a tower's class, configuration and weights: other weights, other features.

    Args:
        model: anything with a state dict; with a `config` that has `to_dict` where it comes from transformers. Of a
            component of the zoo, its arguments and its transform count, too.
    """
    facts: list[Any] = [type(model).__name__, settings_of(getattr(model, "config", None))]
    if isinstance(model, ZooModule):
        transform = getattr(model, "transform", None)
        facts += [class_path_of(type(model)), model.init_args(), transform and asdict(transform)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()[:32]
