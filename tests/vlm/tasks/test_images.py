"""ImageReader: images are opened, or only measured where their features are cached."""

import re

import pytest

from tests.vlm.rig import corrupt, photos
from zoo.data.images import UnreadableImage, read_image
from zoo.vlm.cache.features import image_key
from zoo.vlm.tasks.images import Blank, ImageReader


def test_images_come_with_the_keys_of_their_features(tmp_path):
    photos(tmp_path, 2)
    paths = [tmp_path / "00_0.jpg", tmp_path / "01_1.jpg"]
    images, keys = ImageReader().open(paths)
    assert [image.tobytes() for image in images] == [read_image(path).tobytes() for path in paths]
    assert keys == tuple(image_key(path, ()) for path in paths)
    blanks, same = ImageReader(decode=False).open(paths)
    assert blanks == [Blank((48, 32)), Blank((48, 36))] and same == keys
    assert [(blank.width, blank.height, blank.mode) for blank in blanks] == [(48, 32, "RGB"), (48, 36, "RGB")]


def test_images_that_could_not_be_kept_are_opened_all_the_same(tmp_path):
    """Its size can be read, its pixels cannot: it is an exception, and refused."""
    photos(tmp_path, 2)
    broken, whole = tmp_path / "00_0.jpg", tmp_path / "01_0.jpg"
    corrupt(broken)
    assert ImageReader(decode=False).open([broken])[0] == [Blank((48, 32))]
    reader = ImageReader(decode=False, exceptions={broken})
    assert reader.open([whole])[0] == [Blank((48, 36))]
    with pytest.raises(UnreadableImage, match=re.escape(f"{broken}: ")):
        reader.open([whole, broken])


@pytest.mark.parametrize("decode", [True, False])
def test_a_missing_image_is_named(decode, tmp_path):
    with pytest.raises(UnreadableImage, match=r"gone.jpg: no such file"):
        ImageReader(decode).open([tmp_path / "gone.jpg"])
