import numpy as np
import pytest
from PIL import Image, ImageFile

from zoo.data.images import EXTENSIONS, UnreadableImage, image_size, read_image

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_exif_orientation_is_honoured(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :10] = (255, 0, 0)  # the mark is top left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg")
    assert image.size == (20, 40)
    assert np.asarray(image)[5, 15, 0] > 200 and np.asarray(image)[35, 5, 0] < 50  # top right now


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "image.tif" if mode in ("CMYK", "YCbCr") else "image.png"
    Image.fromarray(GREY).convert("RGB").convert(mode).save(tmp_path / name)
    assert read_image(tmp_path / name).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "deep.png"))[..., 0], GREY)


def test_float_images(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "unit.tif"))[..., 1], GREY)


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    image = np.asarray(read_image(tmp_path / "clear.png"))
    assert image[0, 0].tolist() == [10, 20, 30] and image[3, 3].tolist() == [255, 255, 255]


def test_broken_files_say_why(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for name, why in {"empty": "empty", "text": "not an image", "half": "truncated", "gone": "no such file"}.items():
        path = next(tmp_path.glob(f"{name}.*"), tmp_path / "gone.jpg")
        with pytest.raises(UnreadableImage, match=why):
            read_image(path)


def test_boxes_are_cut_and_checked(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", (2, 3, 4, 5)))[..., 0], GREY[3:8, 2:6])
    assert read_image(tmp_path / "a.png", (-3, 6, 5, 9)).size == (2, 2)
    with pytest.raises(UnreadableImage, match="outside"):
        read_image(tmp_path / "a.png", (8, 0, 4, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_the_size_is_that_of_the_image_as_it_is_read(tmp_path, orientation, extension):
    exif, path = Image.Exif(), tmp_path / f"a{extension}"
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert image_size(path) == read_image(path).size
    if extension in (".jpg", ".png", ".webp", ".tif"):
        assert image_size(path) == ((20, 40) if orientation > 4 else (40, 20)), "the others keep no orientation"


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_the_size_is_read_without_decoding(tmp_path, extension, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in {"plain": {}, "turned": {"exif": exif}}.items():
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}{extension}", **options)
    sizes = {path: read_image(path).size for path in tmp_path.iterdir()}
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda file: pytest.fail(f"{file.format} was decoded"))
    assert {path: image_size(path) for path in sizes} == sizes


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    (tmp_path / "b.png").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert read_image(tmp_path / "b.png").size == image_size(tmp_path / "b.png") == (20, 40)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "I;16", "F"])
def test_the_size_of_every_mode(tmp_path, mode):
    deep = {"I;16": np.uint16, "F": np.float32}
    image = Image.fromarray(np.zeros((5, 9), deep[mode])) if mode in deep else Image.new("RGB", (9, 5)).convert(mode)
    image.save(tmp_path / "a.tif")
    assert image_size(tmp_path / "a.tif") == read_image(tmp_path / "a.tif").size == (9, 5)


def test_the_size_needs_no_pixels_but_an_image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1000])
    assert image_size(tmp_path / "half.jpg") == (48, 64)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name, why in {"gone.png": "no such file", "text.png": "not an image", "empty.png": "not an image"}.items():
        with pytest.raises(UnreadableImage, match=why):
            image_size(tmp_path / name)
    with pytest.raises(UnreadableImage):
        image_size(tmp_path)
