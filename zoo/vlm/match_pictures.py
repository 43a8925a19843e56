"""Pictures of galleries: which image a model takes for the query's instance, and what its adapters attend to."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from PIL import Image, ImageDraw

from zoo.contracts import FusionAdapter
from zoo.conversations.manifest import Conversation, ImageRef
from zoo.data.images import UnreadableImage, read_image
from zoo.data.samplers import Key
from zoo.drawing import GREEN, GREY, PALE, RED, framed, heat, sheet
from zoo.training.pictures import Occasion, RunPictures
from zoo.vlm.answer_stage import AnswerStage
from zoo.vlm.batch import VLMBatch
from zoo.vlm.data import collate
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.tasks.match import MatchTask, by_expert
from zoo.vlm.tasks.prompts import options
from zoo.vlm.tasks.task import Skipped, TaskDataset

log = logging.getLogger(__name__)

_SIZE, _FRAME = 112, 6  # pixels of an image on a sheet, and of its frame
_EVEN = 1e-3  # attention that varies by less of its mean is the same everywhere


class AttentionMap(NamedTuple):
    """How much the tokens of an image attend to the identity of an expert.

    Args:
        category: of the adapter's expert.
        image: as the vision tower sees it.
        values: (R, C) attention of the token at each place, in multiples of their mean.
        gate: by how much the adapter's update is multiplied; None where it has no gate.
    """

    category: str
    image: Image.Image
    values: np.ndarray
    gate: float | None


class AnsweredGallery(NamedTuple):
    """A model's answer to one conversation.

    Args:
        conversation: whose images lie below `root`.
        root: a folder.
        probabilities: of each option; one more than gallery images where none of them is an option.
        chosen: the likeliest option, from 1, or 0 for none of them.
        by_expert: what the expert alone would choose; None where there is no expert.
        attention: number of an image from 1, 0 for the query -> attention of the adapters in it.
    """

    conversation: Conversation
    root: Path
    probabilities: list[float]
    chosen: int
    by_expert: int | None
    attention: dict[int, list[AttentionMap]]


class MatchPictures(RunPictures):
    """Draws before training, every few epochs and at the end, into TensorBoard and the run's `pictures` folder.

    The conversations are the same every time, spread over each category's. An error while drawing is logged, and
    training goes on.

    Args:
        every_n_epochs: epochs between two drawings; 0 draws nothing.
        conversations: rows of a sheet; more where there are more categories.
    """

    def __init__(self, every_n_epochs: int = 1, conversations: int = 8) -> None:
        super().__init__(every_n_epochs)
        self.conversations = conversations

    def draw(self, trainer: Trainer, module: LightningModule, occasion: Occasion) -> None:
        if not isinstance(module, AnswerStage) or not trainer.is_global_zero:
            return
        title = occasion.titled("galleries")
        try:
            with trainer.precision_plugin.val_step_context():
                answered = list(self._answered(trainer, module, occasion.split))
            pictures = {"galleries": gallery_sheet(answered, title)} if answered else {}
            if any(one.attention for one in answered):
                place = "before" if module.fused.before_projector else "after"
                pictures["attention"] = attention_sheet(answered, f"{title}: attention {place} the projector")
            self.keep(trainer, pictures, occasion)
        except Exception as error:  # whatever it is: pictures are worth less than the run
            log.warning("No pictures of the %s at step %d: %s: %s", title, occasion.step, type(error).__name__, error)

    def _answered(self, trainer: Trainer, module: AnswerStage, split: str) -> Iterator[AnsweredGallery]:
        loaders = (trainer.test_dataloaders if split == "test" else trainer.val_dataloaders) or []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            data = loader.dataset
            if isinstance(data, TaskDataset) and isinstance(data.task, MatchTask):
                for rows in spread(_categories(data.task, data.split), self.conversations):
                    for batch, root in islice(_usable(module, data, rows), 1):
                        yield answer(module, batch.to(module.device), root, data.task)


# ---------------------------------------------------------------------- which conversations


def spread(categories: Sequence[str] | np.ndarray, count: int) -> list[np.ndarray]:
    """Rows to draw one conversation from each: consecutive parts of each category's, as many of each category.

    Args:
        categories: (N,) of each row.
        count: how many parts; at least one of each category comes out, and at most one for each row.
    """
    values = np.asarray(categories)
    names = list(dict.fromkeys(values.tolist()))
    parts: list[np.ndarray] = []
    for place, name in enumerate(names):
        rows = np.flatnonzero(values == name)
        share = len(range(place, max(count, len(names)), len(names)))
        parts += np.array_split(rows, min(share, len(rows)))
    return parts


def _categories(task: MatchTask, split: str) -> np.ndarray:
    columns = [conversations.column("category") for conversations in task.conversations]
    return np.array([columns[collection][number] for collection, number in task.rows(split)])


def _usable(module: AnswerStage, data: TaskDataset, rows: np.ndarray) -> Iterator[tuple[VLMBatch, Path]]:
    """Batches of one conversation each and where their images are, without those whose images cannot be used."""
    task = cast(MatchTask, data.task)
    for row in rows.tolist():
        example = data[Key(0, row)]
        if not isinstance(example, Skipped) and module.batcher.unfit(example) is None:
            batch = collate(module.batcher, [example], with_pixels=module.decodes, for_generation=True)
            yield batch, task.at(data.split, row)[0]


# ---------------------------------------------------------------------- answers and attention


@torch.no_grad()
def answer(module: AnswerStage, batch: VLMBatch, root: Path, task: MatchTask) -> AnsweredGallery:
    """A model's answer to the only conversation of a batch.

    Args:
        module: in eval mode.
        batch: a prompt for generation.
        root: folder of the conversation's images.
        task: that the conversation is of.
    """
    conversation: Conversation = batch.items[0]
    features = module.run_towers(batch)
    k = len(conversation.gallery)
    scores = module.option_scores(batch, features, [options(conversation.category, k, task.no_match)])[0]
    chosen = int(scores.argmax()) + 1
    has_expert = conversation.category in features.experts
    refs = (*conversation.gallery, conversation.query)
    wanted = {len(refs) - 1: conversation.query}
    if conversation.answer:
        wanted[conversation.answer - 1] = conversation.gallery[conversation.answer - 1]
    pictures = {place: _read(root, ref) for place, ref in wanted.items()}
    maps = attention_maps(module, batch, features, pictures)
    return AnsweredGallery(
        conversation,
        root,
        scores.softmax(dim=0).tolist(),
        chosen if chosen <= k else 0,
        by_expert(batch, features)[0] + 1 if has_expert else None,
        dict(sorted(((place + 1) % len(refs), own) for place, own in maps.items())),
    )


@torch.no_grad()
def attention_maps(
    module: AnswerStage, batch: VLMBatch, features: TowerFeatures, pictures: dict[int, Image.Image]
) -> dict[int, list[AttentionMap]]:
    """What adapters attend to in some images of a batch; images without an expert's crop are left out.

    Of several identity vectors in an image, each token counts by the one that it attends to most.

    Args:
        module: whose adapters they are.
        batch: with all images.
        features: of the same batch.
        pictures: number of an image in the batch -> the image.
    """
    fused = module.fused
    counts = features.patches if fused.before_projector else batch.image_tokens
    ends = counts.cumsum(0).tolist()
    grids = batch.vision.get("image_grid_thw")
    group = fused.family.group(fused.vlm.config) if fused.before_projector else 1
    found: dict[int, list[AttentionMap]] = {}
    for category, attention in fused.attention(batch, features).items():
        gate = cast(FusionAdapter, fused.adapters[category]).gate
        for place in set(features.experts[category].image.tolist()) & set(pictures):
            image = pictures[place] if grids is not None else as_seen(module.batcher, pictures[place])
            size = (image.height, image.width) if grids is None else tuple(grids[place, 1:].tolist())
            order = layout(int(counts[place]), group, size)
            if order is not None:
                of_image = attention[ends[place] - int(counts[place]) : ends[place]].amax(dim=1).cpu().numpy()
                values = of_image[order] / max(float(of_image.mean()), np.finfo(np.float32).tiny)
                own = AttentionMap(category, image, values, None if gate is None else float(gate))
                found.setdefault(place, []).append(own)
    return found


def layout(tokens: int, group: int, size: tuple[int, int]) -> np.ndarray | None:
    """Which of an image's tokens lies where.

    Groups lie row by row, and within a group its tokens row by row: so Qwen's mergers have them, windows or not, and
    with groups of one that is InternVL after its pixel shuffle, LLaVA, and whatever comes out of a projector. A single
    token too many is a class token, which comes first and lies nowhere.

    Args:
        tokens: of the image, where the adapter reads them.
        group: how many of them the projector merges, a square number; 1 after it.
        size: height and width of what the vision tower sees, in pixels or patches; only their ratio counts.

    Returns:
        (R, C) int64 numbers of tokens; None where they fill no grid of that shape.
    """
    side, groups = math.isqrt(group), tokens // group
    height, width = size
    rows = max(1, round(math.sqrt(groups * height / width)))
    columns = groups // rows
    first = tokens - rows * columns * group
    if side * side != group or not columns or first not in (0, 1):
        return None
    order = np.arange(rows * columns * group).reshape(rows, columns, side, side)
    return order.transpose(0, 2, 1, 3).reshape(rows * side, columns * side) + first


def as_seen(batcher: VLMProcessor, image: Image.Image) -> Image.Image:
    """An image as it reaches the vision tower of a family whose images are all of one size: stretched or cropped."""
    made = batcher.processor.image_processor(
        images=[image], do_rescale=False, do_normalize=False, return_tensors="pt", **batcher.options
    )
    pixels = made["pixel_values"][0].float().clamp(0, 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------- sheets


def gallery_sheet(answered: Sequence[AnsweredGallery], title: str) -> Image.Image:
    """A row for each conversation: the query, then the gallery, and "none of them" where that is an option."""
    rows, captions, notes = [], [], []
    for one in answered:
        talk = one.conversation
        rows.append([_tile(_read(one.root, talk.query, boxed=True), GREY)])
        captions.append([f"query\n{talk.query.identity}"])
        for number, (ref, share) in enumerate(zip(talk.gallery, one.probabilities, strict=False), start=1):
            rows[-1].append(_option(_read(one.root, ref, boxed=True), number, one))
            captions[-1].append(f"{number}: {share:.0%}\n{ref.identity}")
        if len(one.probabilities) > len(talk.gallery):
            rows[-1].append(_option(_words("none\nof them"), 0, one))
            captions[-1].append(f"none: {one.probabilities[-1]:.0%}")
        alone = "no expert" if one.by_expert is None else f"the expert alone takes {_named(one.by_expert)}"
        taken = f"{_named(talk.answer)} is right, the model takes {_named(one.chosen)}, {alone}"
        notes.append(f"{talk.category}, {talk.level}: {taken}")
    key = "the right one is green, double green if the model takes it; red is what it takes wrongly"
    return sheet(rows, captions, f"{title}: {key}", notes)


def attention_sheet(answered: Sequence[AnsweredGallery], title: str) -> Image.Image:
    """A row for each conversation: the query and the right image of the gallery, each beside its attention."""
    rows, captions, notes = [], [], []
    for one in answered:
        if not one.attention:
            continue
        images, texts = [], []
        for number, found in one.attention.items():
            images.append(_tile(found[0].image, PALE if number else GREY))
            texts.append(f"the right one, {number}" if number else "query")
            for own in found:
                images.append(_tile(_heat(own), PALE))
                texts.append(f"{own.category}: {_range(own.values)}")
        rows.append(images)
        captions.append(texts)
        gates = {own.category: own.gate for found in one.attention.values() for own in found}
        listed = [f"gate of the {name} adapter {gate:.3f}" for name, gate in gates.items() if gate is not None]
        notes.append(", ".join([f"{one.conversation.category}, {one.conversation.level}", *listed]))
    return sheet(rows, captions, f"{title}, in multiples of its mean over the image; bright is most", notes)


def _option(image: Image.Image, number: int, one: AnsweredGallery) -> Image.Image:
    right, chosen = number == one.conversation.answer, number == one.chosen
    return _tile(image, GREEN if right else RED if chosen else PALE, double=right and chosen)


def _tile(image: Image.Image, colour: tuple[int, int, int], double: bool = False) -> Image.Image:
    return framed(image, colour, _SIZE, _FRAME, double)


def _heat(own: AttentionMap) -> Image.Image:
    return heat(own.image, np.ones_like(own.values) if _even(own.values) else own.values, _SIZE)


def _range(values: np.ndarray) -> str:
    return "even" if _even(values) else f"{values.min():.1f} to {values.max():.1f}"


def _even(values: np.ndarray) -> bool:
    return bool(values.max() - values.min() < _EVEN)


def _named(number: int) -> str:
    return str(number) if number else "none"


def _words(text: str) -> Image.Image:
    page = Image.new("RGB", (_SIZE, _SIZE), "white")
    ImageDraw.Draw(page).text((_SIZE / 2, _SIZE / 2), text, GREY, anchor="mm", align="center", font_size=12)
    return page


def _read(root: Path, ref: ImageRef, boxed: bool = False) -> Image.Image:
    """The whole image, as the model gets it, with its box if wished; grey where it cannot be read."""
    try:
        image = read_image(root / ref.path)
    except UnreadableImage:  # readable when its features were kept, gone since
        return Image.new("RGB", (_SIZE, _SIZE), GREY)
    if boxed and ref.box is not None:
        x, y, w, h = ref.box
        width = max(1, round(max(image.size) / _SIZE))
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), outline="white", width=width)
    return image
