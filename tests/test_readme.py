"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest

from recipes.expert_pet import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    re.sub(r"\s#.*", "", line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python -m recipes.expert_pet")
]


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(example, names)
    assert names["embedding"].shape == (1, names["expert"].embed_dim)
    assert abs(float(names["embedding"].norm()) - 1) < 1e-5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data:\n  workers: 1\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(command)[3:], "--print_config"])
    assert not end.value.code, capsys.readouterr().err


def test_there_are_commands():
    assert len(COMMANDS) >= 8


def test_the_tree_shows_every_room():
    for room in ("zoo", "experts", "fusion", "recipes", "checkpoints", "tests"):
        assert (ROOT / room).is_dir() and f"\n{room}/ " in README
