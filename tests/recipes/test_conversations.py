"""`python -m recipes.conversations`: what it writes, prints and refuses."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import conversations as recipe
from recipes.__main__ import recipes
from tests.conftest import write_identities
from zoo.categories import CATEGORIES, Category, Crop, register_category
from zoo.conversations.manifest import Conversations
from zoo.data.holdout import HoldOut
from zoo.data.readers import read_with
from zoo.drawing import GREEN, RED
from zoo.vlm.tasks.match import GallerySource, MatchTask
from zoo.world import Persons, Pets, Sample, World

ENCODER = "general_mobilenetv3s050.world"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run(*flags: str) -> int:
    return recipe.main([*flags, "--workers", "0"])


def frames(path) -> dict[tuple[int, int, int], int]:
    """How many frames of a colour are on a sheet, in pixels of one frame of 120 pixels, 4 of them wide."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    one = 120**2 - 112**2
    return {colour: int((pixels == colour).all(1).sum()) // one for colour in (GREEN, RED)}


def test_a_folder_of_photos(photos, tmp_path, capsys):
    flags = ["--root", str(photos), "--category", "pet", "--k", "3", "--out", str(tmp_path)]
    flags += ["--tau_quantile", "0.2", "0.5"]
    assert run(*flags, "--at_most", "train=20", "test=10", "--sheets", "4") == 0
    made = Conversations.load(tmp_path / "pet.parquet", photos)
    made.check(ENCODER)
    assert made.meta["encoder"]["name"] == ENCODER
    split, level = made.column("split"), made.column("level")
    assert set(level) == {"quantile=0.2", "quantile=0.5"}, "no taus unless they are asked for"
    counts = {(s, name): int(((split == s) & (level == name)).sum()) for s in ("train", "test") for name in set(level)}
    assert counts["train", "quantile=0.2"] == 20 and counts["test", "quantile=0.2"] == 10
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.split()[1:2] == ["quantile=0.2"]]
    assert [row[0] for row in table] == ["train", "val", "test"]
    assert table[0][3:6] == ["20", "0", "0"] and table[1][3:] == ["0", "0", "8"], "made, and skipped for either reason"
    here = made.select((split == "train") & (level == "quantile=0.2"))
    wrong = [v for c in here for place, v in enumerate(c.similarities, 1) if place != c.answer]
    assert table[0][6] == f"{np.mean(wrong):.3f}" and f"{len(made)} conversations" in out
    assert frames(tmp_path / "pet_test_quantile=0.2.png") == {GREEN: 4, RED: 8}
    assert (tmp_path / "pet_test_quantile=0.5.png").is_file()


def test_galleries_of_several_sizes_and_without_a_match(photos, tmp_path):
    flags = ["--root", str(photos), "--category", "object", "--out", str(tmp_path), "--split", "train"]
    assert run(*flags, "--tau", "-1", "--k", "2", "4", "--no_match", "0.5", "--sheets", "0", "--per_query", "2") == 0
    made = Conversations.load(tmp_path / "object.parquet", photos)
    assert set(made.column("k")) == {2, 3, 4} and set(made.column("split")) == {"train"}
    assert (made.column("answer") == 0).mean() == 0.5 and len(made) == 96
    assert not list(tmp_path.glob("*.png"))


def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path, monkeypatch):
    """Photos and galleries lie in two folders of one; the second command names the manifest only."""
    write_identities(tmp_path / "photos", identities=12)
    monkeypatch.chdir(tmp_path)
    flags = ["--root", "photos", "--category", "pet", "--tau_quantile", "0.5", "0.9", "--out", "runs/mine"]
    assert run(*flags, "--k", "2", "--sheets", "0") == 0
    task = MatchTask([GallerySource("runs/mine/pet.parquet")])
    task.setup()
    task.check("fit")
    assert task.conversations[0].root.resolve() == tmp_path / "photos" and len(task.rows("train"))


def test_the_split_is_that_of_an_earlier_run_or_as_it_is_asked_for(photos, tmp_path):
    flags = ["--root", str(photos), "--category", "pet", "--tau", "-1", "--k", "2", "--sheets", "0", "--at_most", "0"]

    def splits(name: str, *more: str) -> tuple[dict[str, str], dict[str, object]]:
        assert run(*flags, "--out", str(tmp_path / name), *more) == 0
        made = Conversations.load(tmp_path / name / "pet.parquet", photos)
        return dict(zip(made.column("query_identity"), made.column("split"), strict=True)), made.meta["split"]

    plain, noted = splits("plain")
    assert noted == {"val_share": 0.1, "test_share": 0.3, "split_seed": 0}
    index = read_with("folder", photos, HoldOut(0.2, 0.5, 5))
    expected = {index.names[i]: split for i, split in zip(index.identities, index.splits, strict=True)}
    sha256 = index.save(tmp_path / "manifest.csv")
    asked, noted = splits("asked", "--val_share", "0.2", "--test_share", "0.5", "--split_seed", "5")
    assert asked == expected != plain and noted == {"val_share": 0.2, "test_share": 0.5, "split_seed": 5}
    again, noted = splits("again", "--manifest", str(tmp_path / "manifest.csv"))
    assert again == expected and noted == {"manifest": "manifest.csv", "sha256": sha256}


def test_a_limit_of_one_split_keeps_those_of_the_others():
    assert recipe.limits_of([]) == {"val": 500, "test": 500}
    assert recipe.limits_of(["train=100"]) == {"train": 100, "val": 500, "test": 500}
    assert recipe.limits_of(["7", "val=0"]) == {"train": 7, "test": 7} and recipe.limits_of(["0"]) == {}


def test_a_split_without_conversations_is_said_and_another_one_is_shown(photos, tmp_path, capsys):
    """Of 20 identities 4 are tested on."""
    flags = ["--root", str(photos), "--category", "pet", "--tau", "-1", "--k", "5", "--test_share", "0.2"]
    assert run(*flags, "--out", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "warning: There is no pet conversation in the test split: it has" in out and "mine with --k " in out
    assert [path.name for path in tmp_path.glob("*.png")] == ["pet_train_tau=-1.png"]


def test_the_same_seed_makes_the_same_file_and_another_one_does_not(photos, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        flags = ["--root", str(photos), "--category", "pet", "--tau", "-1", "--k", "3", "--seed", seed, "--sheets", "0"]
        assert run(*flags, "--out", str(tmp_path / name)) == 0
    a, b, c = ([*Conversations.load(tmp_path / name / "pet.parquet", photos)] for name in "abc")
    assert a == b and a != c


def test_the_world_of_each_category_by_default(tmp_path, monkeypatch, capsys, restored_categories):
    """Small worlds in place of the default ones; a manifest finds the images by itself."""
    worlds = {
        "person": lambda: Persons(families=6, members=2, views=6, size=32),
        "face": None,
        "pet": lambda: Pets(families=6, members=2, views=3, size=32),
        "object": None,
    }
    CATEGORIES.update({name: replace(CATEGORIES[name], world=world) for name, world in worlds.items()})
    monkeypatch.chdir(tmp_path)
    assert run("--k", "2") == 0
    capsys.readouterr()
    for category in ("person", "pet"):
        made = Conversations.load(f"runs/conversations/{category}.parquet")
        made.check(ENCODER)
        assert set(made.column("category")) == {category} and made.column("tau").min() == 0.2
        assert [rule["tau"] for rule in made.meta["rules"]] == [0.2, 0.5, 0.8]
        assert list((tmp_path / "runs/conversations").glob(f"{category}_test_tau=*.png"))
    made = Conversations.load("runs/conversations/person.parquet")
    cameras = [[image.path.split("_c")[1][0] for image in (c.query, c.gallery[c.answer - 1])] for c in made]
    assert len(cameras) and all(query != positive for query, positive in cameras)
    assert run("--category", "face") == 1
    assert "There is no world of category 'face'. There is one of person, pet;" in capsys.readouterr().err


@dataclass(frozen=True)
class Vehicles(World):
    """A rectangle of a colour for each identity, on noise."""

    NAME: ClassVar[str] = "vehicles"

    def kind(self, family: int) -> str:
        return "van"

    def render(self, identity: int, view: int) -> Sample:
        rng = np.random.default_rng((self.seed, identity, view))
        image = rng.integers(0, 255, (self.size, self.size, 3)).astype(np.uint8)
        mask = np.zeros((self.size, self.size), dtype=bool)
        mask[8:24, 4:28] = True
        image[mask] = np.random.default_rng(identity).integers(0, 255, 3)
        return Sample(image, mask, (4, 8, 24, 16), {})

    def path_of(self, identity: int, view: int) -> str:
        return f"{self.split_of(identity)}/{self.name_of(identity)}/{view}.png"


def test_a_new_category_is_one_entry(tmp_path, monkeypatch, restored_categories):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # draws in this process, which has imported the class
    small = Vehicles(families=8, members=2, views=3, size=32)
    register_category("vehicle", Category("vehicle", "vehicle_resnet50.mine", Crop(("car", "truck")), lambda: small))
    assert run("--category", "vehicle", "--k", "2", "--tau", "-1", "--out", str(tmp_path)) == 0
    made = Conversations.load(tmp_path / "vehicle.parquet")
    made.check(ENCODER)
    assert len(made) == 48 and made.meta["category"] == "vehicle" and made[0].category == "vehicle"
    assert made.root.name == small.folder and (tmp_path / "vehicle_test_tau=-1.png").is_file()


def test_several_processes_write_what_one_writes(photos, tmp_path):
    """Started by Lightning, and by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    launches = {"one": [[sys.executable, "-m"], []], "lightning": [[sys.executable, "-m"], ["--devices", "2"]]}
    launches["torchrun"] = [torchrun, []]
    printed = {}
    for name, (launcher, more) in launches.items():
        flags = ["--root", str(photos), "--category", "pet", "--tau", "-1", "--k", "3", "--out", str(tmp_path / name)]
        done = subprocess.run(
            [*launcher, "recipes.conversations", *flags, "--sheets", "0", "--workers", "0", *more],
            env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed[name] = done.stdout.count("20 identities") + done.stdout.count(" conversations, ")
    files = {name: (tmp_path / name / "pet.parquet").read_bytes() for name in launches}
    assert files["one"] == files["lightning"] == files["torchrun"] and len(files["one"]) > 1000
    assert len(set(printed.values())) == 1, "by one process"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "ROOT"], "Give --category"),
        (["--reader", "folder"], "Give --root"),
        (["--root", "nowhere", "--category", "pet"], "--root nowhere is no folder. Give the folder"),
        (["--sheets", "-1"], "--sheets is -1. Give a number from 0 on"),
        (["--device", "cuda", "--devices", "2"], "Give it without --accelerator and --devices"),
        (["--accelerator", "abacus"], "invalid accelerator name"),
        (["--per_query", "0"], "--per_query is 0. Give a number from 1 on"),
        (["--split_seed", "3"], "--split_seed is about the split of a folder. Give --root"),
        (["--root", "ROOT", "--category", "pet", "--manifest", "gone.csv"], "gone.csv is no file"),
        (
            ["--root", "ROOT", "--category", "pet", "--manifest", "a.csv", "--val_share", "0"],
            "either it or --val_share",
        ),
        (["--root", "ROOT", "--category", "pet", "--k", "1"], "Give k from 2 on"),
        (["--root", "ROOT", "--category", "pet", "--encoder", "nothing"], "Unknown model 'nothing'"),
        (["--root", "ROOT", "--category", "pet", "--tau", "2"], "from -1 to 1"),
        (["--root", "ROOT", "--category", "pet", "--tau_quantile", "1"], "below 1"),
        (["--root", "ROOT", "--category", "pet", "--k", "5", "3"], "fewest <= most"),
        (["--root", "ROOT", "--category", "pet", "--k", "1", "2", "3"], "--k has 3 values"),
        (["--root", "ROOT", "--category", "pet", "--at_most", "test=many"], "test=500"),
        (["--root", "ROOT", "--category", "pet", "--at_most", "tset=5"], "at_most names tset"),
        (["--root", "ROOT", "--category", "pet", "--reader", "markt1501"], "Did you mean 'market1501'"),
    ],
)
def test_errors_are_sentences(photos, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(*[str(photos) if flag == "ROOT" else flag for flag in flags]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and message in captured and "Traceback" not in captured
    assert not list(tmp_path.iterdir())


def test_it_is_listed():
    assert recipes()["conversations"].startswith("Make in-context conversations")
