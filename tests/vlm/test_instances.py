"""Several instances in an image, and none: what experts get of each, and what the language model reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.vlm.rig import data_in, first_batch, pets_and_objects, photos, stage
from zoo.categories import find_category
from zoo.data.images import read_image
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.cache.features import image_key
from zoo.vlm.cache.towers import CachedTowers, KeptImage
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.match import MatchStage
from zoo.vlm.processor import Detection


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


def corner(image: Image.Image) -> list[Detection]:
    """The upper left quarter, and an unsure detection of all of it; nothing in a dark image."""
    if np.asarray(image).mean() < 20:
        return []
    whole = (0.0, 0.0, float(image.width), float(image.height))
    return [Detection("dog", (0.0, 0.0, image.width / 2, image.height / 2), 0.9), Detection("dog", whole, 0.1)]


def asking(*images: tuple[Image.Image, str, tuple[Instance, ...]]) -> Example:
    """A conversation about images, each with its key and its instances."""
    content = [{"type": "image", "image": image} for image, *_ in images]
    keys, instances = tuple(key for _, key, _ in images), tuple(own for *_, own in images)
    return Example([{"role": "user", "content": content}], "x", "it", keys, instances)


def fused_features(model: MatchStage, batch: VLMBatch, features: TowerFeatures | None = None) -> list[Tensor]:
    """F of each image."""
    with torch.no_grad():
        features = model.run_towers(batch) if features is None else features
        return list(model.fused.image_features(batch, features).split(batch.image_tokens.tolist()))


@pytest.fixture
def fusing() -> MatchStage:
    model = stage(before_projector=False)
    model.configure_model()
    for number, adapter in enumerate(model.fused.adapters.values()):
        adapter.gate.data.fill_(0.5 + number)
    return model.eval()


def test_the_updates_of_all_instances_of_an_image_are_summed(fusing, tmp_path):
    """Two pets and a product in one image, nobody in the next, a product in the last: as direct calls of adapters."""
    photos(tmp_path, 3)
    first, second, third = (read_image(tmp_path / f"0{number}_0.jpg") for number in range(3))
    boxes = (0.0, 0.0, 20.0, 20.0), (20.0, 8.0, 24.0, 20.0), (4.0, 4.0, 40.0, 24.0)
    several = (Instance("pet", boxes[0]), Instance("object", boxes[2]), Instance("pet", boxes[1]))
    batch = fusing.batcher(
        [asking((first, "a", several), (second, "b", ()), (third, "c", (Instance("object", boxes[0]),)))]
    )
    assert batch.experts["pet"].image.tolist() == [0, 0] and batch.experts["object"].image.tolist() == [0, 2]
    fused = fusing.fused
    with torch.no_grad():
        features = fusing.run_towers(batch)
        plain = fused._project(features.tokens).split(batch.image_tokens.tolist())
        expected = []
        for tokens, image, own in ((plain[0], first, several), (plain[2], third, (Instance("object", boxes[0]),))):
            total = tokens.clone()
            for category in ("pet", "object"):
                vectors = []
                for instance in own:
                    if instance.category == category:
                        crop = fusing.batcher([asking((image, "it", (instance,)))]).experts[category]
                        vectors.append(fused.identities(category, crop.pixels)[0, 0])
                if vectors:
                    identity, mask = torch.stack(vectors)[None], torch.ones(1, len(vectors), dtype=torch.bool)
                    ends = torch.tensor([0, len(tokens)])
                    total += fused.adapters[category](tokens, ends, identity, mask)
            expected.append(total)
    found = fused_features(fusing, batch, features)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[1])
    assert torch.equal(found[1], plain[1]), "an image without an instance keeps its features"
    assert not torch.allclose(found[0], plain[0], atol=1e-3)


def test_an_expert_gets_what_the_detector_finds(data_folder, tmp_path):
    """The largest that is sure, in place of the whole image."""
    whole, found = stage(), stage(detector=corner)
    batches = [first_batch(model, data_in(data_folder), tmp_path) for model in (whole, found)]
    pixels = [batch.experts["object"].pixels for batch in batches]
    assert pixels[0].shape == pixels[1].shape and not torch.equal(*pixels)
    image = read_image(data_folder / "pet" / "00_0.jpg")
    x, y, w, h = find_category("object").crop.box([("dog", corner(image)[0].box)], *image.size)
    crop = image.crop((round(x), round(y), round(x + w), round(y + h)))
    expected = found.batcher.pipelines["object"](crop)
    batch = found.batcher([asking((image, "it", (Instance("object"),)))])
    assert torch.equal(batch.experts["object"].pixels[0], expected)
    assert "detector" not in found.hparams or found.hparams["detector"] is None


def test_where_nothing_is_found_the_features_stay_as_they_are(tmp_path):
    """Exactly, with the towers and from a cache alike."""
    photos(tmp_path, 1)
    bright, dark = tmp_path / "00_0.jpg", tmp_path / "dark.png"
    Image.new("RGB", (48, 32), (3, 3, 3)).save(dark)
    model = stage(detector=corner)
    model.configure_model()
    for adapter in model.fused.adapters.values():
        adapter.gate.data.fill_(0.5)
    model.eval()
    kept = [KeptImage(path, (Instance("pet"), Instance("object"))) for path in (bright, dark)]
    example = asking(*((read_image(path), image_key(path, ()), instances) for path, instances in kept))
    batch = model.batcher([example])
    key = image_key(dark, ())
    for category in ("pet", "object"):
        assert batch.experts[category].image.tolist() == [0] and batch.experts[category].absent == (key,)
    towers = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    assert towers.fill(kept, 0) == [] and key in towers.experts["pet"] and towers.experts["pet"].get([key])[1] == 0
    blank = model.batcher([example], with_pixels=False)
    with torch.no_grad():
        for one, features in ((batch, model.fused.run_towers(batch)), (blank, towers.run_towers(blank))):
            plain = model.fused._project(features.tokens.float()).split(one.image_tokens.tolist())
            found = fused_features(model, one, features)
            assert torch.equal(found[1], plain[1]) and not torch.allclose(found[0], plain[0], atol=1e-3)
            assert features.experts["pet"].image.tolist() == [0]
        run, cached = fused_features(model, batch), fused_features(model, blank, towers.run_towers(blank))
    torch.testing.assert_close(run, cached)
