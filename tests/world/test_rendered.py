"""Datasets that are rendered: safe interruption, several writers, and a folder for every field."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import files_of
from tests.world.conftest import PETS, SCENES, SEARCH
from zoo.world.rendered import RenderedDataset, write_unit


@pytest.fixture(scope="module")
def root(prepared: Callable[[RenderedDataset], Path]) -> Path:
    return prepared(PETS)


def test_a_second_call_draws_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert PETS.prepare(root.parent, workers=2) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_every_field_names_another_folder() -> None:
    others = [
        replace(PETS, **change)
        for change in ({"seed": 4}, {"size": 48}, {"difficulty": 0.9}, {"views": 3}, {"val_share": 0.3})
    ]
    assert len({world.folder for world in [PETS, *others]}) == 6
    assert replace(PETS, difficulty=1).folder == replace(PETS, difficulty=1.0).folder


def test_a_killed_render_goes_on_where_it_was(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    code = (
        "import time; from zoo.world import Pets\n"
        "render = Pets.render\n"
        "Pets.render = lambda self, *key: (time.sleep(0.1), render(self, *key))[1]\n"
        f"Pets(families=5, members=2, views=2, size=40, seed=3).prepare({str(tmp_path)!r}, workers=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=SEARCH) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/.partial/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    partial = tmp_path / PETS.folder
    complete = {json.loads(record.read_text())[0]["identity"] for record in partial.glob(".partial/*.json")}
    names = {PETS.name_of(k): k for k in range(PETS.identities)}
    paths = [partial / PETS.path_of(names[n], v) for n in complete for v in range(PETS.views_of(names[n]))]
    kept = {path: path.stat().st_mtime_ns for path in paths}
    assert 2 <= len(complete) < PETS.identities and not (partial / "world.json").exists()
    assert PETS.prepare(tmp_path, workers=2) == partial
    assert "Going on with" in capfd.readouterr().err
    assert files_of(partial) == files_of(root)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_two_processes_may_prepare_one_world(root: Path, tmp_path: Path) -> None:
    fields = "families=5, members=2, views=2, size=40, seed=3"
    code = f"from zoo.world import Pets; Pets({fields}).prepare({str(tmp_path)!r}, workers=2)"
    both = [subprocess.Popen([sys.executable, "-c", code], env=SEARCH) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert files_of(tmp_path / PETS.folder) == files_of(root)


def test_a_world_of_a_script_is_drawn_in_its_own_process(tmp_path: Path) -> None:
    """Its main module runs once, even without a guard."""
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\nfrom zoo.world import Pets\nprint('runs')\n"
        "@dataclass(frozen=True)\nclass Mine(Pets):\n    pass\n"
        "for kind in (Mine, Pets):\n"
        "    world = kind(families=3, members=1, views=2, size=32)\n"
        f"    world.prepare({str(tmp_path)!r} + '/cache_' + kind.__name__, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], env=SEARCH, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["runs"]
    assert len(list(tmp_path.glob("cache_*/*/images/*/*/*.png"))) == 2 * (3 * 2 + 2)


def test_importing_the_world_is_cheap() -> None:
    code = "import sys, zoo.world; print(*(m in sys.modules for m in ('zoo.world.pets', 'torch', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], env=SEARCH, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


def test_what_is_complete_is_kept_when_a_render_goes_on(
    prepared: Callable[[RenderedDataset], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / SCENES.folder
    (folder / ".partial").mkdir(parents=True)
    for scene in (0, 5):
        write_unit(SCENES, folder, scene)
    (folder / ".partial" / "000007").mkdir()  # one that was cut off
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert SCENES.prepare(tmp_path, workers=1) == folder
    assert "2 of 24 scenes are there already" in " ".join(capfd.readouterr().err.replace("\n", " ").split())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(kept) == 2
    assert files_of(folder) == files_of(prepared(SCENES))


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        PETS.prepare(tmp_path, workers=0)
    with pytest.raises(IndexError, match="identity must be from 0 to 9, got 10"):
        PETS.render(10, 0)
    with pytest.raises(IndexError, match="view must be from 0 to 1, got 2"):
        PETS.render(4, 2)  # a test cat; training pets have more
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*INSTANCE_ZOO_HOME"):
        PETS.prepare(tmp_path / "file", workers=1)
