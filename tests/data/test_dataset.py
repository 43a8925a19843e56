import shutil

import numpy as np
import torch
from PIL import Image

from zoo.data.dataset import IdentityCollate, IdentityDataset, augmentation_seed
from zoo.data.readers import read_with
from zoo.data.samplers import Key
from zoo.transforms import Augment, Transform

TRANSFORM = Transform((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_transform_is_resize_scale_normalise(photos):
    image = Image.open(photos / "id_000" / "0.png")
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert torch.allclose(TRANSFORM(image), expected, atol=1e-6)
    assert torch.allclose(TRANSFORM.denormalise(TRANSFORM(image)), expected * 0.25 + 0.5, atol=1e-6)
    assert Transform((24, 48), *[(0.5,) * 3] * 2)(image).shape == (3, 24, 48)


def test_augmentation_is_a_function_of_seed_epoch_and_row(photos):
    index = read_with("folder", photos)
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
    index = read_with("folder", photos)
    off = Augment(flip=0, crop=1, brightness=0, contrast=0)
    image = Image.open(photos / index.paths[0])
    assert torch.equal(TRANSFORM.normalise(TRANSFORM.compose(off)(image)), TRANSFORM(image))


def test_unreadable_images_travel_by_name(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/id_003/1.png").write_bytes(b"")
    index = read_with("folder", tmp_path / "photos")
    row = index.paths.tolist().index("id_003/1.png")
    dataset, collate = IdentityDataset(index, TRANSFORM.compose()), IdentityCollate(index, (32, 32))
    batch = collate([dataset[Key(0, r)] for r in (row - 1, row, row + 1)])
    assert batch.images.shape == (2, 3, 32, 32) and batch.indices.tolist() == [row - 1, row + 1]
    assert batch.skipped == ("id_003/1.png: empty file",)
    assert collate([dataset[Key(0, row)]]).images.shape == (0, 3, 32, 32)
