"""What pictures of runs are drawn with: framed images, heat maps, sheets of images, and figures as images."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

if TYPE_CHECKING:  # plots are drawn by one process of several: the others do without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, RED, GREY = (46, 160, 67), (215, 58, 73), (120, 120, 120)
PALE = (225, 225, 225)
_GAP, _LINE, _LETTERS = 8, 16, 12  # pixels


def framed(
    image: Image.Image, colour: tuple[int, int, int], size: int = 112, width: int = 4, double: bool = False
) -> Image.Image:
    """The image, padded to a square of `size` pixels, in a frame of `width` pixels outside of it; a double frame is
    white in its middle."""
    square = ImageOps.pad(image, (size, size), color=(245, 245, 245))
    if not double:
        return ImageOps.expand(square, border=width, fill=colour)
    third = width // 3
    inner = ImageOps.expand(square, border=third, fill=colour)
    return ImageOps.expand(ImageOps.expand(inner, border=width - 2 * third, fill="white"), border=third, fill=colour)


def heat(image: Image.Image, values: np.ndarray, size: int = 112) -> Image.Image:
    """Values laid over a greyed image, the least of them dark, the greatest bright.

    Args:
        image: what they are of.
        values: (R, C), one for each cell of a grid over the whole image; interpolated between the cells' middles. Where
            all are alike, all are dark.
        size: the side of the square in pixels that the image is brought into.
    """
    from matplotlib import colormaps

    grey = ImageOps.contain(image.convert("L").convert("RGB"), (size, size))
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = Image.fromarray(share.astype(np.float32)).resize(grey.size, Image.Resampling.BILINEAR)
    colours = colormaps["inferno"](np.asarray(smooth).clip(0, 1))[..., :3] * 255
    mixed = 0.45 * np.asarray(grey) + 0.55 * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[Sequence[str]],
    title: str = "",
    notes: Sequence[str] = (),
) -> Image.Image:
    """A grid of equally large images on white, a caption under each, the first column set apart.

    Args:
        rows: images, row by row; rows may differ in length.
        captions: one for each image, of one line or several.
        title: a line above.
        notes: a line above each row, or none at all.
    """
    if not rows:
        return Image.new("RGB", (320, 40), "white")
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    under = _LINE * max(1 + text.count("\n") for texts in captions for text in texts)
    above = _LINE if notes else 0
    top, step = _LINE + _GAP if title else 0, above + height + under + _GAP
    font = ImageFont.load_default(_LETTERS)
    wide = max(font.getlength(text) for text in (title, *notes))
    page = Image.new(
        "RGB",
        (max(columns * (width + _GAP) + 3 * _GAP, int(wide) + 2 * _GAP), top + len(rows) * step + _GAP),
        "white",
    )
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP // 2), title, "black", font)
    for r, note in enumerate(notes):
        draw.text((_GAP, top + _GAP + r * step), note, "black", font)
    for r, (images, texts) in enumerate(zip(rows, captions, strict=True)):
        for c, (image, text) in enumerate(zip(images, texts, strict=True)):
            x = _GAP + c * (width + _GAP) + (_GAP if c else 0)
            y = top + _GAP + r * step + above
            page.paste(image, (x, y))
            for n, part in enumerate(text.split("\n")):
                draw.text((x, y + height + 1 + n * _LINE), _shortened(part, font, width), GREY, font)
    return page


def new_figure() -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def rgb(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in colour)


def drawn(figure: "Figure") -> Image.Image:
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _shortened(text: str, font: Font, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
