"""CachedTowers: what comes from disk is what the towers give, however the filling went."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import forked
from tests.vlm.rig import EXPERTS, attached, base, data_of, galleries, rows, stage, trainer
from tests.vlm.tiny import tiny_folder
from zoo.backbones import TimmEncoder
from zoo.data.samplers import Key
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.cache import towers as module
from zoo.vlm.cache.towers import CachedTowers, KeptImage
from zoo.vlm.data import collate
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.processor import Detection
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.task import TaskDataset

SPLIT = [*rows("train", 8), *rows("val", 4), *rows("test", 8)]


@pytest.fixture
def data(tmp_path: Path) -> MatchData:
    """Pets and objects, 20 conversations of each."""
    return data_of(
        galleries(tmp_path / "pet", "pet", SPLIT, identities=12),
        galleries(tmp_path / "object", "object", SPLIT, identities=12, seed=1),
    )


def open_model(data: MatchData, folder: Path, **options: Any) -> MatchStage:
    """With gates open, so that everything that a cache holds matters."""
    model = attached(stage(**options), data, folder)
    for adapter in model.fused.adapters.values():
        adapter.gate.data.fill_(0.7)
    return model.eval()


def batch_of(model: MatchStage, data: MatchData, decode: bool = True) -> VLMBatch:
    """Four training conversations; not decoded, for a model that keeps features."""
    dataset = TaskDataset(data.tasks[0], "train", ImageReader(decode))
    return collate(model.batcher, [dataset[Key(0, row)] for row in (0, 9, 3, 12)], with_pixels=decode)


def same(one: TowerFeatures, other: TowerFeatures) -> None:
    torch.testing.assert_close(one.tokens.float(), other.tokens.float())
    assert one.patches.tolist() == other.patches.tolist() and set(one.experts) == set(other.experts)
    for category, own in one.experts.items():
        torch.testing.assert_close(own.vectors, other.experts[category].vectors, msg=category)
        assert own.image.tolist() == other.experts[category].image.tolist()


# ---------------------------------------------------------------------- the same as without


@pytest.mark.parametrize("patch_tokens", [False, True], ids=["vector", "patches"])
@pytest.mark.parametrize("kind", ["small", "internvl", "llava"])
def test_kept_features_are_those_of_the_towers_and_give_the_same_logits(kind, patch_tokens, data, tmp_path):
    """Filled image by image in other batches than they are then asked for."""
    vlm = base() if kind == "small" else tiny_folder(kind)
    model = open_model(data, tmp_path, vlm=vlm, patch_tokens=patch_tokens)
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    assert cached.fill(data.images("train", "val"), workers=0) == []
    whole, blank = batch_of(model, data), batch_of(model, data, decode=False)
    same(model.fused.run_towers(whole), cached.run_towers(blank))
    with torch.no_grad():
        expected, labels = model.fused.answer_logits(whole, model.fused.run_towers(whole))
        found, same_labels = model.fused.answer_logits(blank, cached.run_towers(blank))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert labels.tolist() == same_labels.tolist()


def test_training_and_scores_are_the_same(data, tmp_path):
    found = {}
    for cache in (None, str(tmp_path / "cache")):
        torch.manual_seed(0)
        model, run = stage(cache=cache, gate_lr=0.1), trainer(tmp_path, max_epochs=2)
        run.fit(model, data)
        weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        found[cache is None] = weights, run.test(model, data, verbose=False)[0]
    torch.testing.assert_close(*(found[key][0] for key in (True, False)), rtol=1e-3, atol=1e-5)
    assert found[True][1] == pytest.approx(found[False][1]) and found[True][1]["test/conversations"] == 16


def test_bfloat16_is_kept_as_it_is(data, tmp_path):
    model = open_model(data, tmp_path, dtype="bfloat16")
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    cached.fill(data.images("train"), workers=0)
    features = cached.run_towers(batch_of(model, data, decode=False))
    assert features.tokens.dtype == torch.bfloat16 == cached.tower.dtype
    same(model.fused.run_towers(batch_of(model, data)), features)


# ---------------------------------------------------------------------- how it is filled


def counted(model: MatchStage) -> list[int]:
    """How many images the tower is given in each call from now on."""
    calls: list[int] = []
    run_towers = model.fused.run_towers

    def counting(batch: VLMBatch) -> TowerFeatures:
        calls.append(len(batch.keys))
        return run_towers(batch)

    model.fused.__dict__["run_towers"] = counting
    return calls


def test_the_tower_is_given_every_image_once_however_often_it_is_asked_for(data, tmp_path):
    model = open_model(data, tmp_path)
    calls = counted(model)
    images = data.images("train", "test")
    shown = {image.path for image in images}
    CachedTowers(tmp_path / "cache", model.fused, model.batcher).fill(images, workers=0)
    assert sum(calls) == len(shown) == len(images)
    calls.clear()
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    cached.fill(images, workers=0)
    cached.fill(data.images("train"), workers=0)
    assert calls == []
    new = {image.path for image in data.images("val")} - shown
    cached.fill(data.images("val"), workers=0)
    assert sum(calls) == len(new)


def test_killed_in_the_middle_it_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    model, images = open_model(data, tmp_path), data.images("train", "test")

    def dies() -> None:
        cached, kept = CachedTowers(tmp_path / "cache", model.fused, model.batcher), []
        keep = cached._keep

        def keep_some(batch: VLMBatch) -> None:
            if len(kept) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            keep(batch)
            kept.append(batch)

        cached.__dict__["_keep"] = keep_some
        cached.fill(images, workers=0)

    process = forked(dies)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    calls = counted(model)
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    assert len(cached.tower) == 12
    assert cached.fill(images, workers=0) == [] and sum(calls) == len(images) - 12
    same(model.fused.run_towers(batch_of(model, data)), cached.run_towers(batch_of(model, data, decode=False)))


def test_two_processes_share_what_is_missing_whichever_comes_first(data, tmp_path, monkeypatch):
    """Of an interrupted filling all that one of them had is there. The second starts when the first has kept its part
    already, and must not share out what is left again."""
    model, images = open_model(data, tmp_path), data.images("train", "test")
    CachedTowers(tmp_path / "cache", model.fused, model.batcher).fill(images[::2], workers=0)
    missing = [number for number, image in enumerate(images) if image.path not in {i.path for i in images[::2]}]
    calls = counted(model)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    agreed = iter(([missing], [[], []], [missing], [[], []]))  # what is missing, and what could not be kept
    monkeypatch.setattr(module, "from_all_ranks", lambda own: next(agreed))
    for process in (0, 1):
        monkeypatch.setattr(module, "rank", lambda process=process: process)
        cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
        cached.fill(images, workers=0)
        assert sum(calls) == (len(missing) + 1) // 2 if process == 0 else len(missing)
    assert not any(cached._lacks(image) for image in images)


BOXES = [(0.0, 0.0, 20.0, 20.0), (10.0, 5.0, 30.0, 25.0), None]


@pytest.mark.parametrize("together", [False, True])
def test_two_boxes_of_an_image_are_two_crops_of_one_image(together, data, tmp_path):
    model = open_model(data, tmp_path)
    path = next(image.path for image in data.images("train") if image.instances[0].category == "pet")
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    pets = [Instance("pet", box) for box in BOXES]
    several = [KeptImage(path, tuple(pets))] if together else [KeptImage(path, (pet,)) for pet in pets]
    cached.fill(several, workers=0)
    assert len(cached.tower) == 1 and len(cached.experts["pet"]) == 3 and len(cached.experts["object"]) == 0
    assert cached.fill(several, workers=0) == [] and len(cached.experts["pet"]) == 3


@pytest.mark.parametrize("patch_tokens", [False, True], ids=["vector", "patches"])
def test_several_instances_are_kept_as_they_are_and_what_is_not_detected_as_nothing(patch_tokens, data, tmp_path):
    """Of one image: a box, the only detection, and an instance that the detector does not find."""
    model = open_model(data, tmp_path, detector=Corner(), patch_tokens=patch_tokens)
    path = next(image.path for image in data.images("train") if image.instances[0].category == "pet")
    instances = (Instance("pet"), Instance("pet", BOXES[1]), Instance("pet"), Instance("object", BOXES[0]))
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    calls = counted(model)
    for _ in range(2):
        assert cached.fill([KeptImage(path, instances)], workers=0) == []
    assert calls == [1] and len(cached.experts["pet"]) == 3 and len(cached.experts["object"]) == 1

    def batch(decode: bool) -> VLMBatch:
        (image,), keys = ImageReader(decode).open([path])
        content = [{"type": "image", "image": image}, {"type": "text", "text": "Which pet?"}]
        example = Example([{"role": "user", "content": content}], "[Pet 1]", "it", keys, (instances,))
        return collate(model.batcher, [example], with_pixels=decode)

    assert batch(True).experts["pet"].absent == (batch(False).experts["pet"].keys[2],)
    found = cached.run_towers(batch(False))
    same(model.fused.run_towers(batch(True)), found)
    assert len(found.experts["pet"].vectors) == 2


def test_what_cannot_be_kept_is_returned(data, tmp_path):
    model, images = open_model(data, tmp_path), data.images("test")
    images[0].path.write_bytes(images[0].path.read_bytes()[:-200])
    images[1].path.unlink()
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    for _ in range(2):
        assert cached.fill(images, workers=0) == [images[0].path, images[1].path]
    assert len(cached.tower) == len(images) - 2


def test_an_image_that_was_not_kept_is_an_error(data, tmp_path):
    model = open_model(data, tmp_path)
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    cached.fill(data.images("val"), workers=0)
    batch = batch_of(model, data, decode=False)
    with pytest.raises(ValueError, match="images of a batch are not in the feature cache .* Run again") as raised:
        cached.run_towers(batch)
    assert all(image.path in str(raised.value) for c in batch.items for image in (c.query, *c.gallery))


def test_images_of_any_item_that_were_not_kept_are_named(data, tmp_path):
    model = open_model(data, tmp_path)
    cached = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    batch = batch_of(model, data, decode=False)
    shown = ("a.jpg", "b.jpg", "c.jpg", "a.jpg", "d.jpg", "e.jpg", "c.jpg")
    with pytest.raises(ValueError, match="are among:") as raised:
        cached.run_towers(replace(batch, image_names=shown))
    named = str(raised.value).partition("are among:")[2].split()
    assert named == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], "each once"


# ---------------------------------------------------------------------- whose cache it is


def folders(cached: CachedTowers) -> dict[str, Path]:
    return {"tower": cached.tower.folder, **{name: cache.folder for name, cache in cached.experts.items()}}


class Corner:
    """Finds something in the upper left."""

    def __init__(self, score: float = 1.0) -> None:
        self.score = score

    def __call__(self, image: Any) -> list[Detection]:
        return [Detection("cat", (0.0, 0.0, image.width / 2, image.height / 2), self.score)]


def pooled(pool: str, **transform: Any) -> TimmEncoder:
    torch.manual_seed(0)
    encoder = TimmEncoder("mobilenetv3_small_050", pretrained=False, pool=pool)
    encoder.transform = replace(encoder.transform, **transform)
    return encoder.requires_grad_(False)


def test_detectors_of_other_settings_have_other_caches(data, tmp_path):
    found = [
        folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["pet"]
        for model in (open_model(data, tmp_path, detector=Corner(score)) for score in (0.9, 0.8, 0.9))
    ]
    assert found[0] == found[2] != found[1]


def test_whatever_changes_an_experts_features_is_in_its_key(data, tmp_path, monkeypatch):
    """Of the same weights: how it pools, its transform, the category's margin."""
    model = open_model(data, tmp_path)
    found = []
    plain = replace(model.batcher.crops["pet"], margin=0.0)
    for expert in (
        pooled("avg"),
        pooled("max"),
        pooled("avg", interpolation="bilinear"),
        pooled("avg", mean=(0, 0, 0)),
    ):
        model.fused.experts["pet"] = expert
        found.append(folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["pet"])
    model.fused.experts["pet"] = pooled("avg")
    assert folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["pet"] == found[0]
    for margin in (0.0, 0.3):
        model.batcher.crops["pet"] = replace(plain, margin=margin)
        found.append(folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["pet"])
    assert len(set(found)) == 5 + (found[0] not in found[4:])


def test_which_layer_of_the_tower_counts_is_in_its_key(data, tmp_path):
    model, found = open_model(data, tmp_path, vlm=tiny_folder("llava")), []
    for layer in (-2, -1):
        model.fused.vlm.config.vision_feature_layer = layer
        found.append(folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["tower"])
    model.fused.vlm.config.text_config.rms_norm_eps = 0.1
    again = folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))["tower"]
    assert found[0] != found[1] == again, "the language model has no part in it"


CHANGES = {
    "nothing": ({}, set()),
    "base": ({"vlm": base(1)}, {"tower"}),
    "type": ({"dtype": "bfloat16"}, {"tower"}),
    "resolution": ({"max_tokens": 9}, {"tower"}),
    "expert": ({"experts": EXPERTS | {"pet": "general_mobilenetv3s050.world"}}, {"pet"}),
    "patch tokens": ({"patch_tokens": True}, {"pet", "object"}),
    "detector": ({"detector": Corner()}, {"pet", "object"}),
    "another detector": ({"detector": Corner(0.9)}, {"pet", "object"}),
    "adapter": ({"before_projector": False}, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tower_has_another_cache_and_nothing_else_has(change, data, tmp_path):
    options, expected = CHANGES[change]
    one, other = (
        folders(CachedTowers(tmp_path / "cache", model.fused, model.batcher))
        for model in (open_model(data, tmp_path), open_model(data, tmp_path, **options))
    )
    assert {name for name in one if one[name] != other[name]} == expected


def test_training_leaves_the_cache_valid(data, tmp_path):
    """The projector, which lies inside the tower's module, trains; the features before it stay what they are."""
    model = stage(cache=str(tmp_path / "cache"))
    trainer(tmp_path).fit(model, data)
    before = folders(model.towers)
    trained = CachedTowers(tmp_path / "cache", model.fused, model.batcher)
    assert folders(trained) == before and not trained._lacks(data.images("train")[0])


@pytest.mark.parametrize(
    ("pattern", "part"), [("fused.vlm.model.visual.blocks.0", "vision tower"), ("fused.experts.pet", "experts")]
)
def test_a_tower_that_trains_has_no_cache(pattern, part, data, tmp_path):
    model = stage(cache=str(tmp_path / "cache"), unfreeze=[pattern])
    with pytest.raises(ValueError, match=f"The {part} would train .* set model.cache to null"):
        trainer(tmp_path).fit(model, data)


def test_a_family_with_deepstack_has_no_cache(data, tmp_path):
    model = stage(vlm=tiny_folder("qwen3_vl"), cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="qwen3_vl feeds DeepStack features .* Set model.cache to null"):
        trainer(tmp_path).fit(model, data)
