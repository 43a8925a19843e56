"""Plots of how similar pairs are, and of the errors that a threshold makes."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from zoo.drawing import GREEN, RED, drawn, new_figure, rgb
from zoo.metrics import ErrorCurve, SimilarityHistogram

if TYPE_CHECKING:  # plots are drawn by one process of several: the others do without
    from matplotlib.axes import Axes


def histogram_plot(histogram: SimilarityHistogram, title: str = "", threshold: float | None = None) -> Image.Image:
    """Densities of the similarity of positive and of negative pairs, over each other, with the line between them."""
    figure, axes = new_figure()
    edges = histogram.edges.cpu().numpy()
    for counts, label, colour in (
        (histogram.negative, "different identities", RED),
        (histogram.positive, "same identity", GREEN),
    ):
        pairs = counts.cpu().numpy()
        density = pairs / max(1, pairs.sum()) / np.diff(edges)
        axes.stairs(density, edges, fill=True, alpha=0.5, color=rgb(colour), label=f"{label} ({pairs.sum():,})")
    occupied = np.flatnonzero((histogram.positive + histogram.negative).cpu().numpy())
    if len(occupied):
        axes.set_xlim(edges[occupied[0]] - 0.02, min(1.02, edges[occupied[-1] + 1] + 0.02))
    _mark(axes, threshold)
    axes.set(xlabel="cosine similarity", ylabel="density", title=title)
    axes.legend(frameon=False, fontsize=8)
    return drawn(figure)


def error_plot(curve: ErrorCurve, title: str = "", threshold: float | None = None) -> Image.Image:
    """False acceptance and false rejection rate over the threshold, from where the first falls below one."""
    figure, axes = new_figure()
    first = max(0, int((curve.far < 1).int().argmax()) - 1)
    thresholds = curve.thresholds[first:].numpy()
    axes.plot(thresholds, curve.far[first:].numpy(), color=rgb(RED), label="false acceptance")
    axes.plot(thresholds, curve.frr[first:].numpy(), color=rgb(GREEN), label="false rejection")
    _mark(axes, threshold)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="threshold of cosine similarity", ylabel="share of pairs", title=title, ylim=(0, 1.05))
    axes.set_yticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
    axes.legend(frameon=False, fontsize=8)
    return drawn(figure)


def _mark(axes: "Axes", threshold: float | None) -> None:
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3f}")
