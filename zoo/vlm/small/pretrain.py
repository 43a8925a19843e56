"""PretrainStage: a small vision-language model is trained from scratch, on captions and on easy galleries."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from zoo.cards import Card
from zoo.distributed import mean_over_ranks
from zoo.module import Optim, ZooModule
from zoo.scores import Scores
from zoo.vlm.answer_stage import AnswerStage, TaskSource
from zoo.vlm.batch import IGNORED, VLMBatch
from zoo.vlm.component import save_vlm
from zoo.vlm.data import TaskData
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.small.easy_gallery import EasyGallery, EasyGalleryTask
from zoo.vlm.small.guidance import attention_loss, guide, naming_loss, number_tokens
from zoo.vlm.small.model import small_processor, small_tokenizer, small_vlm
from zoo.vlm.stage import card_scores
from zoo.vlm.tasks.captions import CaptionTask
from zoo.vlm.tasks.match import Worlds
from zoo.world import Scenes


class TextSource(TaskSource, Protocol):
    """What a stage that makes its own tokenizer asks of its data."""

    def texts(self) -> Iterator[str]:
        """What the model is going to read and write."""


class PretrainStage(AnswerStage):
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
        cache: keep the features of a frozen tower on disk, see `VLMStage`.
        guidance: weight of the guided attention, see `zoo.vlm.small.guidance`, at the start; it fades until half of the
            training is over. 0 for none.
        optim: optimiser and schedule.
    """

    component_folder = "vlm"

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
        super().__init__(vlm=vlm, cache=cache, optim=optim)
        self.frozen_tower = frozen_tower
        self.widths = {"width": width, "layers": layers, "vision_width": vision_width, "vision_layers": vision_layers}
        self.patch, self.size, self.vocabulary, self.guidance = patch, size, vocabulary, guidance

    def load_base(self) -> tuple[PreTrainedModel, Any]:
        """Load the model, or make one and its tokenizer."""
        network, self.processor = self._new() if self.vlm_name is None else super().load_base()
        if self.guidance:
            network.set_attn_implementation("eager")  # the others do not give their attention
            self.numbers = number_tokens(self.processor.tokenizer)
        return network, self.processor

    def _new(self) -> tuple[PreTrainedModel, Any]:
        if self._source is None:
            raise RuntimeError("A new model needs texts for its tokenizer. Run the stage with its data, or name a vlm.")
        tokenizer = small_tokenizer(cast(TextSource, self._source).texts(), self.vocabulary)
        with self.seeded():
            network = small_vlm(tokenizer, **self.widths, patch=self.patch)
        return network, small_processor(tokenizer, self.size, self.patch)

    def baselines(self) -> dict[str, ZooModule]:
        """None: the model that it goes on from, if there is one, was tested when it was made."""
        return {}

    def frozen_parts(self) -> tuple[str, ...]:
        return (f"fused.vlm.{self.fused.family.tower}",) if self.frozen_tower else ()

    def save_component(self, folder: Path, *, name: str, recipe: str, scores: Scores | None = None) -> Card:
        """Write the whole model, its projector in its place, as `zoo.load` and transformers read it."""
        family, network = self.fused.family, cast(PreTrainedModel, self.fused.vlm)
        family.put_projector(network, self.fused.projector)
        try:
            return save_vlm(
                network,
                self.processor,
                folder,
                name=name,
                overwrite=True,
                training_data=self._trained_on,
                scores=card_scores(self._trained_on, scores or {}),
                recipe=recipe,
            )
        finally:
            family.take_projector(network)

    def training_step(self, batch: VLMBatch, batch_idx: int) -> Tensor:
        features, weight = self.run_towers(batch), self._guidance_now()
        hidden, guided = self._guided(batch, features, weight) if weight else self._read(batch, features)
        logits, labels = self.fused.logits_of_answers(batch, hidden)
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        # A caption counts by the mean of its tokens, a gallery by the mean of its answers, each the sum of its tokens:
        # only the number in an answer is hard to tell.
        rows = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
        lengths = torch.bincount(rows, minlength=len(batch.labels))
        for row, item in enumerate(batch.items):
            if isinstance(item, EasyGallery):
                lengths[row] = len(item.answers)
        answered = mean_over_ranks(each.new_zeros(len(batch.labels)).index_add(0, rows, each / lengths[rows]))
        self.check_finite(answered, batch)
        self.log("train/loss", answered, prog_bar=True, batch_size=len(batch.labels))
        return answered + guided + self.nothing()

    def _read(self, batch: VLMBatch, features: TowerFeatures) -> tuple[Tensor, Tensor]:
        """(B, L, H) last hidden states, and no loss of guidance."""
        images = self.fused.image_features(batch, features)
        return self.fused.hidden(batch, images), images.new_zeros(())

    def _guided(self, batch: VLMBatch, features: TowerFeatures, weight: float) -> tuple[Tensor, Tensor]:
        """(B, L, H) last hidden states, and the weighted loss of guidance."""
        hidden, states, attentions = self.fused.layers(batch, self.fused.image_features(batch, features))
        wanted = guide(batch, self.fused.family.placeholder(self.processor), self.numbers)
        attending = attention_loss(attentions, wanted.attends)
        naming = naming_loss(states, wanted.names, cast(PreTrainedModel, self.fused.vlm).get_output_embeddings())
        self.log_dict({"train/attention": attending, "train/naming": naming}, batch_size=len(batch.labels))
        return hidden, weight * (attending + naming)

    def _guidance_now(self) -> float:
        progress = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        return self.guidance * max(0.0, 1 - 2 * progress)


class PretrainData(TaskData):
    """Captions and easy galleries of the procedural world.

    Args:
        world: category -> world of the portraits and galleries; "default" for that of every category.
        scenes: scenes with several instances and their captions; null for none.
        caption_share: share of a training batch that is captions, of scenes and of portraits alike; the rest is
            galleries.
        queries: of each training gallery.
        same: share of the training queries that are the right image itself.
        strange: share of the training galleries whose images are of any category.
        encoder: card of the encoder that the galleries are mined with.
        k: images in a gallery; or (fewest, most).
        tau: similarities to the query that distractors exceed; -1 takes anyone.
        eval_conversations: most galleries of each category and level to validate on.
        per_query: training galleries of each query.
        evaluate: names of the tasks to evaluate, `match` and `captions`.
        batch_size: examples in a global training batch.
        eval_batch_size: examples in a batch of evaluation, on each process.
        steps_per_epoch: batches in an epoch; null for as many as the galleries fill.
        workers: processes that decode, on each process.
        seed: of galleries and of all order.
    """

    def __init__(
        self,
        world: Worlds,
        scenes: Scenes | None = None,
        caption_share: float = 0.5,
        queries: int = 1,
        same: float = 0.0,
        strange: float = 0.0,
        encoder: str = "general_mobilenetv3s050.world",
        k: int | tuple[int, int] = (2, 5),
        tau: tuple[float, ...] = (-1.0,),
        eval_conversations: int = 100,
        per_query: int = 2,
        evaluate: tuple[str, ...] = ("match",),
        batch_size: int = 64,
        eval_batch_size: int = 64,
        steps_per_epoch: int | None = None,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        if not 0 <= caption_share <= 1:
            raise ValueError(
                f"data.caption_share is {caption_share}. Give the share of captions in a batch, from 0 to 1."
            )
        galleries = EasyGalleryTask(
            queries,
            same,
            strange,
            seed,
            world=world,
            encoder=encoder,
            k=k,
            tau=list(tau),
            eval_conversations=eval_conversations,
            per_query=per_query,
        )
        captions = CaptionTask(scenes, galleries.world, seed)
        super().__init__(
            [captions, galleries],
            weights={captions.name: caption_share, galleries.name: 1 - caption_share},
            evaluate=list(evaluate),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            workers=workers,
            seed=seed,
        )

    def texts(self) -> Iterator[str]:
        """What the model is going to read and write: a tokenizer is made from it."""
        for task in self.tasks:
            yield from task.texts()
