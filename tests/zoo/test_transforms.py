import numpy as np
import pytest
import torch
from PIL import Image

from zoo.transforms import Augment, Transform

STILL = {"flip": 0.0, "brightness": 0.0, "contrast": 0.0}
PERSON = Transform(size=(64, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


def ramps(width: int, height: int) -> Image.Image:
    """Red says how far right a pixel is, green how far down."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(64, 128), (200, 90), (40, 40)])
def test_a_crop_keeps_its_share_and_nearly_the_shape_of_the_image(width, height):
    crop = PERSON.compose(Augment(crop=0.5, **STILL))
    torch.manual_seed(0)
    shares, shapes = [], []
    for _ in range(200):
        red, green, _ = crop(ramps(width, height)).float() / 255
        across, down = float(red.max() - red.min()), float(green.max() - green.min())
        shares.append(across * down)
        shapes.append(across / down)
    assert 0.4 < min(shares) < 0.6 and max(shares) > 0.85, "seen at the centres of pixels, a little less than it is"
    assert 0.75 < min(shapes) < 0.95 < 1.05 < max(shapes) < 1.33


def test_padding_shifts_by_at_most_itself_and_shows_the_mean():
    shift = PERSON.compose(Augment(crop=1.0, pad=4, **STILL))
    white = Image.new("RGB", (32, 64), "white")
    torch.manual_seed(0)
    seen = set()
    for _ in range(100):
        image = shift(white)
        assert image.shape == (3, 64, 32)
        assert set(image.unique().tolist()) <= {128, 255}
        rows, columns = (image[0] == 128).all(1).sum(), (image[0] == 128).all(0).sum()
        seen.add((int(rows), int(columns)))
    assert max(r for r, _ in seen) == max(c for _, c in seen) == 4 and (0, 0) not in seen or len(seen) > 10


def test_nothing_random_is_left_when_all_is_off():
    off = PERSON.compose(Augment(crop=1.0, **STILL))
    assert torch.equal(off(ramps(50, 80)), PERSON.compose()(ramps(50, 80)))
