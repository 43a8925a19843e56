"""The import rule: which room may know of which, and that `import zoo` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "zoo": set(),
    "experts": {"zoo"},
    "fusion": {"zoo"},
    "recipes": {"zoo", "experts", "fusion"},
}
# Where a module is chosen by a name: the lazy names of a package's `__init__.py`, readers, and
DYNAMIC = {
    "zoo/registry.py",  # the class that a card names
    "zoo/world/worker.py",  # the world class that its own parent process names
}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Top-level names that a module imports, also inside functions; a relative import stays in its room."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module.split(".")[0])
    return names


def dynamic(source: str) -> set[str]:
    """Calls of a module that import by name or run text."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    attributes = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    return names & {"import_module", "__import__", "exec", "eval"} | attributes & {"import_module"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rule(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    siblings = set(MAY_IMPORT) - {room} - MAY_IMPORT[room]
    assert not imported(path.read_text()) & siblings, f"{room} must not import these"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_registry_readers_and_lazy_names_import_by_name(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in DYNAMIC and path.name != "__init__.py":
        assert not dynamic(path.read_text())


def test_the_checks_see_what_they_are_for() -> None:
    source = "def f():\n    from experts.pet import X\n    import fusion.concat as c\n    from . import zoo"
    assert imported(source) == {"experts", "fusion"}
    assert dynamic("import importlib\nimportlib.import_module(name)") == {"import_module"}
    assert dynamic("eval(text)") == {"eval"}
    assert not dynamic("model.eval()")


def test_no_drawer_for_everything() -> None:
    assert not [path for path in FILES if path.stem in {"util", "utils", "helpers", "misc", "common"}]


def test_every_package_folder_is_a_package() -> None:
    """A folder without `__init__.py` would miss type checks, and could merge with a user's folder."""
    assert not [path.parent for path in FILES if not (path.parent / "__init__.py").is_file()]


def test_import_zoo_is_light() -> None:
    code = (
        "import sys, zoo\n"
        "zoo.list_models(); zoo.Card; zoo.load\n"
        "print(*sorted({'torch', 'lightning', 'transformers', 'timm', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
