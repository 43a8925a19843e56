"""InstanceData: images of known identities, read or rendered, as a LightningDataModule."""

import hashlib
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from zoo.contracts import IdentityBatch
from zoo.data.cameras import without_useless_cameras
from zoo.data.dataset import IdentityCollate, IdentityDataset, Item
from zoo.data.holdout import HoldOut
from zoo.data.index import INDEX_SPLITS, TESTED, IdentityIndex
from zoo.data.join import Source, read_sources
from zoo.data.readers import find_reader
from zoo.data.samplers import Key, PKSampler, ShardSampler
from zoo.distributed import rank, world_size
from zoo.training.resuming import ResumableData
from zoo.transforms import Augment, Transform
from zoo.world import World

log = logging.getLogger(__name__)


class ImageModel(Protocol):
    """What `InstanceData` needs of the model that it feeds."""

    @property
    def transform(self) -> Transform:
        """RGB image -> input of the model."""

    @property
    def classifies(self) -> bool:
        """Whether it has a head that names training identities; read when the test loader is made."""


class InstanceData(ResumableData):
    """Images of known identities, in the batches that metric learning needs.

    The images come from the folder `root`; else from several `sources`, joined; else from a procedural world, which is
    rendered once and cached. The transform is that of the model, given by `connect`.

    Args:
        root: folder of the images.
        reader: layout of `root`, the name of a reader in `zoo.data.readers`; null chooses the one that fits.
        options: options of the reader.
        sources: several datasets with their readers, joined into one.
        world: a procedural world, or several of them, joined.
        manifest: reuse the rows and splits that an earlier run has written.
        val_share: share of the identities to validate on, at least two of them, where the data has no split of its
            own; with 0 all of them are trained on, nothing is validated, and the last epoch counts as the best.
        test_share: share of the identities to test on, likewise.
        split_seed: which identities are held out.
        identities_per_batch: P, identities in a global training batch.
        images_per_identity: K, images of each.
        categories_per_batch: take the identities of a batch from this many of the index's categories; 0 for all.
        steps_per_epoch: batches in an epoch; null for as many as the images fill.
        augment: random changes of training images.
        eval_batch_size: images in a batch of evaluation and prediction, on each process.
        workers: processes that decode, on each process.
        predict_split: which images `predict` embeds; test means queries and gallery, too.
        max_unreadable: largest share of unreadable files to skip before giving up.
        seed: seed of sampling and augmentation.
    """

    def __init__(
        self,
        root: str | None = None,
        reader: str | None = None,
        options: dict[str, Any] | None = None,
        sources: list[Source] | None = None,
        world: World | list[World] | None = None,
        manifest: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.3,
        split_seed: int = 0,
        identities_per_batch: int = 16,
        images_per_identity: int = 4,
        categories_per_batch: int = 0,
        steps_per_epoch: int | None = None,
        augment: Augment = Augment(),  # noqa: B008  (frozen)
        eval_batch_size: int = 128,
        workers: int = 2,
        predict_split: Literal["all", "train", "val", "test", "query", "gallery", "closed"] = "all",
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if root is not None and sources:
            raise ValueError(
                f"Both data.root {root!r} and data.sources are given. Name the folder as one of the sources."
            )
        if root is None and not sources and not world:
            raise ValueError(
                "None of data.root, data.sources and data.world is given. Point data.root at a folder of images, "
                "or give data.world a procedural world."
            )
        if reader is not None:
            find_reader(reader)
        if root is None and (reader is not None or options):
            given = f"data.reader {reader!r}" if reader is not None else f"data.options {options!r}"
            raise ValueError(
                f"{given} is given without data.root, which it belongs to. Give data.root, or give each of "
                "data.sources a reader and options of its own."
            )
        self.sources = [Source(root, reader, options=options or {})] if root is not None else sources or []
        worlds = [world] if isinstance(world, World) else world or []
        self.world, self.manifest = [] if self.sources else worlds, manifest
        self.hold_out = HoldOut(val_share, test_share, split_seed)
        self.p, self.k, self.steps_per_epoch = identities_per_batch, images_per_identity, steps_per_epoch
        self.augment, self.categories_per_batch = augment, categories_per_batch
        self.eval_batch_size, self.workers = eval_batch_size, workers
        self.predict_split, self.max_unreadable, self.seed = predict_split, max_unreadable, seed
        self.unreadable: dict[str, None] = {}  # an ordered set of "path: reason"
        self._index: IdentityIndex | None = None
        self._model: ImageModel | None = None

    def connect(self, model: ImageModel) -> None:
        """Prepare images for this model from now on. In a run, the callback `Connect` calls it."""
        self._model = model

    @property
    def model(self) -> ImageModel:
        """The model that images are prepared for.

        Raises:
            RuntimeError: none was connected.
        """
        if self._model is None:
            raise RuntimeError(
                "InstanceData has no model to take the transform of images from. Call data.connect(model) before "
                "loaders are made, or add the callback zoo.module.Connect to the Trainer."
            )
        return self._model

    @property
    def index(self) -> IdentityIndex:
        """All rows of all splits; available after `setup`."""
        if self._index is None:
            self.setup()
        assert self._index is not None
        return self._index

    def prepare_data(self) -> None:
        """Render the world if it is wanted and not yet there. Once a machine."""
        for world in self.world:
            world.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the index, and keep it as `manifest.csv` beside a training run's logs.

        Raises:
            ValueError: a split that the stage needs has nothing to learn from or to find, or the data of a resumed
                run changed. Training needs no other split than its own.
        """
        if self._index is None:
            worlds = [Source(str(world.prepare()), world.READER, name=world.NAME) for world in self.world]
            index = read_sources(self.sources or worlds, self.hold_out, self.manifest)
            if rank() == 0:
                log.info("%s: %s", index.root, index.describe())
            self._index = without_useless_cameras(index)
        if stage == "fit":
            self._require_pairs()
            asked = self.hold_out.val_share > 0 or len(self.index.rows("val"))
            if asked and not self.validates and rank() == 0:
                log.warning("There is nothing to validate on, the last epoch counts as best: %s", self._lack_of("val"))
        elif stage in ("validate", "test"):
            self._require_findable("val" if stage == "validate" else "test")
        elif stage == "predict":
            self._require_images()
        if stage == "fit" and self.trainer is not None and self.trainer.loggers and self.trainer.log_dir:
            self._keep_manifest(Path(self.trainer.log_dir) / "manifest.csv")

    @cached_property
    def validates(self) -> bool:
        """Whether the val split can be scored: it has something to find, among more than one identity."""
        return not self._lack_of("val")

    @cached_property
    def tests(self) -> bool:
        """Whether the test split can be scored: it has something to find, among more than one identity."""
        return not self._lack_of("test")

    @property
    def num_identities(self) -> int:
        """Number of training identities, the classes of a head."""
        return len(self.train_identities)

    @property
    def train_identities(self) -> np.ndarray:
        """Sorted numbers of the training identities; a class is a position in it."""
        return np.unique(self.index.identities[self.index.rows("train")])

    @cached_property
    def train_fingerprint(self) -> bytes:
        """Hash (32 bytes) of the training identities in the order of their classes: names, and a few of the files."""
        digest = hashlib.sha256("\n".join(self.index.names[identity] for identity in self.train_identities).encode())
        rows = self.index.rows("train")
        for row in rows[np.linspace(0, len(rows) - 1, min(16, len(rows))).astype(int)]:
            file = self.index.root / str(self.index.paths[row])
            digest.update(file.read_bytes() if file.is_file() else b"missing")
        return digest.digest()

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader[Item]:
        """Batches of P identities with K images each, divided by the processes, augmented."""
        sampler = PKSampler(
            self.index.identities,
            self.index.rows("train"),
            self._possible_p(),
            self.k,
            self.seed,
            rank(),
            world_size(),
            self.steps_per_epoch,
            self.index.categories,
            self.categories_per_batch,
        )
        sampler.resume(**self.resume_at)
        batch_size, transform = sampler.p * sampler.k // world_size(), self.model.transform.compose(self.augment)
        return self._loader(transform, sampler, batch_size, keep_workers=self.workers > 0)

    def _possible_p(self) -> int:
        """The identities of a batch, fewer than asked for where there are not enough."""
        possible = self.num_identities // world_size() * world_size()
        if self.p <= possible or possible == 0:
            return self.p
        if rank() == 0:
            log.warning("identities_per_batch is %d instead of %d: there are no more to train on", possible, self.p)
        return possible

    def val_dataloader(self) -> DataLoader[Item] | list[DataLoader[Item]]:
        """The val split; no loader where it cannot be scored."""
        return self._eval_loader("val") if self.validates else []

    def test_dataloader(self) -> DataLoader[Item]:
        """Queries and gallery; and, for a model with a head that names them, new images of training identities."""
        return self._eval_loader(*TESTED, *(["closed"] if self.model.classifies else []))

    def predict_dataloader(self) -> DataLoader[Item]:
        """The images of `predict_split`."""
        return self._eval_loader(*self._predicted)

    @property
    def _predicted(self) -> tuple[str, ...]:
        return {"all": INDEX_SPLITS, "test": TESTED}.get(self.predict_split, (self.predict_split,))

    def _eval_loader(self, *splits: str) -> DataLoader[Item]:
        sampler = ShardSampler(self.index.rows(*splits), rank(), world_size())
        return self._loader(self.model.transform.compose(), sampler, self.eval_batch_size)

    def _loader(
        self,
        transform: Callable[[Image.Image], Tensor],
        sampler: Sampler[Key],
        batch_size: int,
        keep_workers: bool = False,
    ) -> DataLoader[Item]:
        return DataLoader(
            IdentityDataset(self.index, transform, self.seed),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=IdentityCollate(self.index, self.model.transform.size),
            num_workers=self.workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=keep_workers,
        )

    # ------------------------------------------------------------------ bad input

    def on_before_batch_transfer(self, batch: IdentityBatch, dataloader_idx: int) -> IdentityBatch:
        """Count the files that could not be read.

        Raises:
            RuntimeError: more of them than `max_unreadable`, or a batch of nothing else.
        """
        self.unreadable.update(dict.fromkeys(batch.skipped))
        share = len(self.unreadable) / (len(self.index) / world_size())  # of this rank's part
        if share > self.max_unreadable or (
            self.trainer is not None and self.trainer.training and not len(batch.images)
        ):
            raise RuntimeError(
                f"{len(self.unreadable)} of {len(self.index)} files cannot be read ({share:.1%}, at most "
                f"{self.max_unreadable:.1%} are skipped): {'; '.join(list(self.unreadable)[:5])}. "
                "Repair or remove them, or raise data.max_unreadable."
            )
        return batch

    def on_after_batch_transfer(self, batch: IdentityBatch, dataloader_idx: int) -> IdentityBatch:
        """Normalise on the device."""
        images = self.model.transform.normalise(batch.images)
        return batch._replace(images=self.trainer.precision_plugin.convert_input(images) if self.trainer else images)

    def teardown(self, stage: str) -> None:
        """Log what was skipped."""
        if self.unreadable:
            names = "\n  ".join(self.unreadable)
            log.warning("%d unreadable files were skipped:\n  %s", len(self.unreadable), names)
            self.unreadable.clear()

    # ------------------------------------------------------------------ demands on the data

    def _require_pairs(self) -> None:
        """
        Raises:
            ValueError: no two training images of one identity.
        """
        rows = self.index.rows("train")
        if not self.index.positives(rows, rows, by_camera=False).any():
            raise ValueError(
                f"The train split of {self.index.root} has no two images of one identity "
                f"({len(rows)} images; {self.index.describe()}), so there is nothing to learn from. "
                "Add images, or choose other val_share, test_share or split_seed."
            )

    def _require_findable(self, split: Literal["val", "test"]) -> None:
        lack = self._lack_of(split)
        if lack:
            raise ValueError(
                f"{lack} ({self.index.describe()}), so there is nothing to score. "
                "Add images, or choose other val_share, test_share or split_seed."
            )

    def _lack_of(self, split: Literal["val", "test"]) -> str:
        """Why a split cannot be scored; "" where it can."""
        index = self.index
        query_rows, gallery_rows = index.sides(split)
        identities = len(np.unique(index.identities[gallery_rows]))
        if not index.positives(query_rows, gallery_rows).any():
            return f"the {split} split of {index.root} has no two images of one identity to find one by the other"
        return f"the {split} split of {index.root} has one identity only" if identities < 2 else ""

    def _require_images(self) -> None:
        if not len(self.index.rows(*self._predicted)):
            raise ValueError(
                f"data.predict_split {self.predict_split!r} has no image in {self.index.root}, which has "
                f"{self.index.describe()}. Choose one of these splits, or all."
            )

    def _keep_manifest(self, path: Path) -> None:
        if rank() != 0:
            return
        if path.exists() and path.read_bytes() != self.index.manifest().encode():
            raise ValueError(
                f"The data under {self.index.root} or its split differs from {path}, which lists what this run was "
                "trained on. Restore the files, pass data.manifest, or start a new run without ckpt_path."
            )
        log.info("manifest %s, sha256 %s", path, self.index.save(path))
