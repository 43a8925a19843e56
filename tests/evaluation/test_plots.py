"""Plots of similarities and of errors, also of very little."""

import numpy as np
import torch

from zoo.evaluation.plots import error_plot, histogram_plot
from zoo.metrics import EmbeddingSet, error_curve, similarity_histogram, unit_norm


def items() -> EmbeddingSet:
    return EmbeddingSet(unit_norm(torch.eye(3)), torch.tensor([0, 0, 1]), torch.arange(3))


def test_a_histogram_can_be_drawn_of_little():
    picture = histogram_plot(similarity_histogram(items(), items(), bins=10), "three")
    assert picture.mode == "RGB" and picture.width > 300


def test_a_threshold_is_drawn_as_a_line():
    curve = error_curve(items(), items(), bins=10)
    without, with_line = (np.asarray(error_plot(curve, "three", threshold)) for threshold in (None, 0.5))
    assert without.shape == with_line.shape and (without != with_line).any()
