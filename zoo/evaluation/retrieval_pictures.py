"""Shows what the encoder finds while it trains: retrieval sheets, mistakes, histogram, error curve, projector."""

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from zoo.data.images import UnreadableImage
from zoo.data.index import IdentityIndex
from zoo.drawing import GREEN, GREY, RED, framed, sheet
from zoo.evaluation.evaluation import Evaluation
from zoo.evaluation.plots import error_plot, histogram_plot
from zoo.metrics import EmbeddingSet, error_curve, nearest, similarity_histogram
from zoo.training.pictures import Occasion, RunPictures


class RetrievalPictures(RunPictures):
    """Draws before training, every few epochs and at the end, into TensorBoard and the run's `pictures` folder.

    Args:
        every_n_epochs: epochs between two drawings; 0 draws nothing.
        queries: rows of a sheet.
        neighbours: gallery images of each query.
        projected: embeddings shown in the projector, after the last epoch.
    """

    def __init__(self, every_n_epochs: int = 5, queries: int = 8, neighbours: int = 5, projected: int = 1000) -> None:
        super().__init__(every_n_epochs)
        self.queries, self.neighbours, self.projected = queries, neighbours, projected

    def draw(self, trainer: Trainer, module: LightningModule, occasion: Occasion) -> None:
        if not isinstance(module, Evaluation):
            return
        with module.retrieval.sync_context():  # every rank takes part, one draws
            if not trainer.is_global_zero:
                return
            query, gallery = module.retrieval.sides()
        title = occasion.titled("identities")
        index: IdentityIndex = trainer.datamodule.index  # type: ignore[attr-defined]
        known = module.encoder.threshold
        threshold = None if known is None else known.value
        scores, found = nearest(query, gallery, min(self.neighbours, len(gallery)))
        hit = gallery.identities[found[:, 0].clamp(min=0)] == query.identities
        mistakes = self._surest_mistakes(query, hit, scores[:, 0])
        spread = torch.linspace(0, len(query) - 1, min(self.queries, len(query))).long()
        pictures = {
            "retrieval": self._sheet(index, query, gallery, spread, scores, found, title),
            "mistakes": self._sheet(index, query, gallery, mistakes, scores, found, f"{title}: surest mistakes"),
            "similarity": histogram_plot(similarity_histogram(query, gallery, bins=100), title, threshold),
        }
        if threshold is not None:
            pictures["errors"] = error_plot(error_curve(query, gallery), title, threshold)
        self.keep(trainer, pictures, occasion)
        if occasion.last:
            self._project(trainer, index, query)

    def _surest_mistakes(self, query: EmbeddingSet, hit: Tensor, score: Tensor) -> Tensor:
        """Queries whose nearest image is of another identity, the most similar first, one of each identity."""
        chosen: dict[int, int] = {}
        for q in score.masked_fill(hit, -torch.inf).argsort(descending=True, stable=True).tolist():
            if not hit[q]:
                chosen.setdefault(int(query.identities[q]), q)
        return torch.tensor(list(chosen.values())[: self.queries], dtype=torch.int64)

    def _sheet(
        self,
        index: IdentityIndex,
        query: EmbeddingSet,
        gallery: EmbeddingSet,
        chosen: Tensor,
        scores: Tensor,
        found: Tensor,
        title: str,
    ) -> Image.Image:
        rows, captions = [], []
        for q in chosen.tolist():
            name = index.names[int(query.identities[q])]
            rows.append([framed(self._image(index, int(query.indices[q])), GREY)])
            captions.append([name])
            for position, score in zip(found[q].tolist(), scores[q].tolist(), strict=True):
                if position < 0:
                    continue
                right = bool(gallery.identities[position] == query.identities[q])
                rows[-1].append(framed(self._image(index, int(gallery.indices[position])), GREEN if right else RED))
                captions[-1].append(f"{score:.2f} {index.names[int(gallery.identities[position])]}")
        return sheet(rows, captions, title)

    def _project(self, trainer: Trainer, index: IdentityIndex, items: EmbeddingSet) -> None:
        chosen = torch.linspace(0, len(items) - 1, min(self.projected, len(items))).long()
        thumbnails = [self._image(index, row).resize((32, 32)) for row in items.indices[chosen].tolist()]
        images = torch.from_numpy(np.stack([np.asarray(t) for t in thumbnails])).permute(0, 3, 1, 2) / 255
        names = [index.names[i] for i in items.identities[chosen].tolist()]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(
                    items.embeddings[chosen].cpu(), names, images, trainer.global_step, "identities"
                )

    @staticmethod
    def _image(index: IdentityIndex, row: int) -> Image.Image:
        try:
            return index.image(row)
        except UnreadableImage:  # readable when it was embedded, gone since
            return Image.new("RGB", (112, 112), GREY)
