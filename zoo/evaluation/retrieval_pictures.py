"""RetrievalPictures: draws what a model retrieves while it trains and when it is tested."""

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zoo.data.index import IdentityIndex
from zoo.evaluation.plots import error_plot, histogram_plot
from zoo.evaluation.retrieval_sheet import image_of, retrieval_sheet, surest_mistakes
from zoo.evaluation.scorer import RetrievalScorer
from zoo.metrics import EmbeddingSet, error_curve, nearest, similarity_histogram
from zoo.training.pictures import Occasion, RunPictures


class RetrievalPictures(RunPictures):
    """Draws before training, every few epochs and at the end, into TensorBoard and the run's `pictures` folder.

    Of any root with a `scorer`, a `RetrievalScorer`: a sheet of queries with their neighbours, one of the surest
    mistakes, a histogram of similarities, error rates over thresholds where one is calibrated, and after the last
    epoch TensorBoard's projector.

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
        scorer = getattr(module, "scorer", None)
        if not isinstance(scorer, RetrievalScorer):
            return
        query, gallery = scorer.sides()  # of all ranks; one draws
        if not trainer.is_global_zero:
            return
        title, index = occasion.titled("identities"), scorer.index
        threshold = None if scorer.threshold is None else scorer.threshold.value
        scores, positions = nearest(query, gallery, min(self.neighbours, len(gallery)))
        right = gallery.identities[positions[:, 0].clamp(min=0)] == query.identities
        mistakes = surest_mistakes(query, right, scores[:, 0], self.queries)
        spread = torch.linspace(0, len(query) - 1, min(self.queries, len(query))).long()
        pictures = {
            "retrieval": retrieval_sheet(index, query, gallery, spread, scores, positions, title),
            "mistakes": retrieval_sheet(
                index, query, gallery, mistakes, scores, positions, f"{title}: surest mistakes"
            ),
            "similarity": histogram_plot(similarity_histogram(query, gallery, bins=100), title, threshold),
        }
        if threshold is not None:
            pictures["errors"] = error_plot(error_curve(query, gallery), title, threshold)
        self.keep(trainer, pictures, occasion)
        if occasion.last:
            self._project(trainer, index, query)

    def _project(self, trainer: Trainer, index: IdentityIndex, items: EmbeddingSet) -> None:
        chosen = torch.linspace(0, len(items) - 1, min(self.projected, len(items))).long()
        thumbnails = [image_of(index, row).resize((32, 32)) for row in items.indices[chosen].tolist()]
        images = torch.from_numpy(np.stack([np.asarray(t) for t in thumbnails])).permute(0, 3, 1, 2) / 255
        names = [index.names[i] for i in items.identities[chosen].tolist()]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(
                    items.embeddings[chosen].cpu(), names, images, trainer.global_step, "identities"
                )
