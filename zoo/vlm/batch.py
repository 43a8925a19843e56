"""Conversations with images, and batches of them as a vision-language model and its experts take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.categories import Box

#: labels of tokens that are not learned, as torch's cross entropy has it
IGNORED = -100


class Instance(NamedTuple):
    """One instance in an image, for the expert of its category.

    Args:
        category: an entry of `zoo.categories`.
        box: x, y, w, h in pixels; None where it is not known. A detector then finds the instance or not; without a
            detector the whole image counts as the instance.
    """

    category: str
    box: Box | None = None


@dataclass(frozen=True)
class Example:
    """One conversation to learn from or to be answered.

    Args:
        messages: chat messages, `{"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "image":
            PIL image}, ...]}`; content that is a plain text is one such entry. The assistant's texts in them are
            learned, too.
        answer: what the model shall write at the end.
        item: what the example was made from; it travels with the batch.
        keys: key of each image in the feature cache, in reading order.
        instances: the instances of each image, any number; () where no image has any.
        image_names: what errors call each image, such as its path; () for its key.
        name: what errors call the example; "" for the item.
    """

    messages: Sequence[Mapping[str, Any]]
    answer: str
    item: Any
    keys: tuple[str, ...]
    instances: tuple[tuple[Instance, ...], ...] = ()
    image_names: tuple[str, ...] = ()
    name: str = ""


@dataclass
class ExpertCrops:
    """J crops for the expert of one category; an image may have any number of them, also none.

    Args:
        pixels: (J, 3, H, W) uint8, of the expert's input size; its transform normalises them on the device. None of
            them, (0, 3, H, W), in a batch without pixels.
        image: (J,) int64, which image of the batch each was cut from.
        keys: (J,) key of each crop in a cache of the expert's features, see `crop_key`.
        absent: keys of instances that a detector did not find: they have no crop.
    """

    pixels: Tensor
    image: Tensor
    keys: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ExpertCrops":
        """The same on another device."""
        return ExpertCrops(
            self.pixels.to(device, non_blocking=non_blocking),
            self.image.to(device, non_blocking=non_blocking),
            self.keys,
            self.absent,
        )


def crop_key(key: str, box: Box | None, place: int = 0) -> str:
    """Key of a crop: that of its image, with the supplied box in pixels if there is one.

    Args:
        key: of the image.
        box: x, y, w, h in pixels.
        place: which detection it is where there is no box, 0 for the largest.
    """
    if box is not None:
        return f"{key}[{', '.join(f'{float(side):.3f}' for side in box)}]"
    return f"{key}#{place}" if place else key


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
        experts: crops for each expert, by category; J = 0 where none of this batch is of its category.
        keys: (I,) key of each image in the feature cache.
        items: (B,) what the batch was made from.
        names: (B,) what errors call each of them.
        image_names: (I,) what errors call each image.
        skipped: "path: reason" of every example left out.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    vision: dict[str, Tensor]
    text: dict[str, Tensor]
    image_tokens: Tensor
    experts: dict[str, ExpertCrops]
    keys: tuple[str, ...]
    items: tuple[Any, ...]
    names: tuple[str, ...] = ()
    image_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @classmethod
    def empty(cls, skipped: Sequence[str]) -> "VLMBatch":
        """A batch of which every example was left out."""
        none = torch.zeros(0, 0, dtype=torch.int64)
        return cls(none, none, none, {}, {}, none.flatten(), {}, (), (), skipped=tuple(skipped))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "VLMBatch":
        """The same on another device."""
        return VLMBatch(**{field.name: _to(getattr(self, field.name), device, non_blocking) for field in fields(self)})

    def drop_pixels(self) -> None:
        """Free the images once the towers have run: the language model's memory comes on top of them otherwise."""
        self.vision.pop("pixel_values", None)
        for crops in self.experts.values():
            crops.pixels = crops.pixels[:0].clone()


def _to(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, dict):
        return {name: _to(part, device, non_blocking) for name, part in value.items()}
    return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor | ExpertCrops) else value
