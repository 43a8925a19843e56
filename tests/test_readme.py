"""What the READMEs show people to type works."""

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import recipes.__main__
import zoo

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(
        page
        for room in ("zoo", "experts", "fusion", "recipes", "checkpoints")
        for page in (ROOT / room).rglob("README.md")
    ),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    part.strip()
    for page in sorted(PAGES)
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for line in block.replace("\\\n", " ").splitlines()
    for part in re.sub(r"\s#.*", "", line).split(" && ")
]
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("python -m recipes")))
EXPERTS = ("expert_reid", "expert_face", "expert_pet", "expert_object")


class Understood(Exception):
    """Raised in place of the work that a command line asks for."""


def recipe_of(command: str) -> str:
    return command.split()[2].removeprefix("recipes").removeprefix(".")


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe that a command names read its flags, and do nothing else.

    Raises:
        SystemExit: of a status other than 0, the recipe refuses them.
    """
    recipe, words = recipe_of(command), shlex.split(command)[3:]
    if recipe == "":
        assert not words, "the list of the recipes takes no flags"
    elif recipe in ("zoo", "conversations", "ablate_fusion"):
        import_module(f"recipes.{recipe}").parser().parse_args(words)
    elif recipe == "speed":
        stop_after_parsing(monkeypatch)
        with pytest.raises(Understood):
            import_module("recipes.speed.__main__").main(words)
    else:
        with pytest.raises(SystemExit) as end:
            import_module(f"recipes.{recipe}").main([*words, "--print_config"])
        if end.value.code:
            raise end.value


def stop_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each topic of `recipes.speed` where its own parser has taken all flags."""
    import argparse

    understand: Callable = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *args, **kwargs) -> argparse.Namespace:
        options = understand(self, *args, **kwargs)
        if self.prog.split()[-1] != "recipes.speed":
            raise Understood
        return options

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands take for granted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data:\n  workers: 1\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(example, names)
    assert names["embedding"].shape == (1, names["expert"].embed_dim)
    assert abs(float(names["embedding"].norm()) - 1) < 1e-5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, place, monkeypatch, capsys):
    try:
        parse(command, monkeypatch)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


@pytest.mark.parametrize(
    "command",
    [
        "python -m recipes.expert_reid fit --model.protocol.rerankk true",
        "python -m recipes.zoo lst",
        "python -m recipes.zoo list pet_* --all",
        "python -m recipes.speed expert --step 3 --stps 3",
        "python -m recipes.speed retrieval --sizes markt",
        "python -m recipes.speed experts",
    ],
)
def test_a_misspelt_command_would_be_noticed(command, place, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parse(command, monkeypatch)
    assert end.value.code == 2, capsys.readouterr().err


def test_every_recipe_is_one_and_every_expert_is_shown():
    shown = [recipe_of(command) for command in COMMANDS]
    assert set(shown) - {""} <= set(recipes.__main__.recipes())
    assert set(EXPERTS) | {"zoo", ""} <= set(shown) and len(shown) >= 20


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_every_test_that_a_page_names_is_there():
    named = {path for page in PAGES for path in re.findall(r"tests/[\w/]+\.py", page.read_text(encoding="utf-8"))}
    assert len(named) > 10 and not [path for path in named if not (ROOT / path).is_file()]


def test_every_page_fits_two_screens():
    """What stands where one works is short; the top page takes three minutes."""
    for page in PAGES:
        if page.name == "README.md":
            assert len(page.read_text(encoding="utf-8").splitlines()) <= (150 if page.parent == ROOT else 120), page


def test_every_card_named_is_on_the_shelf():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"\b\w+_mobilenetv3s050\.world\b", text))
    assert len(named) >= 2 and named <= set(zoo.list_models())


def test_every_extra_asked_for_is_declared():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {extra.strip() for extras in re.findall(r"\.\[([\w,]+)\]", README) for extra in extras.split(",")}
    assert asked and asked <= set(declared)


def test_the_tree_shows_every_room():
    for room in ("zoo", "experts", "fusion", "recipes", "checkpoints", "tests"):
        assert (ROOT / room).is_dir() and f"\n{room}/ " in README
