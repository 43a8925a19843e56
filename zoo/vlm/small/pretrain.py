"""PretrainStage: a small vision-language model learns to see, to speak and to compare, from scratch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from zoo.cards import Card
from zoo.distributed import mean_over_ranks
from zoo.module import Optim
from zoo.vlm.batch import IGNORED, VLMBatch
from zoo.vlm.component import save_vlm
from zoo.vlm.examples import Matches
from zoo.vlm.fused import FusedVLM
from zoo.vlm.gallery_stage import GalleryStage
from zoo.vlm.loading import load_vlm
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.small.guidance import guide, listening_loss, naming_loss, number_tokens
from zoo.vlm.small.model import small_processor, small_tokenizer, small_vlm


class PretrainStage(GalleryStage):
    """Trains a whole model, or all of it but its vision tower, on the answers of captions and of easy galleries.

    Args:
        vlm: folder of the model to go on from; null for a new one of the sizes below.
        width: of the language model, a multiple of 32.
        layers: of the language model.
        vision_width: of the vision tower, a multiple of 32.
        vision_layers: of the vision tower.
        patch: side of a patch in pixels; 2 x 2 patches become one token.
        size: side of the square in pixels that images are brought to the area of.
        vocabulary: most tokens of the tokenizer, which is made from the data's texts.
        frozen_tower: leave the vision tower as it is.
        cache: keep the features of a frozen tower on disk, see `GalleryStage`.
        guidance: weight of the guided attention, see `zoo.vlm.small.guidance`, at the start; it fades until half of the
            training is over. 0 for none.
        optim: optimiser and schedule.
    """

    def __init__(
        self,
        vlm: str | None = None,
        width: int = 128,
        layers: int = 4,
        vision_width: int = 128,
        vision_layers: int = 4,
        patch: int = 28,
        size: int = 112,
        vocabulary: int = 1024,
        frozen_tower: bool = False,
        cache: bool | str | None = None,
        guidance: float = 0.0,
        optim: Optim = Optim(lr=1e-3, warmup=0.05),  # noqa: B008  (frozen)
    ) -> None:
        if cache and not frozen_tower:
            raise ValueError("cache keeps features of a tower that trains. Set frozen_tower, or cache to null.")
        super().__init__(optim, cache=cache)
        self.save_plain_hyperparameters()
        self.start, self.frozen_tower = vlm, frozen_tower
        self.widths = {"width": width, "layers": layers, "vision_width": vision_width, "vision_layers": vision_layers}
        self.patch, self.size, self.vocabulary, self.guidance = patch, size, vocabulary, guidance

    def configure_model(self) -> None:
        """Load the model, or make one and its tokenizer."""
        if hasattr(self, "fused"):
            return
        network, self.processor = self._new() if self.start is None else load_vlm(self.start)
        if self.guidance:
            network.set_attn_implementation("eager")  # the others do not say what they attend to
            self.numbers = number_tokens(self.processor.tokenizer)
        self.fused = FusedVLM(network)
        self.fused.requires_grad_(True)
        if self.frozen_tower:
            network.get_submodule(self.fused.family.tower).requires_grad_(False)
        self.batcher = VLMProcessor(self.processor, self.fused.family, network.config)

    def _new(self) -> tuple[PreTrainedModel, Any]:
        texts = self.trainer.datamodule.texts()  # type: ignore[attr-defined]
        tokenizer = small_tokenizer(texts, self.vocabulary)
        with self.seeded():
            network = small_vlm(tokenizer, **self.widths, patch=self.patch)
        return network, small_processor(tokenizer, self.size, self.patch)

    def save(self, folder: Path, name: str, recipe: str) -> Card:
        """Write the model, its projector in its place, as `zoo.load` and transformers read it."""
        family, network = self.fused.family, self.fused.vlm
        family.put_projector(network, self.fused.projector)
        try:
            return save_vlm(
                network,
                self.processor,
                folder,
                name=name,
                overwrite=True,
                training_data=self.trainer.datamodule.describe(),  # type: ignore[attr-defined]
                recipe=recipe,
            )
        finally:
            family.take_projector(network)

    def training_step(self, batch: VLMBatch, batch_idx: int) -> Tensor:
        features, weight = self.fused.image_features(batch, self.see(batch)), self._guidance_now()
        if weight:
            hidden, states, attentions = self.fused.inside(batch, features)
            wanted = guide(batch, self.fused.family.placeholder(self.processor), self.numbers)
            listening = listening_loss(attentions, wanted.listens)
            naming = naming_loss(states, wanted.names, self.fused.vlm.get_output_embeddings())
            self.log_dict({"train/listening": listening, "train/naming": naming}, batch_size=len(batch.labels))
            guided = weight * (listening + naming)
        else:
            hidden, guided = self.fused.hidden(batch, features), features.new_zeros(())
        logits, labels = self.fused.logits_of_answers(batch, hidden)
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        # A caption counts by the mean of its tokens, a gallery by the mean of its answers, each the sum of its tokens:
        # of those only the number is hard to tell.
        rows = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
        lengths = torch.bincount(rows, minlength=len(batch.labels))
        for row, example in enumerate(batch.examples):
            if isinstance(example, Matches):
                lengths[row] = len(example.answers)
        answered = mean_over_ranks(each.new_zeros(len(batch.labels)).index_add(0, rows, each / lengths[rows]))
        self.log("train/loss", answered, prog_bar=True, batch_size=len(batch.labels))
        return answered + guided

    def _guidance_now(self) -> float:
        progress = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        return self.guidance * max(0.0, 1 - 2 * progress)
