"""The images of examples: opened, or only measured where their features are cached."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zoo.data.images import UnreadableImage, image_size, read_image
from zoo.vlm.cache.features import image_key


@dataclass(frozen=True)
class Blank:
    """Stands for an image of which only the size is needed, in pixels: width and height."""

    size: tuple[int, int]
    mode: str = "RGB"

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


@dataclass(frozen=True)
class ImageReader:
    """Opens the images of examples, or only measures them where their features are cached.

    Args:
        decode: False gives a `Blank` of the right size instead of each image.
        exceptions: images that are decoded all the same, since their features could not be had.
    """

    decode: bool = True
    exceptions: Collection[Path] = ()

    def open(self, paths: Sequence[Path]) -> tuple[list[Image.Image | Blank], tuple[str, ...]]:
        """The images, and the key of each in the feature cache.

        Raises:
            UnreadableImage: one is missing, or not an image; with the path.
        """
        images = [self._open(path) for path in paths]
        return images, tuple(image_key(path, ()) for path in paths)

    def _open(self, path: Path) -> Image.Image | Blank:
        try:
            return read_image(path) if self.decode or path in self.exceptions else Blank(image_size(path))
        except UnreadableImage as error:
            raise UnreadableImage(f"{path}: {error}") from error
