"""An adapter of another project: its class alone is enough for a recipe, a training, a card and an ablation."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import fusion
import zoo
from recipes.ablate_fusion import choices_of
from recipes.cli import parse
from recipes.vlm_stage1 import RECIPE
from tests.vlm.rig import data_of, galleries, rows, stage, trainer
from zoo.cards import registry
from zoo.contracts import FusionAdapter, FusionVariant
from zoo.module import Optim
from zoo.vlm.match import MatchData, MatchStage


class ShiftFusion(FusionAdapter):
    """Adds the mean of an image's identities, projected, to every token.

    Args:
        token_dim: D, width of an image token.
        identity_dim: E, width of an identity vector.
        bias: of the projection.
        gate: multiply the update by a scalar that is learned from 0.
    """

    variants = {"shift": FusionVariant({"bias": True}), "shift_linear": FusionVariant({"bias": False})}

    def __init__(self, token_dim: int, identity_dim: int, bias: bool = True, gate: bool = True) -> None:
        super().__init__(token_dim, identity_dim, gate)
        self.projection, self.bias = nn.Linear(identity_dim, token_dim, bias=bias), bias

    def init_args(self) -> dict[str, Any]:
        plain = {"token_dim": self.token_dim, "identity_dim": self.identity_dim}
        return plain | {"bias": self.bias, "gate": self.gate is not None}

    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, None]:
        mean = identity.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return self.projection(mean)[:, None].expand_as(tokens), None


@pytest.fixture
def registered() -> Iterator[None]:
    """A card may name the class, until the end of the test."""
    with patch.dict(registry._registered):
        zoo.register(ShiftFusion)
        yield


def test_its_class_and_its_variants_are_known() -> None:
    assert ShiftFusion in fusion.adapters() and FusionAdapter not in fusion.adapters()
    ours = {name: variant for name, (adapter, variant) in fusion.variants().items() if adapter is ShiftFusion}
    assert ours == ShiftFusion.variants
    own = {fusion.AdditiveFusion, fusion.ConcatFusion, fusion.CrossAttentionFusion}
    assert own == {adapter for adapter in fusion.adapters() if adapter.__module__.startswith("fusion.")}


def test_the_command_line_knows_it_by_its_short_name() -> None:
    flags = ["fit", "--model.fusion", "ShiftFusion", "--model.fusion.bias", "false"]
    found = parse(MatchStage, MatchData, RECIPE, flags)["model"]["fusion"]
    assert found == {"class_path": f"{__name__}.ShiftFusion", "init_args": {"bias": False, "gate": True}}


def test_it_trains_and_comes_back_with_what_it_has_learned(tmp_path: Path, registered: None) -> None:
    data = data_of(galleries(tmp_path / "pet", "pet", [*rows("train", 8), *rows("test", 4)]))
    model = stage(fusion=ShiftFusion, optim=Optim(lr=0.01))
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, data)
    adapter = model.fused.adapters["pet"]
    assert isinstance(adapter, ShiftFusion) and adapter.gate is not None and adapter.gate != 0
    trainer(tmp_path).test(model, data, verbose=False)
    model.save_component(tmp_path / "stage", name="it.world", recipe="", scores=model.scores)
    assert zoo.card(tmp_path / "stage").init["fusion"]["class"] == f"{__name__}.ShiftFusion"
    again = zoo.load(tmp_path / "stage")
    batch = next(iter(data.test_dataloader()[0]))
    options = [["[Pet 1]", "[Pet 2]", "[Pet 3]"]] * len(batch.items)
    one, other = (each.option_scores(batch, each.run_towers(batch), options) for each in (model.eval(), again))
    assert torch.equal(one, other)


def test_a_card_that_names_it_is_refused_until_it_is_registered(tmp_path: Path) -> None:
    adapter = ShiftFusion(8, 6)
    with patch.dict(registry._registered):
        zoo.register(ShiftFusion)
        zoo.save(adapter, tmp_path / "adapter")
    with pytest.raises(zoo.CardError, match=re.escape("zoo.register(cls)")):
        zoo.load(tmp_path / "adapter")


def test_an_ablation_compares_it_without_being_edited() -> None:
    model = parse(MatchStage, MatchData, RECIPE, ["fit"])["model"] | {"experts": {"pet": "pet_mobilenetv3s050.world"}}
    choices = choices_of(model, "general_mobilenetv3s050.world")["adapter"]
    assert next(iter(choices)) == "additive" and {"concat", "shift", "shift_linear"} <= set(choices)
    setting, patch_tokens = choices["shift_linear"]
    assert json.loads(setting.removeprefix("--model.fusion=")) == {
        "class_path": f"{__name__}.ShiftFusion",
        "init_args": {"bias": False, "gate": True},
    }
    assert patch_tokens == "--model.patch_tokens=false"
    flags = ["fit", setting, patch_tokens]
    assert parse(MatchStage, MatchData, RECIPE, flags)["model"]["fusion"]["init_args"] == {"bias": False, "gate": True}
