import numpy as np
import torch
from PIL import Image

from zoo.metrics import EmbeddingSet, similarity_histogram, unit_norm
from zoo.pictures import GREEN, RED, framed, histogram_plot, sheet


def test_a_frame_lies_around_the_whole_image():
    picture = np.asarray(framed(Image.new("RGB", (30, 60), "blue"), GREEN, size=40, width=3))
    assert picture.shape == (46, 46, 3)
    for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):
        assert (edge == GREEN).all()
    assert (picture[3:-3, 23] == (0, 0, 255)).all(), "a tall image keeps its height"


def test_a_sheet_shows_every_image_once():
    rows = [[framed(Image.new("RGB", (8, 8), c), RED, 20) for c in colours] for colours in (["red", "blue"], ["lime"])]
    page = np.asarray(sheet(rows, [["a", "b"], ["a caption much too long for its picture"]], "title"))
    for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0)):
        assert (page == colour).all(-1).sum() == 400
    assert sheet([], []).size == (320, 40)


def test_a_histogram_can_be_drawn_of_little():
    items = EmbeddingSet(unit_norm(torch.eye(3)), torch.tensor([0, 0, 1]), torch.arange(3))
    picture = histogram_plot(similarity_histogram(items, items, bins=10), "three")
    assert picture.mode == "RGB" and picture.width > 300
