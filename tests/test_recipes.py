"""Every recipe and every YAML that ships can at least be parsed, and is listed."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from recipes.__main__ import recipes

CONFIGS = Path(__file__).parent.parent / "recipes/configs"
RUNNABLE = [name for name in recipes() if (CONFIGS / f"{name}.yaml").is_file()]


def test_every_recipe_says_what_it_does():
    assert {"expert_reid", "expert_face", "expert_pet", "expert_object", "general", "zoo", "speed"} <= set(recipes())
    assert all(len(line) > 20 for line in recipes().values())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_understood(path, capsys):
    """A recipe's own by the recipe, a variant by the recipe whose name it begins with."""
    recipe = max((name for name in RUNNABLE if path.stem.startswith(name)), key=len, default="expert_pet")
    with pytest.raises(SystemExit) as end:
        import_module(f"recipes.{recipe}").main(["fit", "-c", str(path), "--print_config"])
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    printed = yaml.safe_load(captured.out)
    given = yaml.safe_load(path.read_text())
    assert printed["name"] == given.get("name", printed["name"])
    assert all(printed["model"][key] == value for key, value in given.get("model", {}).items() if key == "backbone")
