"""List the recipes: `python -m recipes`."""

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table


def recipes(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Runnable module -> first line of its docstring, read without importing anything.

    A module is runnable when it ends in `if __name__ == "__main__":`, a package when its `__main__.py` does.
    """
    found = {}
    for path in sorted([*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__main__.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body):
            name = path.parent.name if path.stem == "__main__" else path.stem
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def main() -> None:
    table = Table("recipe", "what it does", box=None)
    for name, line in recipes().items():
        table.add_row(f"python -m recipes.{name}", line)
    Console().print(table)


if __name__ == "__main__":
    main()
