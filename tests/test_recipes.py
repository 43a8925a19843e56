"""Every recipe and every YAML that ships can at least be parsed, and is listed."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from experts.expert import Expert
from recipes.__main__ import recipes

CONFIGS = Path(__file__).parent.parent / "recipes/configs"
RUNNABLE = [name for name in recipes() if (CONFIGS / f"{name}.yaml").is_file()]


def test_every_recipe_is_listed_with_a_line():
    assert {"expert_reid", "expert_face", "expert_pet", "expert_object", "general", "zoo", "speed"} <= set(recipes())
    assert all(len(line) > 20 for line in recipes().values())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_understood(path, capsys):
    """A recipe's own by the recipe, a variant by the recipe whose name it begins with."""
    family = next((name for name in RUNNABLE if name.startswith(f"{path.stem}_")), "expert_pet")
    recipe = max((name for name in RUNNABLE if path.stem.startswith(name)), key=len, default=family)
    with pytest.raises(SystemExit) as end:
        import_module(f"recipes.{recipe}").main(["fit", "-c", str(path), "--print_config"])
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    printed = yaml.safe_load(captured.out)
    given = yaml.safe_load(path.read_text())
    assert printed["name"] == given.get("name", printed["name"])
    assert all(printed["model"][key] == value for key, value in given.get("model", {}).items() if key == "backbone")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("expert_*_*.yaml")), ids=lambda path: path.stem)
def test_the_model_of_a_variant_can_be_built_and_every_part_has_its_rate(path, capsys):
    """With random weights, since the published ones come from a hub; head and layers as training would have them."""
    recipe = "_".join(path.stem.split("_")[:2])
    with pytest.raises(SystemExit):
        import_module(f"recipes.{recipe}").main(["fit", "-c", str(path), "--model.pretrained=false", "--print_config"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Expert, "model")
    config = parser.parse_object({"model": yaml.safe_load(capsys.readouterr().out)["model"]})
    expert = parser.instantiate(config).model
    expert.head = expert.make_head(100, expert.encoder.embed_dim)
    groups = {group["name"]: group for group in expert.parameter_groups()}
    assert sum(len(group["params"]) for group in groups.values()) == sum(p.requires_grad for p in expert.parameters())
    if expert.optim.layer_decay is not None:
        assert len(groups) > 20 and min(group["lr"] for group in groups.values()) < 0.1 * expert.optim.lr
        assert {id(p) for p in expert.head.parameters()} <= {id(p) for p in groups["x10, decay"]["params"]}
    height, width = expert.transform.size
    assert expert.eval()(torch.zeros(1, 3, height, width)).shape == (1, expert.encoder.embed_dim)
