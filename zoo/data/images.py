"""Reading image files as people have them: any mode, any orientation, some of them broken."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

_ORIENTATION, _FIRST_TURNED = 0x0112, 5  # EXIF: 5 to 8 lie on their side
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_SIGNATURE, _PNG_TEXT = b"\x89PNG\r\n\x1a\n", (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message is the reason."""


def read_image(path: Path, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Decode a file to RGB, turned as its EXIF orientation demands.

    Grey becomes RGB, transparency is laid over white, 16 bits are scaled to 8.

    Args:
        path: the file.
        box: x, y, w, h in pixels of the turned image; only this part is returned.

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, or a box outside of it.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage("empty file")
        with Image.open(path) as file:
            image = to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise UnreadableImage("no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    # Pillow's decoders raise SyntaxError, ValueError and others on broken files, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error
    return image if box is None else _crop(image, box)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, without decoding it.

    Raises:
        UnreadableImage: missing, or not an image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = _exif(file).get(_ORIENTATION, 1) >= _FIRST_TURNED
            if isinstance(file, TiffImageFile):  # Pillow gives the size as turned by the file's own tag
                stored = file.tag_v2[_TIFF_WIDTH], file.tag_v2[_TIFF_HEIGHT]
                turned = turned and file.size == stored
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise UnreadableImage("no such file" if isinstance(error, FileNotFoundError) else "not an image") from error
    return (height, width) if turned else (width, height)


def _exif(file: Image.Image) -> Image.Exif:
    """EXIF of an open file; a PNG is not decoded for it, as Pillow does in search of chunks that follow the pixels."""
    if isinstance(file, PngImageFile) and file.fp is not None and not _has_text_after_pixels(file.fp):
        return Image.Image.getexif(file)
    return file.getexif()


def _has_text_after_pixels(png: IO[bytes]) -> bool:
    """Whether an orientation may follow a PNG's pixels. The position in the file is kept."""
    start, pixels = png.tell(), False
    try:
        png.seek(len(_PNG_SIGNATURE))
        while len(head := png.read(8)) == 8 and head[4:] != b"IEND":
            pixels = pixels or head[4:] == b"IDAT"
            if pixels and head[4:] in _PNG_TEXT:
                return True
            png.seek(int.from_bytes(head[:4], "big") + 4, 1)  # the chunk and its checksum
        return False
    finally:
        png.seek(start)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files arrive as I;16 or I; float files hold [0, 1] or [0, 255].
        full = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0.0) <= 1 else 255.0
        return Image.fromarray((values.clip(0, full) * (255.0 / full)).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    x, y, w, h = box
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(image.width, round(x + w)), min(image.height, round(y + h))
    if right <= left or bottom <= top:
        raise UnreadableImage(f"box {box} lies outside of the {image.width}x{image.height} image")
    return image.crop((left, top, right, bottom))
