"""Evaluation: the root of a run that tests an identity encoder, and the base of those that train one."""

import typing
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.cards import Card, load, save
from zoo.contracts import IdentityBatch, IdentityEncoder
from zoo.data.index import TESTED, IdentityIndex
from zoo.evaluation.embeddings import Embedded
from zoo.evaluation.protocol import Protocol
from zoo.evaluation.saving import card_score, data_names
from zoo.evaluation.scorer import RetrievalScorer
from zoo.module import Optim, ZooModule
from zoo.scores import Scores
from zoo.transforms import Transform

UNTRAINED = "untrained"


class IdentityData(typing.Protocol):
    """What a root takes from its data module; `zoo.data.module.InstanceData` offers it."""

    @property
    def index(self) -> IdentityIndex:
        """All rows of all splits."""

    @property
    def train_identities(self) -> np.ndarray:
        """(C,) sorted numbers of the training identities; a class is a position in it."""

    @property
    def train_fingerprint(self) -> bytes:
        """Hash (32 bytes) of the training identities in the order of their classes."""


class Evaluation(ZooModule):
    """Tests an identity encoder on identities that it has not seen: validate, test and predict.

    `validate` also calibrates the encoder's threshold. `test` adds the pairs to verify that the data brings along, and
    how far the threshold holds on the test identities; see `RetrievalScorer`.

    Args:
        encoder: what is evaluated.
        optim: optimiser and schedule of a trainer that derives from this.
        freeze: what does not train, by name; `*` matches anything.
        protocol: how it is tested.

    Attributes:
        category: the kind of instances that the encoder is for, as its card will state; None for none in particular.
        start: the encoder's name before training: a card, "pretrained", "untrained" or just "start".
    """

    calibrates = True  # the threshold
    component_folder = "expert"
    category: str | None = None
    start: str = "start"
    _data: IdentityData | None = None

    def __init__(
        self,
        encoder: IdentityEncoder,
        optim: Optim | None = None,
        freeze: list[str] | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(optim, freeze)
        self.encoder, self.protocol = encoder, protocol
        self.scorer = RetrievalScorer(protocol)

    # ------------------------------------------------------------------ the data

    def connect(self, data: IdentityData) -> None:
        """Take the data of the run; see `zoo.module.Connect`."""
        self._data = data

    @property
    def data(self) -> IdentityData:
        """The data of the run.

        Raises:
            RuntimeError: there is none yet.
        """
        if self._data is None:
            raise RuntimeError(
                f"This {type(self).__name__} is not connected to any data. Run it by a Trainer with "
                "datamodule=InstanceData(...), or call connect(data) before."
            )
        return self._data

    @property
    def index(self) -> IdentityIndex:
        """The images of the run, see `data`."""
        return self.data.index

    @property
    def transform(self) -> Transform:
        """The encoder's transform, which the data module applies to the images."""
        return self.encoder.transform

    @property
    def classifies(self) -> bool:
        """Whether it can name training identities on new images, so that the data module brings those along."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """A copy, as weight averaging makes one, is not connected: it would copy the data and its trainer, too."""
        return super().__getstate__() | {"_data": None}

    # ------------------------------------------------------------------ the encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim)."""
        return self.encoder(images)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim), unit norm; see `IdentityEncoder.embed`."""
        return self.encoder.embed(images)

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.encoder.embed_dim

    def lr_multipliers(self) -> dict[str, float]:
        """Layer decay of the encoder, where `optim` has one; trainers add their heads."""
        if self.optim.layer_decay is None:
            return {}
        layers = self.encoder.layer_rates(self.optim.layer_decay)
        return {f"encoder.{name}": rate for name, rate in layers.items()}

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    # ------------------------------------------------------------------ steps

    def validation_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        self._score(batch)

    def predict_step(self, batch: IdentityBatch, batch_idx: int) -> Embedded:
        """Embeddings (B, embed_dim) with the rows of the index that they belong to."""
        embeddings = self.embed(batch.images) if len(batch.images) else torch.empty(0, self.embed_dim)
        return {"embeddings": embeddings, "indices": batch.indices}

    def rows_of(self, batch: IdentityBatch, *splits: str) -> Tensor:
        """Which images of a batch are of these splits, (B,) bool."""
        named = np.isin(self.index.splits[batch.indices.cpu().numpy()], splits)
        return torch.from_numpy(named).to(self.device)

    def check_finite(self, value: Tensor, what: str, indices: Tensor) -> Tensor:
        """Pass on what is finite throughout.

        Args:
            value: a scalar, or (B, ...) with a row for each image.
            what: its name.
            indices: (B,) rows of the index that it comes from.

        Raises:
            ValueError: nan or infinity, with the paths of the images.
        """
        finite = torch.isfinite(value)
        if not finite.all():
            rows = indices if value.ndim == 0 else indices[~finite.flatten(1).all(1)]
            names = "\n  ".join(self.index.paths[rows.cpu().numpy()].tolist())
            raise ValueError(
                f"The {what} is nan or infinite, at step {self.global_step}, of these images:\n  {names}\n"
                "Look at them; else lower model.optim.lr, clip gradients (trainer.gradient_clip_val), or leave half "
                "precision (trainer.precision)."
            )
        return value

    def _score(self, batch: IdentityBatch) -> None:
        """Embed the images of a batch that are to be retrieved; new images of training identities are not."""
        open_set = ~self.rows_of(batch, "closed")
        if open_set.any():
            indices = batch.indices[open_set]
            self.scorer.update(self.check_finite(self.embed(batch.images[open_set]), "embedding", indices), indices)

    # ------------------------------------------------------------------ epochs

    def on_fit_start(self) -> None:
        self.encoder.threshold = None  # it was calibrated on the weights before this training

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.encoder.threshold = None  # it was calibrated on the weights that the checkpoint replaces

    def on_validation_epoch_start(self) -> None:
        self.scorer.start(self.index, "val", threshold=self.encoder.threshold)

    def on_test_epoch_start(self) -> None:
        self.scorer.start(self.index, *TESTED, threshold=self.encoder.threshold)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "validate":
            self.encoder.threshold = self.scorer.calibrate()
        self._finish("val", self.scorer.retrieval_scores())

    def on_test_epoch_end(self) -> None:
        self._finish("test", self.test_scores())

    def test_scores(self) -> Scores:
        """The scores of a test, on all processes; trainers add their own."""
        return self.scorer.test_scores()

    def _finish(self, split: str, scores: Scores) -> None:
        self.scorer.reset()
        self.report(split, scores, in_progress_bar=("rank1", "mAP"))

    # ------------------------------------------------------------------ what it is compared with, what is kept of it

    def baselines(self) -> dict[str, ZooModule]:
        """What a trained encoder is compared with: what it started from, and random weights under "untrained".

        To be called before training, and before a checkpoint is loaded: its start is a copy of the present weights.
        """
        encoders = {self.start: deepcopy(self.encoder)}
        if UNTRAINED not in encoders:
            with self.seeded():
                encoders[UNTRAINED] = type(self.encoder)(**self.encoder.init_args())
        return {name: Evaluation(encoder, protocol=self.protocol) for name, encoder in encoders.items()}

    def peer(self, card: str) -> ZooModule:
        """Another encoder that is tested in the same way.

        Args:
            card: name or folder of its card.

        Raises:
            CardError: there is no such card.
            ValueError: it is of something else than an identity encoder.
        """
        encoder = load(card)
        if not isinstance(encoder, IdentityEncoder):
            raise ValueError(
                f"compare_with: {card} is a {type(encoder).__name__}, not an identity encoder. Name an encoder's card."
            )
        return Evaluation(encoder, protocol=self.protocol)

    def save_component(self, folder: Path, *, name: str, recipe: str, scores: Scores | None = None) -> Card:
        """Save the encoder with its card, as `zoo.load` takes it; in a distributed run on rank zero only.

        Args:
            folder: where to; one that exists is replaced.
            name: of the component, as a card may have it.
            recipe: the command that made it.
            scores: of its test, where there was one.
        """
        return save(
            self.encoder,
            folder,
            name=name,
            overwrite=True,
            category=self.category or "",
            head=self.head_to_keep(),
            training_data=f"{data_names(self.index)}: {self.index.describe()}",
            scores=[card_score(self.index, scores)] if scores else [],
            recipe=recipe,
        )

    def head_to_keep(self) -> dict[str, Tensor] | None:
        """Tensors of a head that is saved beside the encoder, where the data has images to name by it."""
        return None
