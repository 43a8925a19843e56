"""From a decoded image to an encoder's input: the transform that travels with the weights, and augmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Interpolation = v2.InterpolationMode


@dataclass(frozen=True)
class Transform:
    """What an encoder expects of its input. Callable: an RGB image in, a normalised tensor out.

    Args:
        size: height and width in pixels; the whole image is resized to it.
        mean: mean of each RGB channel, of values in [0, 1].
        std: standard deviation of each RGB channel, of values in [0, 1].
        interpolation: nearest, bilinear, bicubic or lanczos.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image -> (3, H, W) float32, an encoder's input."""
        return self.normalise(self.compose()(image))

    def compose(self, augment: "Augment | None" = None) -> Callable[[Image.Image], Tensor]:
        """The torchvision pipeline from an RGB image to (3, H, W) uint8, randomly augmented if asked for.

        Bytes travel from worker processes four times as fast as floats; `normalise` follows, on a whole batch.
        Build it once, call it often.
        """
        if augment is None:
            return v2.Compose([self._resize(), v2.PILToTensor()])
        erasing = [v2.RandomErasing(p=augment.erase, value=_mean_colour(self))] if augment.erase else []
        return v2.Compose([*augment.steps(self), v2.PILToTensor(), *erasing])

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> the same shape in float32, an encoder's input."""
        mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] * 255 for v in (self.mean, self.std))
        return images.to(torch.float32, copy=True).sub_(mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) encoder input -> the same shape with RGB in [0, 1], to look at."""
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return (images * std + mean).clamp(0, 1)

    def _resize(self) -> v2.Transform:
        return v2.Resize(list(self.size), Interpolation(self.interpolation), antialias=True)


@dataclass(frozen=True)
class Augment:
    """Random changes of a training image that leave its identity alone.

    Args:
        flip: probability of a horizontal flip.
        crop: smallest share of the image's area that a random crop keeps; 1 turns cropping off.
        pad: pixels added on every side before a crop of the input's size is taken, as person ReID does.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        erase: probability of erasing a random rectangle. Helps within a domain, hurts across domains.
    """

    flip: float = 0.5
    crop: float = 0.6
    pad: int = 0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.0
    erase: float = 0.0

    def steps(self, transform: Transform) -> list[Any]:
        """The steps that run on the decoded image, ending at the encoder's input size."""
        resize = _RandomCrop(transform, self.crop) if self.crop < 1 else transform._resize()
        colour = (
            [v2.ColorJitter(self.brightness, self.contrast, self.saturation)]
            if self.brightness or self.contrast or self.saturation
            else []
        )
        padding = v2.Pad(self.pad, fill=_mean_colour(transform))
        shift = [padding, v2.RandomCrop(list(transform.size))] if self.pad else []
        return [resize, v2.RandomHorizontalFlip(self.flip), *shift, *colour]


class _RandomCrop:
    """A part of the image, resized. Its shape is nearly that of the image: a tall person stays tall.

    torchvision's RandomResizedCrop draws shapes near a square instead, whatever the image's is.
    """

    def __init__(self, transform: Transform, least: float) -> None:
        self.size, self.least = list(transform.size), least
        self.interpolation = Interpolation(transform.interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        share, stretch, right, down = torch.rand(4).tolist()
        share = self.least + (1 - self.least) * share
        stretch = 0.85 ** (1 - 2 * stretch)
        width = max(1, round(image.width * min(1.0, (share * stretch) ** 0.5)))
        height = max(1, round(image.height * min(1.0, (share / stretch) ** 0.5)))
        left, top = round(right * (image.width - width)), round(down * (image.height - height))
        return v2.functional.resized_crop(image, top, left, height, width, self.size, self.interpolation)


def _mean_colour(transform: Transform) -> list[int]:
    """What is zero once normalised."""
    return [round(255 * channel) for channel in transform.mean]
