"""VLMProcessor: from conversations with images to what a vision-language model and its experts take."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from zoo.categories import Box, find_category
from zoo.data.images import to_rgb
from zoo.transforms import Transform
from zoo.vlm.batch import IGNORED, Example, ExpertCrops, Instance, VLMBatch, crop_key
from zoo.vlm.chat import assistant_spans, fill, parts_of, render
from zoo.vlm.families import Family

#: longer side over shorter side; transformers refuses more for the Qwen families
_MOST_RATIO = 200


class UnfitImage(ValueError):
    """An image that the model or an expert cannot take; the message gives its name, the reason and the remedy."""


class Detection(NamedTuple):
    """A detector's result: a label, x, y, w, h in pixels, and a confidence in [0, 1]."""

    label: str
    box: Box
    score: float


Detector = Callable[[Image.Image], Sequence[Detection]]


@dataclass(frozen=True)
class _Tokens:
    """Token ids, and whether each is to be learned."""

    ids: list[int]
    learned: list[bool]

    def __add__(self, more: "_Tokens") -> "_Tokens":
        return _Tokens(self.ids + more.ids, self.learned + more.learned)


class VLMProcessor:
    """Makes batches of a family's models. It can be pickled, for worker processes.

    Prompts follow the model's own chat template; its end-of-turn token is its tokenizer's `eos_token`. An answer is
    tokenised by itself, with the end of turn, and follows the prompt's tokens. The assistant's texts before it are part
    of the prompt and learned, too, with the end of turn where the template writes it behind (LLaVA's does not).

    The VLM takes whole images. An expert takes a crop of each instance of its category: the supplied box; without one,
    the largest fitting detection (of several such instances in an image, the next largest, and so on), or nothing where
    there is none; without a detector, the whole image. Boxes get their category's margin.

    Args:
        processor: of Hugging Face, as `load_vlm` gives it.
        family: of the model.
        config: of the model.
        min_tokens: fewest tokens of an image in the language model; None for the processor's own setting. Smaller
            images are enlarged where the family can.
        max_tokens: most tokens of an image; larger images are reduced where the family can.
        experts: category -> transform of its expert.
        detector: RGB image -> detections.
        least_score: detections below are ignored.

    Raises:
        ValueError: an impossible budget, or an unknown category.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        config: Any,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        experts: Mapping[str, Transform] | None = None,
        detector: Detector | None = None,
        least_score: float = 0.5,
    ) -> None:
        self.budget = (1 if min_tokens is None else min_tokens, float("inf") if max_tokens is None else max_tokens)
        if not 1 <= self.budget[0] <= self.budget[1]:
            raise ValueError(
                f"min_tokens {min_tokens} and max_tokens {max_tokens} leave no room for an image. "
                "Give 1 <= min_tokens <= max_tokens."
            )
        self.processor, self.family, self.config = processor, family, config
        self.detector, self.least_score = detector, least_score
        self.options = family.image_options(processor, min_tokens, max_tokens)
        self.crops = {name: find_category(name).crop for name in experts or {}}
        self.sizes = {name: transform.size for name, transform in (experts or {}).items()}
        self.pipelines = {name: transform.compose() for name, transform in (experts or {}).items()}

    def __call__(
        self,
        examples: Sequence[Example],
        *,
        with_pixels: bool = True,
        for_generation: bool = False,
        skipped: Iterable[str] = (),
    ) -> VLMBatch:
        """A batch: padded on the right with answers, or on the left without them, for generation.

        Args:
            examples: one or more.
            with_pixels: False where the features are cached, those of the experts too: only their numbers are worked
                out, from the image sizes. Of each image, only `size` and `mode` are then looked at.
            for_generation: prompts only.
            skipped: "path: reason" of examples that were left out before.

        Raises:
            UnfitImage: an image that breaks the budget, is hardly more than a line, or has a box outside of it.
            ValueError: no example, or one whose parts do not fit each other.
        """
        if not examples:
            raise ValueError("There is no example to make a batch of. Give one or more.")
        if not with_pixels and self.family.deepstack:
            raise ValueError(
                f"{self.family.name} has DeepStack features that no cache keeps. Use it without a feature cache."
            )
        pictures = [_pictures(example) for example in examples]
        images = [image for several in pictures for image in several]
        names = [name for example in examples for name in example.image_names or example.keys]
        vision, counts = self._measure(names, images)
        tokens = self._prompts(examples, [len(several) for several in pictures], counts, learn=not for_generation)
        if not for_generation:
            tokens = [prompt + self._answer(example) for prompt, example in zip(tokens, examples, strict=True)]
        if with_pixels and images:
            vision = self._pixels(images, vision)
        ids, mask, labels = self._pad(tokens, left=for_generation)
        types = {"mm_token_type_ids": (ids == self.family.placeholder(self.processor)).long()}
        return VLMBatch(
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            vision=vision,
            text=types if self.family.token_types else {},
            image_tokens=torch.tensor(counts, dtype=torch.int64),
            experts=self._experts(examples, images, names, with_pixels),
            keys=tuple(key for example in examples for key in example.keys),
            items=tuple(example.item for example in examples),
            names=tuple(example.name or repr(example.item) for example in examples),
            image_names=tuple(names),
            skipped=tuple(skipped),
        )

    def unfit(self, example: Example) -> str | None:
        """Why an example's images cannot be taken, for those who would rather leave it out; None where they can."""
        images, names = _pictures(example), example.image_names or example.keys
        try:
            self._measure(names, images)
            for image, name, instances in zip(images, names, example.instances, strict=False):
                for category, box in instances:
                    if category in self.crops and box is not None:
                        self._inside(self._with_margin(category, image.size, box), image.size, name, box)
        except UnfitImage as error:
            return str(error)
        return None

    # ------------------------------------------------------------------ images

    def _measure(self, names: Sequence[str], images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], list[int]]:
        """The vision fields that need no pixels, and the tokens of each image."""
        if not images:
            return {}, []
        sizes = [image.size for image in images]
        for name, (width, height) in zip(names, sizes, strict=True):
            if max(width, height) > _MOST_RATIO * min(width, height):
                raise UnfitImage(
                    f"{name}: {width} x {height} pixels are hardly more than a line. Its longer side may be at most "
                    f"{_MOST_RATIO} times the shorter one: crop it or leave it out."
                )
        vision = self.family.grid(self.processor, self.options, [(height, width) for width, height in sizes])
        counts = self.family.tokens(self.processor, self.config, vision, len(images))
        for name, (width, height), count in zip(names, sizes, counts, strict=True):
            if not self.budget[0] <= count <= self.budget[1]:
                raise UnfitImage(
                    f"{name}: {width} x {height} pixels take {count} tokens, outside the budget of {self.budget[0]} to "
                    f"{self.budget[1]}. Widen min_tokens and max_tokens, crop the image, or leave it out."
                )
        return vision, counts

    def _pixels(self, images: Sequence[Image.Image], measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = self.processor.image_processor(images=list(images), return_tensors="pt", **self.options)
        for name, value in measured.items():
            if not torch.equal(made[name], value):
                raise ValueError(
                    f"The image processor of this {self.family.name} gives {name} {made[name].tolist()} where "
                    f"{value.tolist()} was expected of the image sizes. Mend its entry in zoo/vlm/families.py."
                )
        return {"pixel_values": made["pixel_values"], **measured}

    def _experts(
        self, examples: Sequence[Example], images: Sequence[Image.Image], names: Sequence[str], with_pixels: bool
    ) -> dict[str, ExpertCrops]:
        """The crops of every expert; without pixels, of every instance that may have one."""
        keys = [key for example in examples for key in example.keys]
        instances = [own for example in examples for own in example.instances or ((),) * len(example.keys)]
        pixels: dict[str, list[Tensor]] = {category: [] for category in self.pipelines}
        rows: dict[str, list[int]] = {category: [] for category in self.pipelines}
        present: dict[str, list[str]] = {category: [] for category in self.pipelines}
        absent: dict[str, list[str]] = {category: [] for category in self.pipelines}
        for row, own in enumerate(instances):
            wanted = list(_placed(instance for instance in own if instance.category in self.pipelines))
            unplaced = with_pixels and any(instance.box is None for instance, _ in wanted)
            detections = self._detections(images[row]) if unplaced else None
            for (category, box), place in wanted:
                key = crop_key(keys[row], box, place)
                if with_pixels:
                    part = self._box_for_expert(category, images[row].size, box, place, detections)
                    if part is None:
                        absent[category].append(key)
                        continue
                    cut = images[row].crop(self._inside(part, images[row].size, names[row], box))
                    pixels[category].append(self.pipelines[category](cut))
                rows[category].append(row)
                present[category].append(key)
        return {
            category: ExpertCrops(
                torch.stack(pixels[category])
                if pixels[category]
                else torch.zeros(0, 3, *self.sizes[category], dtype=torch.uint8),
                torch.tensor(rows[category], dtype=torch.int64),
                tuple(present[category]),
                tuple(absent[category]),
            )
            for category in self.pipelines
        }

    def crop_keys(self, key: str, instances: Sequence[Instance]) -> list[tuple[str, str]]:
        """Category and key of the crop of each instance that an expert is there for.

        Args:
            key: of the image.
            instances: in it.
        """
        wanted = _placed(instance for instance in instances if instance.category in self.pipelines)
        return [(instance.category, crop_key(key, instance.box, place)) for instance, place in wanted]

    def _detections(self, image: Image.Image) -> list[tuple[str, Box]] | None:
        """Label and box of the detections that are sure enough; None without a detector."""
        if self.detector is None:
            return None
        return [(label, box) for label, box, score in self.detector(image) if score >= self.least_score]

    def _box_for_expert(
        self,
        category: str,
        size: tuple[int, int],
        box: Box | None,
        place: int,
        detections: Sequence[tuple[str, Box]] | None,
    ) -> Box | None:
        """x, y, w, h in pixels of what an expert sees of an image of this width and height; None for nothing.

        Args:
            category: of the expert.
            size: width and height of the image.
            box: the supplied one, if there is one.
            place: without a box, which of the category's detections is taken, 0 for the largest.
            detections: in the image; None without a detector.
        """
        if box is not None:
            return self._with_margin(category, size, box)
        if detections is None:
            return 0.0, 0.0, float(size[0]), float(size[1])
        labels = self.crops[category].labels
        fitting = [found for label, found in detections if not labels or label in labels]
        fitting.sort(key=lambda found: found[2] * found[3], reverse=True)
        return self._with_margin(category, size, fitting[place]) if place < len(fitting) else None

    def _with_margin(self, category: str, size: tuple[int, int], box: Box) -> Box:
        """A box with its category's margin, cut at the image's border."""
        return replace(self.crops[category], labels=()).box([("", box)], *size)

    @staticmethod
    def _inside(part: Box, size: tuple[int, int], name: str, box: Box | None) -> tuple[int, int, int, int]:
        """x, y, w, h -> left, top, right, bottom in whole pixels.

        Raises:
            UnfitImage: nothing of the image lies in it.
        """
        x, y, w, h = part
        if all(map(math.isfinite, box or part)):
            left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
            if 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]:
                return left, top, right, bottom
        raise UnfitImage(
            f"{name}: the box {box or part} holds nothing of {size[0]} x {size[1]} pixels. "
            "Give x, y, w, h in pixels inside the image, or none."
        )

    # ------------------------------------------------------------------ tokens

    def _prompts(
        self, examples: Sequence[Example], images: Sequence[int], counts: Sequence[int], learn: bool
    ) -> list[_Tokens]:
        """The prompt of each example, each placeholder repeated for every token of its image."""
        token, tokenizer = self.processor.image_token, self.processor.tokenizer
        before, after = self.family.wrap(self.processor)
        texts, learned, start = [], [], 0
        for example, number in zip(examples, images, strict=True):
            text = render(self.processor, example.messages)
            spans = assistant_spans(self.processor, example.messages, text, repr(example.item)) if learn else []
            if text.count(token) != number:
                raise ValueError(
                    f"The prompt of {example.item!r} has {text.count(token)} placeholders {token!r} for {number} "
                    "images. Keep the placeholder out of the text, and check the chat template."
                )
            inserts = [before + token * count + after for count in counts[start : start + number]]
            text, spans = fill(text, token, inserts, spans)
            texts.append(text)
            learned.append(spans)
            start += number
        encoded = tokenizer(texts, return_offsets_mapping=any(learned))
        nowhere = [[(0, 0)] * len(ids) for ids in encoded["input_ids"]]
        prompts = [
            _Tokens(ids, [any(start < end and stop > begin for begin, end in spans) for start, stop in places])
            for ids, places, spans in zip(
                encoded["input_ids"], encoded.get("offset_mapping", nowhere), learned, strict=True
            )
        ]
        each = iter(counts)
        for example, number, prompt in zip(examples, images, prompts, strict=True):
            found, expected = prompt.ids.count(self.family.placeholder(self.processor)), sum(islice(each, number))
            if found != expected:
                raise ValueError(
                    f"The prompt of {example.item!r} has {found} placeholder tokens for {expected} image features. "
                    "The tokenizer must not truncate, and must know the placeholder as one token."
                )
        return prompts

    def _answer(self, example: Example) -> _Tokens:
        tokenizer = self.processor.tokenizer
        ids = tokenizer(example.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        if self.family.placeholder(self.processor) in ids:
            raise ValueError(
                f"The answer of {example.item!r} holds {self.processor.image_token!r}, which stands for an image. "
                "Take it out of the text."
            )
        return _Tokens(ids, [True] * len(ids))

    def _pad(self, examples: Sequence[_Tokens], left: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) ids, attention mask and labels."""
        tokenizer = self.processor.tokenizer
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        length = max(len(tokens.ids) for tokens in examples)
        shape = (len(examples), length)
        ids, mask, labels = torch.full(shape, filler), torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
        for row, tokens in enumerate(examples):
            begin = length - len(tokens.ids) if left else 0
            part = slice(begin, begin + len(tokens.ids))
            ids[row, part] = torch.tensor(tokens.ids, dtype=torch.int64)
            mask[row, part] = 1
            learned = torch.tensor(tokens.learned, dtype=torch.bool)
            labels[row, part][learned] = ids[row, part][learned]
        return ids, mask, labels


def _pictures(example: Example) -> list[Image.Image]:
    """The images of an example in reading order, in RGB."""
    found = [p["image"] for message in example.messages for p in parts_of(message) if p["type"] == "image"]
    for name in ("keys", "instances", "image_names"):
        given = getattr(example, name)
        if len(given) != len(found) and (given or name == "keys"):
            raise ValueError(
                f"The example {example.item!r} has {len(found)} images and {len(given)} {name}. Give one for each."
            )
    return [to_rgb(image) for image in found]


def _placed(instances: Iterable[Instance]) -> Iterator[tuple[Instance, int]]:
    """Each instance, and how many of its category without a box come before it in the image."""
    seen: Counter[str] = Counter()
    for instance in instances:
        yield instance, seen[instance.category]
        seen[instance.category] += instance.box is None
