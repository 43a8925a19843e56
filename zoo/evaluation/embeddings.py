"""EmbeddingWriter: keeps what `predict` embeds, one file a rank, with the path of every image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from zoo.data.index import IdentityIndex


class Embedded(TypedDict):
    """What a predict step gives: (B, D) embeddings of unit norm, and the (B,) rows of the index that they belong to."""

    embeddings: Tensor
    indices: Tensor


class EmbeddingRoot(Protocol):
    """A root whose predict step gives `Embedded`."""

    @property
    def embed_dim(self) -> int:
        """D."""

    @property
    def index(self) -> IdentityIndex:
        """The images that are embedded."""


class EmbeddingWriter(Callback):
    """Writes the embeddings of a predict run, of any `EmbeddingRoot`.

    Columns or arrays are `path`, `identity`, `split` and `embedding` (D float32 each, unit norm).

    A file appears under its name only when it is complete: `embeddings-00000-of-00002.parquet` is rank 0 of 2.
    Parquet is written batch by batch; npz, a format without appending, holds a rank's rows in memory until the end.

    Args:
        folder: where to; null for `embeddings` in the run's folder.
        format: parquet or npz.
    """

    def __init__(self, folder: str | None = None, format: Literal["parquet", "npz"] = "parquet") -> None:
        self.folder, self.format = folder, format
        self._writer: pq.ParquetWriter | None = None
        self._batches: list[pa.RecordBatch] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(self.folder) if self.folder else Path(trainer.log_dir or trainer.default_root_dir) / "embeddings"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"embeddings-{trainer.global_rank:05d}-of-{trainer.world_size:05d}.{self.format}"
        self._partial = self.path.with_suffix(".partial")
        root = cast(EmbeddingRoot, pl_module)
        self._index, self._schema = root.index, _schema(root.embed_dim)
        self._batches = []
        if self.format == "parquet":  # a rank without images leaves a file without rows
            self._writer = pq.ParquetWriter(self._partial, self._schema)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Embedded,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows, embeddings = outputs["indices"].cpu().numpy(), outputs["embeddings"].float().cpu().numpy()
        record = _record(self._index, rows, embeddings, self._schema)
        if self._writer is not None:
            self._writer.write_batch(record)
        else:
            self._batches.append(record)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writer is not None:
            self._writer.close()
        else:
            table = pa.Table.from_batches(self._batches, self._schema)
            columns = {name: table[name].to_numpy(zero_copy_only=False) for name in ("path", "identity", "split")}
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            with open(self._partial, "wb") as file:
                np.savez(
                    file,
                    embedding=flat.reshape(-1, self._schema.field("embedding").type.list_size),
                    **{name: column.astype(str) for name, column in columns.items()},
                )
        self._partial.replace(self.path)
        self._writer, self._batches = None, []
        trainer.print(f"Embeddings: {self.path.parent}")


def read_embeddings(folder: Path | str) -> pa.Table:
    """All ranks' Parquet files of a folder as one table.

    Raises:
        FileNotFoundError: a rank's file is missing, since its process was stopped.
    """
    files = sorted(Path(folder).glob("embeddings-*-of-*.parquet"))
    expected = int(files[0].stem.rsplit("-", 1)[1]) if files else 1
    if len(files) != expected:
        raise FileNotFoundError(
            f"{folder} holds {len(files)} of {expected} embedding files. Run predict again, to its end."
        )
    return pa.concat_tables([pq.read_table(file) for file in files])


def _schema(width: int) -> pa.Schema:
    text = pa.string()
    return pa.schema({"path": text, "identity": text, "split": text, "embedding": pa.list_(pa.float32(), width)})


def _record(index: IdentityIndex, rows: np.ndarray, embeddings: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    columns: Sequence[pa.Array] = [
        pa.array(index.paths[rows].tolist()),
        pa.array([index.names[i] for i in index.identities[rows]]),
        pa.array(index.splits[rows].tolist()),
        pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
