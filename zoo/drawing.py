"""Pictures of what an encoder does, for TensorBoard and as PNG: retrieval sheets, histograms, error curves."""

from collections.abc import Mapping, Sequence
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


def ablation_plot(
    bars: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
    gains: Mapping[str, Sequence[tuple[float, float]]],
    levels: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Variants beside each other, and what is gained at every level of difficulty; error bars are one sd.

    Args:
        bars: variant -> mean and sd of its right answers, in %; nan where there is no sd.
        lines: what they are measured by -> right answers, in %.
        gains: what is gained -> mean and sd at every level, in points.
        levels: the easiest first.
        title: a line above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.3 * max(8, len(bars) + len(lines))), dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    means, sds = np.array(list(bars.values()), dtype=float).reshape(-1, 2).T
    left.barh(list(bars), means, xerr=np.nan_to_num(sds), color=rgb(PALE), edgecolor=rgb(GREY), capsize=3)
    left.invert_yaxis()
    for place, (label, value) in enumerate(lines.items()):
        left.axvline(value, color=f"C{place}", linestyle="--", label=f"{label} {value:.1f}")
    left.set(xlabel="right answers, %: mean and sd", title=title, xlim=(0, 100))
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    for place, (label, values) in enumerate(gains.items()):
        means, sds = np.array(values, dtype=float).reshape(-1, 2).T
        apart = np.arange(len(levels)) + 0.04 * place  # error bars beside each other
        right.errorbar(apart, means, np.nan_to_num(sds), marker="o", capsize=3, label=label)
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="level of difficulty", ylabel="gain over no experts, points", title="gain by level")
    right.set_xticks(range(len(levels)), levels)
    if gains:
        right.legend(frameon=False, fontsize=8)
    return drawn(figure)


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
