"""What the sheets show of an index's rows."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from zoo.backbones import TimmEncoder
from zoo.data.index import IdentityIndex
from zoo.evaluation.evaluation import Evaluation
from zoo.evaluation.retrieval_pictures import RetrievalPictures

THING, ELSE = (255, 0, 255), (0, 255, 255)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of two things; each is 20 x 24 pixels at the right edge of one that shows other things, too."""
    photo = np.full((40, 60, 3), ELSE, dtype=np.uint8)
    photo[8:32, 40:] = THING
    for name in "abcd":
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    return tmp_path


def drawn(root: Path, boxes: np.ndarray | None, folder: Path) -> np.ndarray:
    """The sheet of a test on these photos, (H, W, 3) uint8."""
    paths = [f"{name}.png" for name in "abcd"]
    index = IdentityIndex.build(root, paths, list("xxyy"), ["test"] * 4, boxes=boxes)
    module = Evaluation(TimmEncoder("test_resnet", size=32))
    module.scorer.start(index, "test")
    module.scorer.update(torch.eye(4)[[0, 0, 1, 1]] + 0.1, torch.arange(4))
    trainer = SimpleNamespace(
        loggers=[TensorBoardLogger(folder)],
        log_dir=str(folder),
        is_global_zero=True,
        fast_dev_run=0,
        global_step=0,
    )
    RetrievalPictures(neighbours=1).on_test_epoch_end(trainer, module)
    return np.asarray(Image.open(folder / "pictures/test_retrieval_000000.png"))


def pixels(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(-1).sum())


def test_of_a_row_with_a_box_the_sheet_shows_what_is_in_it(photos, tmp_path):
    box = [40.0, 8.0, 20.0, 24.0]
    whole = drawn(photos, None, tmp_path / "whole")
    cropped = drawn(photos, np.array([box] * 4, dtype=np.float32), tmp_path / "cropped")
    assert pixels(whole, ELSE) > pixels(whole, THING) > 0
    assert pixels(cropped, ELSE) == 0
    thumbnail = 112 * round(112 * 20 / 24)
    assert pixels(cropped, THING) == 8 * thumbnail, "four queries and the nearest of each"


def test_rows_with_and_without_a_box_and_outside_of_the_photo_stand_side_by_side(photos, tmp_path):
    """Without a box the whole photo; where the box shows nothing, grey."""
    boxes = np.array([[40, 8, 20, 24], [-1] * 4, [90, 90, 5, 5], [40, 8, 20, 24]], dtype=np.float32)
    sheet = drawn(photos, boxes, tmp_path / "sheet")
    assert pixels(sheet, ELSE) > 0 and pixels(sheet, (120, 120, 120)) > 2 * 112 * 112
    assert pixels(sheet, THING) > 4 * 112 * round(112 * 20 / 24)
