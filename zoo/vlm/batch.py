"""Conversations with images, and batches of them as a vision-language model and its experts take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from zoo.categories import Box

#: labels of tokens that are not learned, as torch's cross entropy has it
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One conversation to learn from or to be answered.

    Args:
        messages: chat messages, `{"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "image":
            PIL image}, ...]}`; content that is a plain text is one such entry. What an assistant says in them is
            learned, too.
        answer: what the model shall say at the end.
        source: what the example was made from; it travels with the batch.
        keys: what the feature cache knows each image by, in reading order.
        categories: expert category of each image, None for none; () where no image has one.
        boxes: x, y, w, h in pixels of what the expert shall see of each image, None where unknown; () for no box.
        names: what errors call each image, such as its path; () for its key.
    """

    messages: Sequence[Mapping[str, Any]]
    answer: str
    source: Any
    keys: tuple[str, ...]
    categories: tuple[str | None, ...] = ()
    boxes: tuple[Box | None, ...] = ()
    names: tuple[str, ...] = ()


@dataclass
class ExpertImages:
    """J images for the expert of one category.

    Args:
        pixels: (J, 3, H, W) uint8, of the expert's input size; its transform normalises them on the device. None of
            them, (0, 3, H, W), in a batch without pixels.
        image: (J,) int64, which image of the batch each was cut from.
        keys: (J,) what a cache of the expert's features knows each crop by, see `crop_key`.
    """

    pixels: Tensor
    image: Tensor
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ExpertImages":
        """The same on another device."""
        return ExpertImages(
            self.pixels.to(device, non_blocking=non_blocking),
            self.image.to(device, non_blocking=non_blocking),
            self.keys,
        )


def crop_key(key: str, box: Box | None) -> str:
    """What a crop is known by: the key of its image, and the supplied box in pixels, if there is one."""
    return key if box is None else f"{key}[{', '.join(f'{float(side):.3f}' for side in box)}]"


@dataclass
class VLMBatch:
    """B conversations of at most L tokens, with I images packed in reading order over the whole batch.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L), 0 where padded.
        labels: (B, L), -100 outside the answers.
        vision: the image fields of the processor: `pixel_values`, `image_grid_thw`; without pixels when cached.
        text: further fields of each token, such as `mm_token_type_ids` (B, L).
        image_tokens: (I,) int64, tokens of each image in the language model.
        experts: images for each expert, by category; J = 0 where none of this batch is of its category.
        keys: (I,) what the feature cache knows each image by.
        examples: (B,) what the batch was made from.
        skipped: "path: reason" of every example left out.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    vision: dict[str, Tensor]
    text: dict[str, Tensor]
    image_tokens: Tensor
    experts: dict[str, ExpertImages]
    keys: tuple[str, ...]
    examples: tuple[Any, ...]
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "VLMBatch":
        """The same on another device."""
        return VLMBatch(**{field.name: _to(getattr(self, field.name), device, non_blocking) for field in fields(self)})

    def drop_pixels(self) -> None:
        """Free the images once they have been seen: the language model's memory comes on top of them otherwise."""
        self.vision.pop("pixel_values", None)
        for images in self.experts.values():
            images.pixels = images.pixels[:0].clone()


def _to(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, dict):
        return {name: _to(part, device, non_blocking) for name, part in value.items()}
    return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor | ExpertImages) else value
