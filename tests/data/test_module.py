import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.dataset import Collate, IdentityDataset, augmentation_seed
from zoo.data.join import Source
from zoo.data.module import InstanceData
from zoo.data.readers import find_reader
from zoo.data.samplers import Key
from zoo.transforms import Augment, Transform
from zoo.world import Pets

TRANSFORM = Transform((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_transform_is_resize_scale_normalise(photos):
    image = Image.open(photos / "id_000" / "0.png")
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert torch.allclose(TRANSFORM(image), expected, atol=1e-6)
    assert torch.allclose(TRANSFORM.denormalise(TRANSFORM(image)), expected * 0.25 + 0.5, atol=1e-6)
    assert Transform((24, 48), *[(0.5,) * 3] * 2)(image).shape == (3, 24, 48)


def test_augmentation_is_a_function_of_seed_epoch_and_row(photos):
    index = find_reader("folder")(photos)
    dataset = IdentityDataset(index, TRANSFORM.compose(Augment(erase=0.5)), seed=3)
    first = dataset[Key(1, 5)].image
    before = torch.get_rng_state()
    dataset[Key(1, 6)]
    assert torch.equal(torch.get_rng_state(), before), "the global random state must not move"
    torch.rand(10)
    assert torch.equal(dataset[Key(1, 5)].image, first)
    assert not torch.equal(dataset[Key(2, 5)].image, first)
    seeds = {augmentation_seed(s, Key(e, r)) for s in range(5) for e in range(5) for r in range(5)}
    assert len(seeds) == 125


def test_no_augmentation_means_the_plain_transform(photos):
    index = find_reader("folder")(photos)
    off = Augment(flip=0, crop=1, brightness=0, contrast=0)
    image = Image.open(photos / index.paths[0])
    assert torch.equal(TRANSFORM.normalise(TRANSFORM.compose(off)(image)), TRANSFORM(image))


def test_unreadable_images_travel_by_name(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/id_003/1.png").write_bytes(b"")
    index = find_reader("folder")(tmp_path / "photos")
    row = index.paths.tolist().index("id_003/1.png")
    dataset, collate = IdentityDataset(index, TRANSFORM.compose()), Collate(index, (32, 32))
    batch = collate([dataset[Key(0, r)] for r in (row - 1, row, row + 1)])
    assert batch.images.shape == (2, 3, 32, 32) and batch.indices.tolist() == [row - 1, row + 1]
    assert batch.skipped == ("id_003/1.png: empty file",)
    assert collate([dataset[Key(0, row)]]).images.shape == (0, 3, 32, 32)


def test_too_many_unreadable_files_stop_the_run_few_are_listed(photos, caplog):
    data = InstanceData(root=str(photos), max_unreadable=0.02)
    data.setup()
    batch = Collate(data.index, (32, 32))([])
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


def test_nothing_is_said_where_no_validation_is_asked_for(photos, caplog):
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
    with pytest.raises(ValueError, match="not what .* says this run was trained on"):
        InstanceData(root=str(tmp_path / "data"), split_seed=1)._keep_manifest(tmp_path / "manifest.csv")


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="data.root"):
        InstanceData()
