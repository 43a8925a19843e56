"""The storeys of the world: scenes and identities above bodies and things, these above one renderer."""

import ast
from pathlib import Path

import pytest

import zoo.world

ROOT = Path(zoo.world.__file__).parent
MAY_IMPORT: dict[str, set[str]] = {"render": {"render"}, "bodies": {"bodies", "render"}, "things": {"things", "render"}}


@pytest.mark.parametrize("storey", list(MAY_IMPORT))
def test_a_storey_imports_itself_and_lower_ones_only(storey: str) -> None:
    modules = sorted((ROOT / storey).glob("*.py"))
    assert len(modules) > 5
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            own = [name.split(".") for name in names if name.split(".")[0] == "zoo"]
            assert all(name[1] == "world" and name[2] in MAY_IMPORT[storey] for name in own), f"{module}: {names}"
