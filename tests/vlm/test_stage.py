"""VLMStage: what trains, and parts that cannot be."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from fusion import AdditiveFusion, CrossAttentionFusion
from tests.vlm.rig import (
    EXPERTS,
    attached,
    base,
    data_in,
    first_batch,
    fitted,
    pets_and_objects,
    stage,
    trainer,
)
from zoo.module import Optim

TRAINED = ("fused.projector.", "fused.adapters.")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


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
