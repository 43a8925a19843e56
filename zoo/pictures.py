"""Pictures of what an encoder does, for TensorBoard and as PNG: retrieval sheets, histograms, error curves."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from zoo.metrics import ErrorCurve, SimilarityHistogram

if TYPE_CHECKING:  # plots are drawn by one process of several: the others do without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, RED, GREY = (46, 160, 67), (215, 58, 73), (120, 120, 120)
_GAP = 8


def framed(image: Image.Image, colour: tuple[int, int, int], size: int = 112, width: int = 4) -> Image.Image:
    """The image, padded to a square of `size` pixels, in a frame of `width` pixels outside of it."""
    square = ImageOps.pad(image, (size, size), color=(245, 245, 245))
    return ImageOps.expand(square, border=width, fill=colour)


def sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[Sequence[str]], title: str = "") -> Image.Image:
    """A grid of equally large images on white, a caption under each, the first column set apart.

    Args:
        rows: images, row by row; rows may differ in length.
        captions: one for each image.
        title: a line above.
    """
    if not rows:
        return Image.new("RGB", (320, 40), "white")
    width, height = rows[0][0].size
    line = 14
    columns = max(len(row) for row in rows)
    top = line + _GAP if title else 0
    page = Image.new(
        "RGB",
        (columns * (width + _GAP) + 3 * _GAP, top + len(rows) * (height + line + _GAP) + _GAP),
        "white",
    )
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP // 2), title, fill="black")
    for r, (images, texts) in enumerate(zip(rows, captions, strict=True)):
        for c, (image, text) in enumerate(zip(images, texts, strict=True)):
            x = _GAP + c * (width + _GAP) + (_GAP if c else 0)
            y = top + _GAP + r * (height + line + _GAP)
            page.paste(image, (x, y))
            draw.text((x, y + height + 1), _shortened(text, draw, width), fill=GREY)
    return page


def histogram_plot(histogram: SimilarityHistogram, title: str = "", threshold: float | None = None) -> Image.Image:
    """Densities of the similarity of positive and of negative pairs, over each other, with the line between them."""
    figure, axes = _figure()
    edges = histogram.edges.cpu().numpy()
    for counts, label, colour in (
        (histogram.negative, "different identities", RED),
        (histogram.positive, "same identity", GREEN),
    ):
        pairs = counts.cpu().numpy()
        density = pairs / max(1, pairs.sum()) / np.diff(edges)
        axes.stairs(density, edges, fill=True, alpha=0.5, color=_plot(colour), label=f"{label} ({pairs.sum():,})")
    occupied = np.flatnonzero((histogram.positive + histogram.negative).cpu().numpy())
    if len(occupied):
        axes.set_xlim(edges[occupied[0]] - 0.02, min(1.02, edges[occupied[-1] + 1] + 0.02))
    _mark(axes, threshold)
    axes.set(xlabel="cosine similarity", ylabel="density", title=title)
    axes.legend(frameon=False, fontsize=8)
    return _drawn(figure)


def error_plot(curve: ErrorCurve, title: str = "", threshold: float | None = None) -> Image.Image:
    """False acceptance and false rejection rate over the threshold, from where the first falls below one."""
    figure, axes = _figure()
    first = max(0, int((curve.far < 1).int().argmax()) - 1)
    thresholds = curve.thresholds[first:].numpy()
    axes.plot(thresholds, curve.far[first:].numpy(), color=_plot(RED), label="false acceptance")
    axes.plot(thresholds, curve.frr[first:].numpy(), color=_plot(GREEN), label="false rejection")
    _mark(axes, threshold)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="threshold of cosine similarity", ylabel="share of pairs", title=title, ylim=(0, 1.05))
    axes.set_yticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
    axes.legend(frameon=False, fontsize=8)
    return _drawn(figure)


def _figure() -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _mark(axes: "Axes", threshold: float | None) -> None:
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3f}")


def _plot(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in colour)


def _drawn(figure: "Figure") -> Image.Image:
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _shortened(text: str, draw: ImageDraw.ImageDraw, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
