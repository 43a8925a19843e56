"""LoRA: which layers it adapts, that it changes nothing untrained, and what a run with it trains and keeps."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tests.vlm.colours import COLOURS, WhichColour, squares
from tests.vlm.rig import attached, base, data_in, fitted, pets_and_objects, stage, trainer
from tests.vlm.tiny import FAMILIES, tiny_folder
from zoo.module import Optim
from zoo.vlm.data import TaskData
from zoo.vlm.families import family_of
from zoo.vlm.lora import LoRA
from zoo.vlm.match import MatchStage

SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


def adapted(model: MatchStage) -> dict[str, LoraLayer]:
    """Path in the model of transformers -> layer with an update."""
    return {name: module for name, module in model.fused.vlm.named_modules() if isinstance(module, LoraLayer)}


# ---------------------------------------------------------------------- where


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layers_of_the_language_model_are_adapted_and_no_others(family):
    bare = stage(vlm=tiny_folder(family), experts=None, fusion=None)
    bare.configure_model()
    linear = {
        name
        for name, module in bare.fused.vlm.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.language_model.layers.")
    }
    assert {name.split(".")[-1] for name in linear} == SEVEN and len(linear) == 2 * 7
    model = stage(vlm=tiny_folder(family), experts=None, fusion=None, lora=LoRA(rank=2))
    model.configure_model()
    assert set(adapted(model)) == linear
    tower = family_of(model.fused.vlm.config).tower
    assert not any(name.startswith(f"{tower}.") for name in adapted(model))
    names = {name for name in model.component_state() if not name.startswith("fused.projector.")}
    assert names == {f"fused.vlm.{name}.lora_{side}.default.weight" for name in linear for side in "AB"}
    kept = {re.sub(r"\.base_layer\b", "", name) for name in model.state_dict() if "lora_" not in name}
    assert kept == set(bare.state_dict()), "paths stay as they were"


@pytest.mark.parametrize(
    ("targets", "count"), [(["q_proj", "v_proj"], 4), (r".*language_model\.layers\.1\..*_proj", 7)]
)
def test_layers_can_be_named(targets, count):
    model = stage(vlm=tiny_folder("llava"), experts=None, fusion=None, lora=LoRA(rank=3, targets=targets))
    model.configure_model()
    found = [name for name in adapted(model) if "language_model" in name]
    assert len(found) == count == len(adapted(model)), "none of the vision tower, whose layers have the same names"
    ranks = {layer.lora_A["default"].weight.shape[0] for layer in adapted(model).values()}
    assert ranks == {3}


@pytest.mark.parametrize(("lora", "message"), [(LoRA(targets=["no_proj"]), "no_proj"), (LoRA(rank=0), "`r` should be")])
def test_settings_that_fit_nothing_are_refused(lora, message):
    with pytest.raises(ValueError, match=message):
        stage(experts=None, fusion=None, lora=lora).configure_model()


def test_updates_are_in_float32_whatever_the_model_is_in():
    model = stage(experts=None, fusion=None, lora=LoRA(rank=2), dtype="bfloat16")
    model.configure_model()
    types = {name.split(".")[-3]: p.dtype for name, p in model.named_parameters() if "lora_" in name}
    assert types == {"lora_A": torch.float32, "lora_B": torch.float32}
    assert model.fused.vlm.lm_head.weight.dtype == torch.bfloat16


# ---------------------------------------------------------------------- what it computes


def squares_in(folder: Path, **options: Any) -> TaskData:
    made = squares(folder, train=8, test=4)
    return TaskData([WhichColour(made)], **{"batch_size": 4, "eval_batch_size": 4, "workers": 0, **options})


def option_scores(model: MatchStage, data: TaskData) -> Tensor:
    with torch.no_grad():
        batch = next(iter(data.test_dataloader()[0]))
        return model.option_scores(batch, model.run_towers(batch), [list(COLOURS)] * len(batch.items))


@pytest.mark.parametrize("family", ["small", *FAMILIES])
def test_untrained_updates_change_nothing(family, tmp_path):
    vlm, found = base() if family == "small" else tiny_folder(family), []
    for lora in (None, LoRA(rank=2, dropout=0.5)):
        data = squares_in(tmp_path)
        model = attached(stage(vlm=vlm, experts=None, fusion=None, lora=lora), data, tmp_path).eval()
        found.append(option_scores(model, data))
    assert torch.equal(*found)


def test_an_update_is_the_product_of_its_matrices_times_alpha_over_rank(tmp_path):
    """Of one layer, by hand."""
    model = stage(experts=None, fusion=None, lora=LoRA(rank=2, alpha=6.0))
    model.configure_model()
    layer = model.fused.vlm.model.language_model.layers[0].mlp.up_proj
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    second.data.normal_()
    inputs = torch.randn(5, first.shape[1])
    with torch.no_grad():
        expected = layer.base_layer(inputs) + 6.0 / 2 * inputs @ first.mT @ second.mT
        torch.testing.assert_close(layer(inputs), expected)


def test_dropout_is_active_in_training_only(tmp_path):
    data = squares_in(tmp_path)
    model = attached(stage(experts=None, fusion=None, lora=LoRA(rank=2, dropout=0.5)), data, tmp_path)
    for layer in adapted(model).values():
        layer.lora_B["default"].weight.data.normal_()
    model.train()
    assert not torch.equal(option_scores(model, data), option_scores(model, data))
    assert not any(module.training for module in model.fused.vlm.model.visual.modules())
    model.eval()
    assert torch.equal(option_scores(model, data), option_scores(model, data))
    certain = attached(stage(experts=None, fusion=None, lora=LoRA(rank=2)), data, tmp_path).train()
    assert torch.equal(option_scores(certain, data), option_scores(certain, data))


# ---------------------------------------------------------------------- a run


@pytest.mark.parametrize("dora", [False, True])
def test_training_changes_the_updates_the_projector_and_the_adapters_only(dora, data_folder, tmp_path):
    model = stage(lora=LoRA(rank=2, dora=dora), optim=Optim(lr=1e-2, warmup=0))
    changed = fitted(model, data_in(data_folder), tmp_path)
    due = {
        name
        for name in model.state_dict()
        if "lora_" in name or name.startswith(("fused.projector.", "fused.adapters."))
    }
    assert changed == due == set(model.component_state())
    assert any("lora_magnitude" in name for name in due) == dora


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    """From within its first epoch, from the end of it and from within the second, with dropout."""

    def run(**options: Any) -> MatchStage:
        torch.manual_seed(3)
        model = stage(experts=None, fusion=None, lora=LoRA(rank=2, dropout=0.3), optim=Optim(lr=1e-2))
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(tmp_path, max_epochs=2, limit_val_batches=0, enable_checkpointing=True, callbacks=[keep])
        fit.fit(model, squares_in(tmp_path / "squares"), **options)
        assert torch.initial_seed() == 3, "a next run in this process starts from the same seed"
        return model

    whole = run().state_dict()
    kept = {step: torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"] for step in (1, 2, 3, 4)}
    assert any("lora_A" in name for name in kept[1]) and not any("base_layer" in name for name in kept[1])
    for step in (1, 2, 3):
        assert not any(torch.equal(tensor, whole[name]) for name, tensor in kept[step].items() if "lora_B" in name)
        resumed = run(ckpt_path=tmp_path / f"step={step}.ckpt").state_dict()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items()), step
