"""The recipe of the small base model, both parts, on tiny worlds."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

import zoo
from recipes.vlm_base import main, second_part
from tests.processes import launch

WORLD = {
    "pet": {"class_path": "zoo.world.Pets", "init_args": {"families": 8, "members": 3, "views": 4, "size": 48}},
    "object": {"class_path": "zoo.world.Objects", "init_args": {"families": 8, "members": 3, "views": 4, "size": 48}},
}
DATA = {
    "world": WORLD,
    "scenes": {"scenes": 20, "families": 8, "members": 3, "size": 56},
    "batch_size": 8,
    "steps_per_epoch": 2,
    "eval_batch_size": 8,
    "eval_conversations": 6,
    "workers": 0,
}
TRAINER = {"max_epochs": 2, "enable_progress_bar": False, "default_root_dir": "runs"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = {"width": 32, "layers": 3, "vision_width": 32, "vision_layers": 1, "size": 56, "vocabulary": 400}
    second = {
        "then": None,
        "monitor": "val/accuracy",
        "trainer": {**TRAINER, "limit_val_batches": 1.0},
        "model": {"frozen_tower": True, "cache": str(tmp_path / "features"), "guidance": 0.5},
        "data": {**DATA, "caption_share": 0.25, "k": [2, 3]},
    }
    Path("compare.yaml").write_text(yaml.safe_dump(second))
    first = {"then": "compare.yaml", "trainer": TRAINER, "model": model, "data": DATA}
    Path("base.yaml").write_text(yaml.safe_dump(first))
    return tmp_path


def test_both_parts_leave_a_model_that_transformers_and_the_zoo_load(folder: Path) -> None:
    main(["fit", "-c", "base.yaml"])
    seeing, comparing = (folder / f"runs/vlm_base/version_{n}/vlm" for n in (0, 1))
    before, after = (AutoModelForImageTextToText.from_pretrained(where) for where in (seeing, comparing))
    changed = {
        name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[name])
    }
    assert any(name.startswith("model.language_model") for name in changed)
    assert any(name.startswith("model.visual.merger") for name in changed)
    assert not any(name.startswith("model.visual") and "merger" not in name for name in changed)
    kept = zoo.load(comparing)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])
    tokenizer = AutoProcessor.from_pretrained(comparing).tokenizer
    assert tokenizer.decode(tokenizer("Which pet is the query?")["input_ids"]) == "Which pet is the query?"


def test_a_cache_of_a_tower_that_trains_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "base.yaml", "--model.cache=features"])
    assert "Set frozen_tower" in capsys.readouterr().err


@pytest.mark.parametrize("config", [["-c", "mine.yaml"], ["--config=mine.yaml"], ["-c=mine.yaml"]])
@pytest.mark.parametrize("dropped", [["--ckpt_path", "a.ckpt", "--then", "it"], ["--ckpt_path=a.ckpt", "--then=it"]])
def test_the_users_flags_win_over_the_yaml_of_the_second_part(config: list[str], dropped: list[str]) -> None:
    flags = ["--name", "mine", "--data.workers=0", "--data.k", "-1"]
    found = second_part(["fit", *flags, *dropped, *config], Path("compare.yaml"), Path("run/vlm"))
    added = ["--model.vlm=run/vlm", "--then=null", "--ckpt_path=null"]
    assert found == ["fit", *config, "--config=compare.yaml", *flags, *added]


def test_what_the_user_sets_holds_for_both_parts(folder: Path) -> None:
    """On two processes, which share every batch; the second YAML sets little and wins over the first YAML only."""
    second = {
        "model": {"frozen_tower": True},
        "data": {"caption_share": 0.25, "k": [2, 3]},
        "trainer": {"max_epochs": 1},
    }
    Path("compare.yaml").write_text(yaml.safe_dump(second))
    flags = ["--name", "mine", "--seed_everything=3", "--data.batch_size", "6"]
    printed = launch("vlm_base", "fit", "-c", "base.yaml", *flags, folder=folder, devices=2)
    assert not Path("runs/vlm_base").exists()
    for version, share, epochs in ((0, 1.0, 2), (1, 0.25, 1)):
        config = yaml.safe_load(Path(f"runs/mine/version_{version}/config.yaml").read_text())
        assert config["seed_everything"] == 3 and config["data"]["batch_size"] == 6
        assert config["trainer"]["devices"] in (2, "2") and config["data"]["caption_share"] == share
        assert set(config["data"]["world"]) == set(WORLD) and config["trainer"]["max_epochs"] == epochs
    assert printed.count("If interrupted, go on with") == 2, "once for each part"
    assert all(list(Path(f"runs/mine/version_{version}/vlm").glob("*.safetensors")) for version in (0, 1))
