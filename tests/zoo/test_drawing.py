import numpy as np
from PIL import Image

from zoo.drawing import GREEN, RED, framed, heat, sheet


def test_a_frame_lies_around_the_whole_image():
    picture = np.asarray(framed(Image.new("RGB", (30, 60), "blue"), GREEN, size=40, width=3))
    assert picture.shape == (46, 46, 3)
    for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):
        assert (edge == GREEN).all()
    assert (picture[3:-3, 23] == (0, 0, 255)).all(), "a tall image keeps its height"


def test_a_double_frame_is_as_wide_as_a_single_one_and_white_within():
    picture = np.asarray(framed(Image.new("RGB", (40, 40), "blue"), GREEN, size=40, width=7, double=True))
    assert picture.shape == (54, 54, 3)
    across = picture[27, :7]
    assert (across[[0, 1, 5, 6]] == GREEN).all() and (across[2:5] == 255).all()


def test_heat_is_brightest_where_the_greatest_value_lies():
    values = np.zeros((2, 4))
    values[1, 2] = 3.0
    picture = np.asarray(heat(Image.new("RGB", (20, 10), "grey"), values, size=80)).sum(-1)
    assert picture.shape == (40, 80)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert row >= 20 and 40 <= column < 60
    assert picture[5, 5] == picture.min() < picture[30, 50] == picture.max()


def test_heat_without_differences_is_dark():
    even, uneven = (np.asarray(heat(Image.new("RGB", (9, 9)), np.array(v), 9)) for v in ([[2.0, 2.0]], [[0.0, 2.0]]))
    assert even.max() < 10 < uneven.max()


def test_a_sheet_shows_every_image_once():
    rows = [[framed(Image.new("RGB", (8, 8), c), RED, 20) for c in colours] for colours in (["red", "blue"], ["lime"])]
    page = np.asarray(sheet(rows, [["a", "b"], ["a caption much too long for its picture"]], "title"))
    for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0)):
        assert (page == colour).all(-1).sum() == 400
    assert sheet([], []).size == (320, 40)


def test_notes_and_lines_of_captions_move_rows_apart_and_hide_nothing():
    rows = [[framed(Image.new("RGB", (8, 8), colour), RED, 20)] for colour in ("blue", "lime")]
    captions = [["a\nb"], ["c"]]
    plain, noted = (np.asarray(sheet(rows, captions, "title", notes)) for notes in ((), ["one", "a long note " * 9]))
    assert noted.shape[0] - plain.shape[0] == 32 and noted.shape[1] > 400 > plain.shape[1]
    for page in (plain, noted):
        starts = [np.flatnonzero((page == colour).all(-1).any(1))[0] for colour in ((0, 0, 255), (0, 255, 0))]
        assert starts[1] - starts[0] == 28 + 8 + 32 + 16 * (page is noted), "image, gap, two lines, a note"
        assert ((page == (0, 0, 255)).all(-1).sum(), (page == (0, 255, 0)).all(-1).sum()) == (400, 400)
