"""Stage 1 of IIR-VLM: the model learns which image of a gallery shows the instance of a query."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from zoo.vlm.answer_stage import AnswerStage
from zoo.vlm.batch import Example, Instance
from zoo.vlm.data import TaskData
from zoo.vlm.tasks.match import GallerySource, MatchTask, Worlds
from zoo.vlm.tasks.prompts import gallery_question, options


class MatchStage(AnswerStage):
    """Stage 1 (IIR-VLM, sec. 3.3): in-context matching, answered as `[Pet 3]`.

    The language model, the vision tower and the experts are frozen; the projector and an adapter for each expert
    train, on the answer's tokens only. Options as of `AnswerStage`.
    """

    control_name = "without_experts"

    @property
    def label(self) -> str:
        return f"stage 1 {'without' if self.make_adapter is None else 'with'} experts"

    @property
    def control(self) -> dict[str, Any]:
        """The same training without experts, from the base model."""
        bare = {"fusion": None, "experts": {}, "init_from": None, "vlm": self.vlm_name}
        return {} if self.make_adapter is None else bare

    def match(self, gallery: Sequence[Image.Image], query: Image.Image, category: str) -> list[float]:
        """How probable it is that each gallery image shows the instance of the query; they sum to 1.

        Args:
            gallery: two images or more, RGB.
            query: RGB.
            category: an entry of `zoo.categories`.
        """
        images = [*gallery, query]
        example = Example(
            gallery_question(gallery, query, category),
            "",
            "match",
            tuple(f"image {number}" for number in range(1, len(images) + 1)),
            ((Instance(category),),) * len(images),
        )
        batch = self.batcher([example], for_generation=True).to(self.device)
        scores = self.option_scores(batch, self.fused.run_towers(batch), [options(category, len(gallery))])
        return scores[0].softmax(dim=0).tolist()


class MatchData(TaskData):
    """In-context galleries for stage 1, mined from procedural worlds or mined before, see `MatchTask`.

    Args:
        galleries: manifests of conversations that are there already.
        world: category -> procedural world whose identities fill its galleries; "default" for the world of every
            category in `zoo.categories`.
        encoder: card of the general encoder that measures how alike images look; manifests mined with another one are
            refused.
        k: images in a gallery of the world; or (fewest, most).
        tau: similarities to the query that distractors exceed, a level of difficulty each.
        tau_quantile: the same as shares of the pairs of two identities, see `GalleryRule`.
        no_match: share of the world's galleries that do not hold the query, in training and in tests.
        per_query: training conversations of each query and level.
        eval_conversations: most conversations of each category and level to validate on, and to test on.
        batch_size: conversations in a global training batch.
        eval_batch_size: conversations in a batch of evaluation, on each process.
        steps_per_epoch: batches in an epoch; null for as many as the conversations fill.
        workers: processes that decode, on each process.
        max_unreadable: largest share of conversations to skip for unreadable images before giving up.
        seed: of galleries and of their order.
    """

    def __init__(
        self,
        galleries: list[GallerySource] | None = None,
        world: Worlds | None = None,
        encoder: str = "general_mobilenetv3s050.world",
        k: int | tuple[int, int] = 5,
        tau: list[float] | None = None,
        tau_quantile: list[float] | None = None,
        no_match: float = 0.0,
        per_query: int = 1,
        eval_conversations: int = 200,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        steps_per_epoch: int | None = None,
        workers: int = 1,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        task = MatchTask(galleries, world, encoder, k, tau, tau_quantile, no_match, per_query, eval_conversations, seed)
        super().__init__(
            [task],
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            workers=workers,
            max_unreadable=max_unreadable,
            seed=seed,
        )
