"""Nearest neighbours in galleries of any size: exact over files larger than memory, or with FAISS."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.metrics.ranking import BLOCK_BYTES, check_unit_norm, products

Kind = Literal["exact", "flat", "ivf", "hnsw", "ivfpq"]
Shards = Sequence[np.ndarray | Tensor]


class FaissIndex(Protocol):
    """What is used of `faiss.Index`. Vectors are `(N, D)` float32; `search` gives scores and positions, `(Q, k)` each,
    best first, with position -1 where it finds fewer."""

    ntotal: int
    is_trained: bool

    def train(self, vectors: np.ndarray) -> None: ...

    def add(self, vectors: np.ndarray) -> None: ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...


def exact_search(
    queries: Tensor,
    shards: Iterable[np.ndarray | Tensor],
    k: int,
    exclude: Tensor | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """The k most similar of all vectors for every query, with one pass over the vectors.

    Args:
        queries: `(Q, D)` float32 of length 1.
        shards: Parts of the gallery, `(N_s, D)` of length 1 and any floating type, such as memory-mapped files.
        k: How many to give.
        exclude: `(Q,)` gallery positions to leave out, one for each query; -1 for none.
        block_bytes: Memory for one part of the gallery and its products with some queries.

    Returns:
        Scores `(Q, k)` float32, best first, and positions `(Q, k)` int64 in all shards, one after another. Where
        fewer than k are left, the rest is -inf at position -1. Equal scores come in any order.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 neighbour.")
    check_unit_norm(queries)
    scores = queries.new_full((len(queries), k), -torch.inf)
    positions = torch.full((len(queries), k), -1, device=queries.device)
    start = 0
    for part in _parts(shards, queries.shape[1], block_bytes // 2):
        vectors = part.to(queries.device)
        check_unit_norm(vectors)
        for rows in torch.arange(len(queries), device=queries.device).split(max(1, block_bytes // (8 * len(vectors)))):
            similarity = products(queries[rows], vectors)
            if exclude is not None:
                own = exclude.to(queries.device)[rows] - start
                here = (own >= 0) & (own < len(vectors))
                similarity[here, own[here]] = -torch.inf
            best, places = similarity.topk(min(k, len(vectors)), dim=1)
            places = (places + start).masked_fill_(best == -torch.inf, -1)
            merged = torch.cat([scores[rows], best], dim=1).topk(k, dim=1)
            scores[rows] = merged.values
            positions[rows] = torch.cat([positions[rows], places], dim=1).gather(1, merged.indices)
        start += len(vectors)
    return scores, positions


class VectorIndex:
    """A gallery to search, in memory or on disk.

    `exact` needs no FAISS and reads the vectors from where they are, also from memory-mapped files. The others are
    FAISS indices by inner product: `flat` is exact and holds all vectors, `ivf` searches some of many lists,
    `hnsw` walks a graph (fastest, most memory), `ivfpq` is `ivf` with vectors compressed to about D / 4 bytes. How
    much they find depends on the data: compare with `exact` on a few queries.

    The k nearest others of each row, a part of the rows on each process:

        rows = torch.arange(rank(), len(vectors), world_size())
        scores, positions = index.search(torch.from_numpy(vectors[rows]), k, exclude=rows)

    Args:
        kind: One of the above.
        width: D.
        shards: The vectors of an `exact` index.
        faiss_index: The FAISS index of any other.
    """

    def __init__(self, kind: Kind, width: int, shards: Shards = (), faiss_index: FaissIndex | None = None) -> None:
        self.kind, self.width, self.shards, self.faiss_index = kind, width, shards, faiss_index

    @classmethod
    def build(cls, shards: Shards, kind: Kind = "exact", training: int = 100_000) -> "VectorIndex":
        """Index vectors.

        Args:
            shards: Parts of the gallery, `(N_s, D)` of length 1, such as memory-mapped files; at least one vector.
            kind: See the class.
            training: Most vectors, evenly spread, that the lists and codes of `ivf` and `ivfpq` are learned from.

        Raises:
            ValueError: Unknown kind, no vector, or too few of them for `ivfpq`.
            ImportError: FAISS is asked for and not installed.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"Unknown kind of index {kind!r}. Known: {', '.join(get_args(Kind))}.")
        count = sum(len(shard) for shard in shards)
        if not count:
            raise ValueError("There are 0 vectors to index; give at least one.")
        width = shards[0].shape[1]
        if kind == "exact":
            return cls(kind, width, shards)
        faiss = _faiss()
        index = faiss.index_factory(width, _recipe(kind, count, width), faiss.METRIC_INNER_PRODUCT)
        if kind == "ivfpq":
            index.do_polysemous_training = False  # for Hamming distances, which are not used here; takes minutes
        if not index.is_trained:
            index.train(_spread(shards, min(training, count)))
        for part in _parts(shards, width, BLOCK_BYTES):
            check_unit_norm(part)
            index.add(part.numpy())
        return cls(kind, width, faiss_index=index)

    def __len__(self) -> int:
        return sum(len(s) for s in self.shards) if self.faiss_index is None else self.faiss_index.ntotal

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k most similar vectors of every query, as `exact_search` gives them.

        Args:
            queries: `(Q, D)` float32 of length 1.
            k: How many to give.
            exclude: `(Q,)` positions to leave out, one for each query; -1 for none.
        """
        if self.faiss_index is None:
            return exact_search(queries, self.shards, k, exclude)
        check_unit_norm(queries)
        _set_effort(self.faiss_index, self.kind, k)
        found = self.faiss_index.search(queries.detach().cpu().numpy(), k if exclude is None else k + 1)
        scores, positions = (torch.from_numpy(part).to(queries.device) for part in found)
        missing = positions < 0
        if exclude is not None:
            missing |= positions == exclude.to(positions.device)[:, None]
        scores, order = scores.masked_fill(missing, -torch.inf).sort(dim=1, descending=True, stable=True)
        return scores[:, :k], positions.masked_fill(missing, -1).gather(1, order)[:, :k]

    def save(self, folder: Path) -> None:
        """Write the index into a folder of its own: `index.json` beside `vectors.npy` or `index.faiss`."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.faiss_index is not None:
            _faiss().write_index(self.faiss_index, str(folder / "index.faiss"))
        else:
            file = np.lib.format.open_memmap(
                folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(len(self), self.width)
            )
            start = 0
            for part in _parts(self.shards, self.width, BLOCK_BYTES):
                file[start : start + len(part)] = part.numpy()
                start += len(part)
            file.flush()
        (folder / "index.json").write_text(json.dumps({"kind": self.kind, "width": self.width, "count": len(self)}))

    @classmethod
    def load(cls, folder: Path) -> "VectorIndex":
        """Open a saved index; its vectors stay on disk, memory-mapped, where FAISS can do so.

        Raises:
            FileNotFoundError: There is no saved index.
            ImportError: It is one of FAISS, which is not installed.
        """
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder} holds no index.json. Give a folder that VectorIndex.save has written.")
        meta = json.loads((folder / "index.json").read_text())
        if meta["kind"] == "exact":
            return cls("exact", meta["width"], [np.load(folder / "vectors.npy", mmap_mode="r")])
        faiss = _faiss()
        # The newer flag maps flat vectors, too.
        flag = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
        index = faiss.read_index(str(folder / "index.faiss"), flag)
        return cls(meta["kind"], meta["width"], faiss_index=index)


def _parts(shards: Iterable[np.ndarray | Tensor], width: int, part_bytes: int) -> Iterator[Tensor]:
    """All vectors in order, `(n, D)` float32 on the CPU at a time."""
    rows = max(1, part_bytes // (4 * width))
    for shard in shards:
        for start in range(0, len(shard), rows):
            part = shard[start : start + rows]
            # A copy also of a memory map, which may be read-only.
            yield part.float().cpu() if isinstance(part, Tensor) else torch.from_numpy(np.array(part, np.float32))


def _spread(shards: Shards, count: int) -> np.ndarray:
    """`count` vectors, evenly spread over all shards."""
    total = sum(len(shard) for shard in shards)
    rows = np.arange(count) * total // count
    ends = np.cumsum([len(shard) for shard in shards])
    parts = []
    for shard, end in zip(shards, ends, strict=True):
        mine = rows[(rows >= end - len(shard)) & (rows < end)] - (end - len(shard))
        parts.append(np.asarray(shard[mine], dtype=np.float32))
    return np.concatenate(parts)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "This kind of index needs FAISS: pip install 'instance-zoo[faiss]', or use the kind exact."
        ) from error
    return faiss


def _recipe(kind: Kind, count: int, width: int) -> str:
    """What `faiss.index_factory` calls this kind."""
    # FAISS' guidelines: 4 to 16 times sqrt(N) lists, at least 39 vectors to learn each from.
    lists = max(1, min(round(4 * count**0.5), count // 39))
    if kind == "flat":
        return "Flat"
    if kind == "hnsw":
        return "HNSW32"
    if kind == "ivf":
        return f"IVF{lists},Flat"
    if count < 256:
        raise ValueError(f"ivfpq learns 256 codes and cannot from {count} vectors; use exact or flat.")
    codes = next(n for n in range(max(1, width // 4), 0, -1) if width % n == 0)
    return f"IVF{lists},PQ{codes}"


def _set_effort(index: FaissIndex, kind: Kind, k: int) -> None:
    """Search effort: a sixteenth of the lists, at least 8; 4 k candidates in a graph, at least 64."""
    parameters = _faiss().ParameterSpace()
    if kind in ("ivf", "ivfpq"):
        lists = _faiss().extract_index_ivf(index).nlist
        parameters.set_index_parameter(index, "nprobe", min(lists, max(8, lists // 16)))
    elif kind == "hnsw":
        parameters.set_index_parameter(index, "efSearch", max(64, 4 * k))
