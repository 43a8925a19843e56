"""VLMStage: what trains, what its checkpoints and cards hold, and how another stage goes on from it."""

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

import zoo
from fusion import AdditiveFusion, CrossAttentionFusion
from tests.vlm.colours import NameColour, WhichColour, squares
from tests.vlm.rig import EXPERTS, attached, base, data_in, first_batch, pets_and_objects, photos, stage, trainer
from zoo.cards import CardError
from zoo.categories import CATEGORIES, find_category
from zoo.data.images import read_image
from zoo.module import Optim
from zoo.vlm.batch import Example, Instance, VLMBatch
from zoo.vlm.cache.features import image_key
from zoo.vlm.cache.towers import CachedTowers, KeptImage
from zoo.vlm.data import TaskData
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.lora import LoRA
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.processor import Detection
from zoo.vlm.small.pretrain import PretrainStage

TRAINED = ("fused.projector.", "fused.adapters.")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


def copied(model: MatchStage) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fitted(model: MatchStage, data: MatchData, folder: Path, **options: Any) -> set[str]:
    """Train, and return the names of the tensors that have changed."""
    start: dict[str, Tensor] = {}
    model.on_train_start = lambda: start.update(copied(model))  # type: ignore[method-assign]
    trainer(folder, limit_val_batches=0, **options).fit(model, data)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}


# ---------------------------------------------------------------------- what trains


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fusion", [AdditiveFusion, CrossAttentionFusion, None])
def test_training_changes_projector_and_adapters_and_nothing_else(data_folder, tmp_path, fusion, before):
    experts = EXPERTS if fusion is not None else None
    model = stage(fusion=fusion, experts=experts, before_projector=before, optim=Optim(lr=1e-2, warmup=0))
    changed = fitted(model, data_in(data_folder), tmp_path)
    due = {name for name in model.state_dict() if name.startswith(TRAINED)}
    # A key's bias moves all scores of a softmax alike, so that it has no gradient.
    idle = {name for name in due if fusion is CrossAttentionFusion and "bias" in name}
    assert due - idle <= changed <= due and due
    assert sum(name.endswith(".gate") for name in changed) == len(experts or {})


def test_gates_have_a_group_of_their_own(data_folder, tmp_path):
    model = attached(stage(optim=Optim(lr=1e-4, weight_decay=0.1)), data_in(data_folder), tmp_path)
    gates = {id(adapter.gate) for adapter in model.fused.adapters.values()}
    groups = model.parameter_groups()
    (group,) = [g for g in groups if gates & {id(p) for p in g["params"]}]
    assert {id(p) for p in group["params"]} == gates and len(gates) == 2
    assert group["lr"] == pytest.approx(1e-2) and group["weight_decay"] == 0
    others = [g for g in groups if g is not group]
    assert {g["lr"] for g in others} == {1e-4} and {g["weight_decay"] for g in others} == {0.0, 0.1}


def test_what_is_named_trains_too_and_nothing_beside_it(data_folder, tmp_path):
    layer = "fused.vlm.model.language_model.layers.1"
    model = stage(unfreeze=[layer], optim=Optim(lr=1e-2, warmup=0))
    changed = fitted(model, data_in(data_folder), tmp_path)
    due = {name for name in model.state_dict() if name.startswith((*TRAINED, f"{layer}."))}
    idle = {name for name in due if name.endswith("k_proj.bias")}  # moves all scores of a softmax alike
    assert due - idle <= changed <= due and any(name.startswith(layer) for name in changed)
    assert set(model.component_state()) == due


def test_frozen_modules_stay_in_eval_mode_and_others_do_not():
    model = stage(unfreeze=["fused.vlm.model.language_model.layers.1"], freeze=["fused.adapters.pet"])
    model.configure_model()
    fused = model.fused
    first, second = fused.vlm.model.language_model.layers
    for mode in (True, False):
        model.train(mode)
        trains = (second, fused.projector, fused.adapters["object"])
        frozen = (first, fused.vlm.model.visual, fused.vlm.lm_head, *fused.experts.values(), fused.adapters["pet"])
        assert [module.training for root in trains for module in root.modules()] == [mode] * sum(
            len(list(root.modules())) for root in trains
        )
        assert not any(module.training for root in frozen for module in root.modules())
    assert not any(parameter.requires_grad for root in frozen for parameter in root.parameters())
    assert all(parameter.requires_grad for root in trains for parameter in root.parameters())


def test_tied_weights_are_frozen_and_unfrozen_by_any_of_their_names():
    for unfreeze in (["fused.vlm.lm_head"], ["fused.vlm.model.language_model.embed_tokens"]):
        model = stage(experts=None, fusion=None, unfreeze=unfreeze)
        model.configure_model()
        assert model.fused.vlm.lm_head.weight.requires_grad and model.fused.vlm.lm_head.training
        tied = {"fused.vlm.lm_head.weight", "fused.vlm.model.language_model.embed_tokens.weight"}
        assert {name for name in model.component_state() if not name.startswith(TRAINED)} == tied


def test_a_tower_that_trains_has_no_cache(data_folder, tmp_path):
    for option, name in (("fused.vlm.model.visual", "vision tower"), ("fused.experts.pet", "experts")):
        model = stage(cache=str(tmp_path / "cache"), unfreeze=[option])
        with pytest.raises(ValueError, match=f"The {name} would train while their features come from a cache"):
            trainer(tmp_path).fit(model, data_in(data_folder))


def test_gradient_checkpointing_computes_again_and_gives_the_same_gradients(data_folder, tmp_path):
    found = {}
    for again in (False, True):
        model = stage(gradient_checkpointing=again)
        batch = first_batch(model, data_in(data_folder), tmp_path)
        model.train()
        for adapter in model.fused.adapters.values():
            adapter.gate.data.fill_(0.5)
        calls: list[bool] = []
        layers = model.fused.vlm.model.language_model.layers
        for layer in layers:
            layer.self_attn.register_forward_pre_hook(lambda *_, c=calls: c.append(True))
        model.training_step(copy.deepcopy(batch), 0).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        found[again] = gradients, len(calls) / len(layers)
        assert not any(layer.self_attn.training for layer in layers), "dropout stays off"
        model.eval()
        calls.clear()
        with torch.no_grad():
            model.training_step(batch, 0)
        assert len(calls) == len(layers)
    assert found[False][1] == 1 and found[True][1] == 2
    for name, gradient in found[False][0].items():
        torch.testing.assert_close(found[True][0][name], gradient, msg=name)


def test_the_frozen_model_may_have_another_type_than_what_trains(data_folder, tmp_path):
    model = stage(dtype="bfloat16")
    losses = []
    model.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))  # type: ignore[method-assign]
    trainer(tmp_path, precision="bf16-mixed").fit(model, data_in(data_folder))
    assert len(losses) == 4 and all(loss < 20 for loss in losses)
    assert {p.dtype for p in model.fused.vlm.parameters()} == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if n.startswith(TRAINED)} == {torch.float32}


# ---------------------------------------------------------------------- what a checkpoint holds


@pytest.fixture(scope="module")
def checkpoint(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = trainer(folder)
    run.fit(stage(optim=Optim(lr=1e-2)), data_in(data_folder))
    run.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt"


def loaded(model: MatchStage, data: MatchData, checkpoint: Path) -> MatchStage:
    trainer(checkpoint.parent).validate(model, data, ckpt_path=checkpoint, verbose=False)
    return model


def test_a_checkpoint_holds_what_was_trained_and_no_more(data_folder, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    model = loaded(stage(), data_in(data_folder), checkpoint)
    state = model.state_dict()
    assert set(content["state_dict"]) == {name for name in state if name.startswith(TRAINED)}
    for name, tensor in content["state_dict"].items():
        assert torch.equal(tensor, state[name]), name
    assert set(content["frozen_hashes"]) == {"vlm", "pet", "object"} == set(model.frozen_hashes())
    trained = sum(tensor.nbytes for tensor in content["state_dict"].values())
    whole = sum(tensor.nbytes for tensor in state.values())
    # The optimiser keeps two numbers more for each that trains.
    assert checkpoint.stat().st_size < 3 * trained + 100_000 < whole


def changed(checkpoint: Path, folder: Path, change: Any) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content["state_dict"])
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


GATE = "fused.adapters.pet.gate"
MISFITS = {
    "misspelt": (lambda s: s.update({f"{GATE}s": s.pop(GATE)}), f"1 missing, such as {GATE}; 1 left over"),
    "missing": (lambda s: s.pop(GATE), f"1 missing, such as {GATE}"),
    "left over": (lambda s: s.update({"fused.adapters.cow.gate": s[GATE]}), "1 left over, such as fused.adapters.cow"),
    "shape": (lambda s: s.update({GATE: torch.zeros(2)}), "1 of another shape"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_refused(case, data_folder, checkpoint, tmp_path):
    change, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        loaded(stage(), data_in(data_folder), changed(checkpoint, tmp_path, change))


OTHERS = {
    "base": ({"vlm": base(1)}, "trained with another vlm than .*base-1"),
    "expert": ({"experts": EXPERTS | {"pet": EXPERTS["object"]}}, "trained with another pet than object_mobilenet"),
    "type": ({"dtype": "bfloat16"}, "model.dtype"),
    "without": ({"experts": {"pet": EXPERTS["pet"]}}, "trained with an expert for object, and model.experts names pet"),
    "none": ({"experts": None, "fusion": None}, "model.experts names none"),
    "more": ({"experts": EXPERTS | {"face": "face_mobilenetv3s050.world"}}, "missing, such as fused.adapters.face"),
    "adapter": ({"fusion": CrossAttentionFusion}, "missing.*left over"),
    "lora": ({"lora": LoRA()}, "missing, such as fused.vlm.model.language_model.*lora_A"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_other_frozen_parts_is_refused(case, data_folder, checkpoint):
    options, message = OTHERS[case]
    with pytest.raises(ValueError, match=message):
        loaded(stage(**options), data_in(data_folder), checkpoint)


def test_a_checkpoint_that_does_not_name_what_it_was_trained_with_is_refused(data_folder, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["frozen_hashes"]
    torch.save(content, tmp_path / "silent.ckpt")
    with pytest.raises(ValueError, match="does not name the model and experts"):
        loaded(stage(), data_in(data_folder), tmp_path / "silent.ckpt")


def test_a_checkpoint_of_another_crop_rule_is_refused(data_folder, checkpoint, monkeypatch):
    """The same expert would get other parts of the images."""
    rule = find_category("object")
    monkeypatch.setitem(CATEGORIES, "object", replace(rule, crop=replace(rule.crop, margin=0.4)))
    with pytest.raises(ValueError, match="trained with another object than"):
        loaded(stage(), data_in(data_folder), checkpoint)


def test_a_frozen_projector_is_not_kept_either(data_folder, tmp_path):
    model = stage(freeze=["fused.projector"], optim=Optim(lr=1e-2))
    run = trainer(tmp_path)
    run.fit(model, data_in(data_folder))
    run.save_checkpoint(tmp_path / "it.ckpt")
    assert all(n.startswith("fused.adapters.") for n in torch.load(tmp_path / "it.ckpt")["state_dict"])
    again = loaded(stage(freeze=["fused.projector"]), data_in(data_folder), tmp_path / "it.ckpt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_both_names_of_tied_weights_are_kept(tmp_path):
    """A small model's head is its embeddings: a checkpoint without one of the two would restore neither or half."""
    embeddings, head = "fused.vlm.model.language_model.embed_tokens.weight", "fused.vlm.lm_head.weight"
    made = squares(tmp_path, train=4, val=2)

    def data() -> TaskData:
        return TaskData([WhichColour(made), NameColour(made)], batch_size=4, eval_batch_size=4, workers=0)

    def model() -> PretrainStage:
        return PretrainStage(vlm=base(), frozen_tower=True, optim=Optim(lr=1e-2, warmup=0))

    trained, run = model(), trainer(tmp_path, limit_val_batches=0)
    run.fit(trained, data())
    state = trained.state_dict()
    assert trained.fused.vlm.lm_head.weight is trained.fused.vlm.model.language_model.embed_tokens.weight
    assert {embeddings, head} <= set(trained.component_state())
    assert not any(".visual." in name for name in trained.component_state())
    run.save_checkpoint(tmp_path / "it.ckpt")
    again = model()
    trainer(tmp_path).validate(again, data(), ckpt_path=tmp_path / "it.ckpt", verbose=False)
    fresh = model()
    fresh.configure_model()
    assert not torch.equal(state[head], fresh.state_dict()[head]), "it has learned something"
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert again.fused.vlm.lm_head.weight is again.fused.vlm.model.language_model.embed_tokens.weight


# ---------------------------------------------------------------------- cards


LORA = LoRA(rank=2, alpha=4.0, dropout=0.1)


@pytest.fixture(scope="module")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MatchStage, Path]:
    """A stage with experts and LoRA after an epoch of training, and the folder of its component."""
    folder = tmp_path_factory.mktemp("component")
    model = stage(lora=LORA, optim=Optim(lr=1e-2, warmup=0), min_tokens=1, max_tokens=64)
    run = trainer(folder, limit_val_batches=0)
    run.fit(model, data_in(data_folder))
    scores = run.test(model, data_in(data_folder), verbose=False)[0]
    assert scores["test/conversations"] == 6
    model.save_component(folder / "it", name="it.world", recipe="python -m recipes.vlm_stage1 fit", scores=model.scores)
    return model.eval(), folder / "it"


def answers(model: MatchStage, data_folder: Path, folder: Path) -> list[tuple[Tensor, list[str]]]:
    """Log-likelihoods of all options, and texts, for the batches of the test."""
    data = data_in(data_folder)
    attached(model, data, folder).eval()
    (task,), found = data.tasks, []
    with torch.no_grad():
        for batch in data.test_dataloader()[0]:
            features, texts = model.run_towers(batch), [task.options(item).texts for item in batch.items]
            found.append((model.option_scores(batch, features, texts), model.write(batch, features, texts[0])))
    return found


def same(one: Sequence[tuple[Tensor, list[str]]], other: Sequence[tuple[Tensor, list[str]]]) -> bool:
    return all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(one, other, strict=True))


def test_a_loaded_stage_answers_as_the_saved_one(trained, data_folder, tmp_path):
    model, folder = trained
    again = zoo.load(folder)
    assert isinstance(again, MatchStage) and not again.training and again.lora == LORA
    assert same(answers(model, data_folder, tmp_path), answers(again, data_folder, tmp_path))
    untrained = stage(lora=LORA)
    assert not same(answers(model, data_folder, tmp_path), answers(untrained, data_folder, tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_card_records_what_was_trained_on_what(trained, data_folder):
    model, folder = trained
    card = zoo.card(str(folder))
    assert card.name == "it.world" and card.class_path == "zoo.vlm.match.MatchStage"
    assert card.frozen == model.frozen_hashes() and set(card.frozen) == {"vlm", "pet", "object"}
    assert card.init["vlm"] == base() and card.init["experts"] == EXPERTS and card.init["lora"]["rank"] == 2
    assert card.init["fusion"]["class"].endswith("AdditiveFusion") and card.init["max_tokens"] == 64
    assert card.training_data == "pet 8 train, 3 val, 3 test; object 8 train, 3 val, 3 test"
    (score,) = card.scores
    assert score.values["accuracy"] == pytest.approx({str(k): v for k, v in model.scores.items()}["accuracy"], abs=1e-4)
    assert score.dataset == f"{card.training_data}, test" and "pet/accuracy" in score.values
    assert not any("tau" in name for name in score.values)
    files = {path.name for path in folder.iterdir()}
    assert files == {"card.yaml", "model.safetensors"}
    weights = sum(tensor.nbytes for tensor in model.component_state().values())
    assert weights <= (folder / "model.safetensors").stat().st_size < weights + 20_000


def test_a_card_whose_model_was_changed_is_refused(tmp_path):
    """The folder that it names holds another model by now."""
    shutil.copytree(base(), tmp_path / "base")
    model = stage(vlm=str(tmp_path / "base"), experts=None, fusion=None)
    model.configure_model()
    model.save_component(tmp_path / "it", name="it", recipe="")
    assert isinstance(zoo.load(tmp_path / "it"), MatchStage)
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(base(1), tmp_path / "base")
    with pytest.raises(CardError, match="it was trained with another 'vlm' than `init` in its card names"):
        zoo.load(tmp_path / "it")


# ---------------------------------------------------------------------- going on from another stage


def later(folder: Path, **options: Any) -> MatchStage:
    """A stage that starts from a component; all that is not given is the component's."""
    return stage(**({"vlm": None, "experts": None, "fusion": None, "init_from": str(folder)} | options))


def test_a_stage_goes_on_from_another_ones_result(trained, data_folder, tmp_path):
    """What it does not name is that of the other; before training it answers the same."""
    model, folder = trained
    again = later(folder, lora=LORA, min_tokens=1, max_tokens=64)
    expected = answers(model, data_folder, tmp_path)
    assert same(answers(again, data_folder, tmp_path), expected)
    assert again.vlm_name == base() and again.expert_names == EXPERTS and again.frozen_hashes() == model.frozen_hashes()
    further = later(folder, lora=LORA, min_tokens=1, max_tokens=64, optim=Optim(lr=1e-2, warmup=0))
    names = fitted(further, data_in(data_folder), tmp_path)
    assert names and not same(answers(further, data_folder, tmp_path), expected)
    assert {name for name in model.component_state() if "lora_B" in name} <= names


def test_what_the_other_stage_did_not_have_starts_anew(data_folder, checkpoint, tmp_path, caplog):
    first = loaded(stage(), data_in(data_folder), checkpoint)
    first.save_component(tmp_path / "it", name="it", recipe="")
    with caplog.at_level(logging.INFO, logger="zoo"):
        second = later(tmp_path / "it", lora=LORA)
        found = answers(second, data_folder, tmp_path)
    fresh = {name for name in second.component_state() if "lora_" in name}
    assert f"{len(fresh)} tensors are not in it and start anew, such as fused.vlm" in caplog.text and fresh
    assert all((second.state_dict()[name] == 0).all() for name in fresh if "lora_B" in name)
    for name, tensor in first.component_state().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert same(answers(first, data_folder, tmp_path), found), "updates that are zero change nothing"


REFUSED_STARTS = {
    "expert": ({"experts": EXPERTS | {"pet": EXPERTS["object"]}}, "init_from .* was trained with another pet than obj"),
    "fewer": ({"experts": {"pet": EXPERTS["pet"]}}, "was trained with an expert for object"),
    "model": ({"vlm": base(1)}, "was trained with another vlm than .*base-1"),
    "adapter": ({"fusion": CrossAttentionFusion, "lora": LORA}, r"of .* have no place here, such as fused.adapters"),
    "without lora": ({}, "have no place here, such as .*lora_.*Take its fusion, before_projector and lora"),
    "rank": ({"lora": LoRA(rank=3)}, "have no place here, such as .*lora_"),
}


@pytest.mark.parametrize("case", REFUSED_STARTS)
def test_a_result_of_other_parts_is_no_start(case, trained):
    options, message = REFUSED_STARTS[case]
    with pytest.raises(ValueError, match=message):
        later(trained[1], **options).configure_model()


def test_only_a_stage_is_a_start():
    with pytest.raises(ValueError, match="init_from: pet_mobilenetv3s050.world is a .*Name the `component` folder"):
        later(Path("pet_mobilenetv3s050.world"))


# ---------------------------------------------------------------------- several instances in an image


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


# ---------------------------------------------------------------------- parts that cannot be


def llama(folder: Path) -> str:
    AutoConfig.for_model("llama", hidden_size=32).save_pretrained(folder)
    return str(folder)


REFUSED = {
    "family": (lambda tmp: {"vlm": llama(tmp)}, "Unknown family 'llama'. Known: qwen2_vl"),
    "folder": (lambda tmp: {"vlm": str(tmp)}, "config.json is missing"),
    "nothing": (lambda tmp: {"vlm": None}, "model.vlm is null"),
    "category": (lambda tmp: {"experts": {"pett": EXPERTS["pet"]}}, "(?s)pett.*pet"),
    "card": (lambda tmp: {"experts": {"pet": "pet_mobilnet"}}, "pet_mobilnet"),
    "no encoder": (lambda tmp: {"experts": {"pet": base()}}, "experts.pet: .*VisionLanguageModel, no identity encoder"),
    "freeze": (lambda tmp: {"freeze": ["fused.projecter"]}, "freeze: .* names no parameter"),
    "unfreeze": (lambda tmp: {"unfreeze": ["fused.vlm.model.layers.9"]}, "unfreeze: .* names no parameter"),
    "budget": (lambda tmp: {"min_tokens": 9, "max_tokens": 4}, "leave no room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_cannot_be_are_refused_by_name(case, tmp_path):
    options, message = REFUSED[case]
    with pytest.raises((ValueError, KeyError), match=message):
        stage(**options(tmp_path)).configure_model()


def test_an_adapter_made_for_another_expert_names_the_widths_it_takes(data_folder, tmp_path):
    model = stage(fusion=lambda width, identity: AdditiveFusion(width, identity + 1))
    batch = first_batch(model, data_in(data_folder), tmp_path)
    width = next(iter(model.fused.experts.values())).embed_dim
    with pytest.raises(ValueError, match=rf"do not fit this AdditiveFusion: .*identity \(I, M, {width + 1}\)"):
        model.training_step(batch, 0)
