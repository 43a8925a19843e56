"""What is kept of a stage: checkpoints and cards hold what was trained, and another stage goes on from it."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from fusion import CrossAttentionFusion
from tests.vlm.colours import NameColour, WhichColour, squares
from tests.vlm.rig import EXPERTS, attached, base, data_in, fitted, pets_and_objects, stage, trainer
from zoo.cards import CardError
from zoo.categories import CATEGORIES, find_category
from zoo.module import Optim
from zoo.vlm.data import TaskData
from zoo.vlm.lora import LoRA
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.small.pretrain import PretrainStage

TRAINED = ("fused.projector.", "fused.adapters.")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


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
    "place": ({"before_projector": False}, "was trained with before_projector True, here it is False"),
    "patches": ({"patch_tokens": True}, "was trained with patch_tokens False, here it is True"),
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
    again = later(folder)
    expected = answers(model, data_folder, tmp_path)
    assert same(answers(again, data_folder, tmp_path), expected)
    assert again.vlm_name == base() and again.expert_names == EXPERTS and again.frozen_hashes() == model.frozen_hashes()
    assert again.lora == LORA and again.token_budget == (1, 64)
    further = later(folder, optim=Optim(lr=1e-2, warmup=0))
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


def test_what_earlier_stages_trained_is_kept_by_later_ones(trained, data_folder, tmp_path):
    """A later stage that freezes the projector and LoRA: its component alone answers as it does, and so does a third
    that starts from it, and the copy of a loaded one."""
    second = later(trained[1], freeze=["fused.projector", "*lora_*"], optim=Optim(lr=1e-2, warmup=0))
    moved = fitted(second, data_in(data_folder), tmp_path)
    assert moved and all(name.startswith("fused.adapters.") for name in moved)
    second.save_component(tmp_path / "second", name="second", recipe="")
    expected = answers(second.eval(), data_folder, tmp_path)
    assert not same(answers(trained[0], data_folder, tmp_path), expected)
    again = zoo.load(tmp_path / "second")
    assert isinstance(again, MatchStage)
    assert same(answers(again, data_folder, tmp_path), expected)
    assert same(answers(later(tmp_path / "second"), data_folder, tmp_path), expected)
    again.save_component(tmp_path / "copy", name="copy", recipe="")
    copy = zoo.load(tmp_path / "copy")
    assert isinstance(copy, MatchStage)
    assert same(answers(copy, data_folder, tmp_path), expected)


def test_the_statistics_of_an_expert_that_trains_are_kept(data_folder, tmp_path):
    model = stage(unfreeze=["fused.experts.pet"], optim=Optim(lr=1e-2, warmup=0))
    fitted(model, data_in(data_folder), tmp_path)
    kept = set(model.component_state())
    assert any(name.startswith("fused.experts.pet.") and name.endswith("running_mean") for name in kept)
    assert not any(name.startswith("fused.experts.object.") for name in kept)
    model.save_component(tmp_path / "it", name="it", recipe="")
    expected = answers(model.eval(), data_folder, tmp_path)
    again = zoo.load(tmp_path / "it")
    assert isinstance(again, MatchStage)
    assert same(answers(again, data_folder, tmp_path), expected)


REFUSED_STARTS = {
    "place": ({"before_projector": False}, "was trained with before_projector True, here it is False"),
    "patches": ({"patch_tokens": True}, "was trained with patch_tokens False, here it is True"),
    "expert": ({"experts": EXPERTS | {"pet": EXPERTS["object"]}}, "init_from .* was trained with another pet than obj"),
    "fewer": ({"experts": {"pet": EXPERTS["pet"]}}, "was trained with an expert for object"),
    "model": ({"vlm": base(1)}, "was trained with another vlm than .*base-1"),
    "adapter": (
        {"fusion": CrossAttentionFusion},
        "with fusion .*AdditiveFusion.* Set model.fusion to null",
    ),
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
