import logging

import pytest
import torch
from PIL import Image

from zoo.data.dataset import IdentityCollate
from zoo.data.join import Source
from zoo.data.module import InstanceData
from zoo.transforms import Transform
from zoo.world import Pets

TRANSFORM = Transform((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_too_many_unreadable_files_stop_the_run_few_are_listed(photos, caplog):
    data = InstanceData(root=str(photos), max_unreadable=0.02)
    data.setup()
    batch = IdentityCollate(data.index, (32, 32))([])
    with caplog.at_level(logging.WARNING):
        data.on_before_batch_transfer(batch._replace(skipped=("a.png: empty file",)), 0)
        data.on_before_batch_transfer(batch._replace(skipped=("a.png: empty file",)), 0)  # again, next epoch
        with pytest.raises(RuntimeError, match=r"2 of 80 files cannot be read.*b.png"):
            data.on_before_batch_transfer(batch._replace(skipped=("b.png: truncated",)), 0)
        data.teardown("fit")
    assert "2 unreadable files were skipped" in caplog.text and "a.png: empty file" in caplog.text


def folders(root, views, prefix=""):
    """A folder for each identity, with this many images."""
    for number, count in enumerate(views):
        folder = root / f"{prefix}{number}"
        folder.mkdir(parents=True)
        for view in range(count):
            Image.new("RGB", (8, 8)).save(folder / f"{view}.png")
    return root


def test_training_without_a_pair_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train split .* no two images of one identity"):
        InstanceData(root=str(folders(tmp_path, [1] * 4)), val_share=0.25, test_share=0.25).setup("fit")


@pytest.mark.parametrize(
    ("views", "lack"), [([3], "one identity only"), ([1, 1, 1], "no two images of one identity"), ([], "no two images")]
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_training_goes_on_where_a_split_cannot_be_scored(tmp_path, caplog, views, lack, split):
    folders(tmp_path / "train", [2, 2], "t")
    folders(tmp_path / split, views, "h")
    data = InstanceData(root=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert caplog.text.count("nothing to validate on") == 1 and not data.validates and not data.tests
    assert lack in caplog.text or split == "test"
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=f"the {split} split .*{lack}.*nothing to score"):
        data.setup("validate" if split == "val" else "test")


def test_two_identities_and_a_pair_can_be_scored(tmp_path, caplog):
    for split, views in (("train", [2, 2]), ("val", [2, 1]), ("test", [1, 2])):
        folders(tmp_path / split, views, split)
    data = InstanceData(root=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for stage in ("fit", "validate", "test"):
            data.setup(stage)
    assert data.validates and data.tests and not caplog.text


def test_no_warning_where_no_validation_is_asked_for(photos, caplog):
    data = InstanceData(root=str(photos), val_share=0)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert not data.validates and data.tests and not caplog.text


def test_predicting_a_split(trees):
    def predicted(split):
        data = InstanceData(root=str(trees["market1501"]), predict_split=split)
        data.setup("predict")
        return set(data.index.splits[data.index.rows(*data._predicted)])

    assert predicted("test") == {"query", "gallery"} and predicted("query") == {"query"}
    assert predicted("all") == {"train", "query", "gallery", "val"}
    with pytest.raises(ValueError, match="'closed' has no image in .*query 2 images"):
        predicted("closed")


@pytest.mark.parametrize("given", [{"reader": "sop"}, {"options": {"table": "x.csv"}}])
def test_a_reader_without_its_root_is_refused(trees, given):
    with pytest.raises(ValueError, match="without data.root.*data.sources"):
        InstanceData(sources=[Source(str(trees["sop"]))], **given)
    with pytest.raises(ValueError, match="without data.root"):
        InstanceData(world=Pets(families=3), **given)
    assert InstanceData(world=Pets(families=3), options={}).world


def test_a_resumed_run_knows_its_manifest(tmp_path):
    """Names with the ends of lines of any system among them."""
    folders(tmp_path / "data", [2, 2, 2, 2], "\rü")
    data = InstanceData(root=str(tmp_path / "data"))
    data._keep_manifest(tmp_path / "manifest.csv")
    data._keep_manifest(tmp_path / "manifest.csv")
    with pytest.raises(ValueError, match="differs from .*manifest.csv, which lists what this run was trained on"):
        InstanceData(root=str(tmp_path / "data"), split_seed=1)._keep_manifest(tmp_path / "manifest.csv")


class Model:
    """What the data needs of a model, and nothing else."""

    transform = Transform((24, 16), (0.5,) * 3, (0.25,) * 3)

    def __init__(self, classifies=False):
        self.classifies = classifies


def test_loaders_take_the_transform_of_the_connected_model(photos):
    data = InstanceData(root=str(photos), identities_per_batch=4, images_per_identity=2, workers=0, eval_batch_size=7)
    data.setup()
    data.connect(Model())
    for loader, size in ((data.train_dataloader(), 8), (data.val_dataloader(), 7), (data.test_dataloader(), 7)):
        batch = next(iter(loader))
        assert batch.images.shape == (size, 3, 24, 16) and batch.images.dtype == torch.uint8
        assert torch.allclose(
            data.on_after_batch_transfer(batch, 0).images, (batch.images / 255 - 0.5) / 0.25, atol=1e-6
        )
    assert next(iter(data.predict_dataloader())).indices.tolist() == list(range(7))


@pytest.mark.parametrize("classifies", [False, True])
def test_new_images_of_training_identities_are_tested_on_by_a_model_that_names_them(trees, classifies):
    data = InstanceData(root=str(trees["petface"]), workers=0)
    data.setup("test")
    data.connect(Model(classifies))
    rows = [key.row for key in data.test_dataloader().sampler]
    assert set(data.index.splits[rows]) == ({"test", "closed"} if classifies else {"test"})


def test_loaders_without_a_model_are_refused(photos):
    data = InstanceData(root=str(photos), workers=0)
    data.setup()
    for make in (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.predict_dataloader):
        with pytest.raises(RuntimeError, match=r"no model to take the transform .* Call data.connect\(model\)"):
            make()


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="data.root"):
        InstanceData()
