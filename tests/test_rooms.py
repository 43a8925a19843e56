"""The import rule: which package may import which, without a cycle, and that `import zoo` stays light."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "zoo": set(),
    "experts": {"zoo"},
    "fusion": {"zoo"},
    "recipes": {"zoo", "experts", "fusion"},
}
# Where a module is chosen by a name: a package's `__init__.py`, for lazy names, readers and fusion adapters, and
DYNAMIC = {
    "zoo/cards/registry.py",  # the class that a card names
    "zoo/world/worker.py",  # the world class that its own parent process names
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
each_file = pytest.mark.parametrize("path", SOURCES)


def imported(source: str) -> set[str]:
    """Top-level names that a module imports, also inside functions; a relative import stays in its package."""
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


@each_file
def test_import_rule(path: str) -> None:
    package = path.split("/")[0]
    siblings = set(MAY_IMPORT) - {package} - MAY_IMPORT[package]
    assert not imported(SOURCES[path]) & siblings, f"{package} must not import these"


@each_file
def test_only_the_registry_and_packages_import_by_name(path: str) -> None:
    if path not in DYNAMIC and Path(path).name != "__init__.py":
        assert not dynamic(SOURCES[path])


def test_the_files_that_may_import_by_name_do() -> None:
    assert all(dynamic(SOURCES[path]) for path in DYNAMIC)


def test_the_checks_find_what_they_are_for() -> None:
    source = "def f():\n    from experts.pet import X\n    import fusion.concat as c\n    from . import zoo"
    assert imported(source) == {"experts", "fusion"}
    assert dynamic("import importlib\nimportlib.import_module(name)") == {"import_module"}
    assert dynamic("eval(text)") == {"eval"}
    assert not dynamic("model.eval()")


# ---------------------------------------------------------------------- cycles


def imports_on_loading(source: str, package: str) -> Iterator[str]:
    """Dotted names that a module imports when it is loaded, those for type checking too; not inside functions.

    Args:
        source: of the module.
        package: that relative imports start from.
    """
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        match waiting.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = [package.rsplit(".", level - 1)[0]] if level else []
                yield from (".".join([*base, *filter(None, [module]), alias.name]) for alias in aliases)
            case node:
                waiting += ast.iter_child_nodes(node)


def file_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among them that it imports.

    Args:
        sources: path from the root, such as zoo/cards/__init__.py -> source.
    """
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        graph[module] = set()
        for name in imports_on_loading(sources[path], package):
            while name and name not in modules:  # what is imported from a module is no module itself
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {"", module}
    return graph


def package_graph(files: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same of packages, each the first two parts of a name: zoo.data, zoo.module, fusion.concat."""
    packages: dict[str, set[str]] = defaultdict(set)
    for module, targets in files.items():
        own = _package(module)
        packages[own] |= {_package(target) for target in targets} - {own}
    return dict(packages)


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def cycle_of(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle, its first name again at the end; [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycle_between_files() -> None:
    assert cycle_of(file_graph(SOURCES)) == []


def test_no_import_cycle_between_packages() -> None:
    assert cycle_of(package_graph(file_graph(SOURCES))) == []


PLANTED = {
    "from zoo.data.index import Index": True,
    "import zoo.data.index": True,
    "from zoo.data import index as other": True,
    "from ..data.index import Index": True,
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo.data.index import Index": True,
    "try:\n    import zoo.data.index\nexcept ImportError:\n    pass": True,
    "class A:\n    from zoo.data.index import Index": True,
    "def f():\n    from zoo.data.index import Index": False,
    "import zoo.data.indexes": False,
    "import data.index": False,
}


@pytest.mark.parametrize("statement", PLANTED)
def test_a_planted_cycle_is_found(statement: str) -> None:
    """Three files in a circle, closed by the statement or not."""
    sources = {
        "zoo/data/__init__.py": "",
        "zoo/cards/__init__.py": "",
        "zoo/data/index.py": "import os\nfrom zoo.data.files import read",
        "zoo/data/files.py": "from zoo.cards.card import Card",
        "zoo/cards/card.py": statement,
    }
    cycle = cycle_of(file_graph(sources))
    circle = {"zoo.data.index", "zoo.data.files", "zoo.cards.card"} if PLANTED[statement] else set()
    assert set(cycle) == circle and cycle[:1] == cycle[-1:]


def test_a_planted_cycle_of_packages_without_one_of_files_is_found() -> None:
    sources = {
        "zoo/data/index.py": "from zoo.cards.card import Card",
        "zoo/data/files.py": "",
        "zoo/cards/card.py": "",
        "zoo/cards/store.py": "from zoo.data.files import read",
    }
    files = file_graph(sources)
    assert cycle_of(files) == [] and set(cycle_of(package_graph(files))) == {"zoo.data", "zoo.cards"}


# ---------------------------------------------------------------------- model and data


def reaches(source: str) -> list[int]:
    """Lines in which a module reaches for the model or the data through a trainer, instead of being connected to
    it, see `zoo.module.Connect`."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return [node.lineno for node in nodes if node.attr in ("datamodule", "lightning_module")]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith(("zoo/", "experts/"))])
def test_model_and_data_do_not_reach_for_each_other_through_the_trainer(path: str) -> None:
    assert not reaches(SOURCES[path])


def test_a_planted_reach_is_found() -> None:
    assert reaches("size = 1\nsize = self.trainer.datamodule.size") == [2]
    assert reaches("def f(self):\n    return self.trainer.lightning_module.batcher\n") == [2]
    assert not reaches("trainer.fit(model, datamodule=data)")


# ---------------------------------------------------------------------- files


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
