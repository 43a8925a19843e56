"""Stage 1 as its user runs it: on a tiny world with a tiny base, on one process and on two."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoo
from recipes.cli import RecipeCLI
from recipes.vlm_stage1 import main
from tests.processes import launch
from tests.vlm.rig import EXPERTS, base, galleries, rows
from zoo.scores import ScoreName

CONFIGS = Path(__file__).parents[2] / "recipes/configs"
WORLD = {
    "pet": {"class_path": "zoo.world.Pets", "init_args": {"families": 6, "members": 3, "views": 4, "size": 32}},
    "object": {"class_path": "zoo.world.Objects", "init_args": {"families": 6, "members": 3, "views": 4, "size": 32}},
}
WORLDS = {"pet": "Pets", "object": "Objects"}
TINY: dict[str, Any] = {
    "control": False,
    "baselines": False,
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1, "accelerator": "cpu"},
    "model": {"vlm": base(), "experts": EXPERTS, "cache": None, "gate_lr": 0.1},
    "data": {
        "world": WORLD, "k": [2, 3], "tau_quantile": [0.0, 0.5], "eval_conversations": 7,
        "batch_size": 4, "eval_batch_size": 8, "steps_per_epoch": 3, "workers": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RecipeCLI, Path, str]:
    """A finished run with a cache, its baselines and its control; its folder; what it printed."""
    home = tmp_path_factory.mktemp("run")
    with contextlib.chdir(home), open(home / "out", "w") as out, contextlib.redirect_stdout(out):
        flags = ["--model.cache=features", "--control=true", "--baselines=true"]
        done = main(["fit", "-c", str(tiny), *flags])
    return done, home / "runs/stage1/version_0", (home / "out").read_text()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scalars(run: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


# ---------------------------------------------------------------------- a whole run


def test_fit_leaves_what_a_user_looks_for(run):
    done, folder, printed = run
    names = ["base model", "stage 1 without experts", "stage 1 with experts"]
    assert list(done.results) == names
    keys = [set(done.results[name]) for name in names]
    conversations, chance = ScoreName("conversations"), ScoreName("chance")
    assert keys[2] - keys[0] == {k for k in keys[2] if k.name == "expert"} and keys[0] == keys[1]
    assert all(0 <= value <= 1 for k, value in done.results[names[2]].items() if k != conversations)
    assert len({scores[conversations] for scores in done.results.values()}) == 1
    assert len({scores[chance] for scores in done.results.values()}) == 1
    for words in ("what trains", "expert alone", "general encoder alone", "chance", *names, "quantile=0.5"):
        assert words in printed, words
    assert (folder.parents[1] / "stage1_without_experts/version_0/checkpoints/best.ckpt").is_file()
    assert len(scalars(folder, "val/accuracy")) == 3, "before training and after each of 2 epochs"
    assert len(scalars(folder, "train/loss")) == 6
    gates = {category: scalars(folder, f"gate/{category}") for category in EXPERTS}
    assert all(gate[0] == 0 and gate[-1] != 0 for gate in gates.values())
    assert len(list((folder.parents[2] / "features").iterdir())) == 3, "of the tower and of two experts"


def test_the_saved_stage_is_the_best_checkpoint_with_its_scores(run, monkeypatch):
    done, folder, _ = run
    monkeypatch.chdir(folder.parents[2])
    stage = zoo.load(folder / "stage")
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert stage.component_state().keys() == best.keys() and not stage.training
    for name, tensor in stage.component_state().items():
        assert torch.equal(tensor, best[name]), name
    (score,) = zoo.card(folder / "stage").scores
    tested = {str(key): value for key, value in done.results["stage 1 with experts"].items() if not key.level}
    assert score.values == pytest.approx(tested, abs=1e-4)
    assert zoo.card(folder / "stage").recipe.startswith("python -m recipes.vlm_stage1 fit -c ")


def test_the_control_has_no_expert_and_the_same_start(run):
    done, folder, _ = run
    control = trained(folder.parents[1] / "stage1_without_experts/version_0")
    assert all(name.startswith("fused.projector.") for name in control)
    more = set(trained(folder)) - set(control)
    assert more == {name for name in trained(folder) if name.startswith("fused.adapters.")} and more
    names = ("stage1", "stage1_without_experts")
    before = [scalars(folder.parents[1] / name / "version_0", "val/accuracy")[0] for name in names]
    assert before[0] == before[1], "with every gate at 0 both start as the base model"
    config = yaml.safe_load((folder.parents[1] / "stage1_without_experts/version_0/config.yaml").read_text())
    assert config["model"]["experts"] == {} and config["model"]["fusion"] is None and not config["control"]


def test_the_printed_command_tests_the_checkpoint_again(run, capsys, monkeypatch):
    """Also without the cache, from the run's own configuration."""
    done, folder, printed = run
    words = re.search(r"Use it: +python -m recipes.vlm_stage1 (test -c runs/stage1/.*)", printed.replace("\n", " "))
    assert words is not None
    command = words[1].split()[:5]
    monkeypatch.chdir(folder.parents[2])
    expected = done.results["stage 1 with experts"]
    for more in ([], ["--model.cache=null", "--data.eval_batch_size=3", "--data.workers=1"]):
        again = main([*command, *more])
        assert again.results["test"] == pytest.approx(expected), more


@pytest.mark.slow
def test_without_a_cache_training_is_the_same(run, tiny):
    _, folder, _ = run
    main(["fit", "-c", str(tiny)])
    other = Path("runs/stage1/version_0")
    for name, tensor in trained(other).items():
        torch.testing.assert_close(tensor, trained(folder)[name], rtol=1e-3, atol=1e-4, msg=name)
    assert scalars(other, "train/loss") == pytest.approx(scalars(folder, "train/loss"), abs=1e-3)


def test_resumed_within_an_epoch_equals_uninterrupted(run, tiny):
    """With a worker that reads ahead; the weights agree to the last bit."""
    often = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.init_args.every_n_train_steps=1",
        "--trainer.callbacks.init_args.save_top_k=-1",
        "--trainer.callbacks.init_args.filename={step}",
    ]
    flags = ["fit", "-c", str(tiny), "--data.workers=1", "--model.writes=false"]
    main([*flags, *often])
    whole = trained(Path("runs/stage1/version_0"))
    Path("runs/stage1/version_0/checkpoints/last.ckpt").unlink()
    main([*flags, "--ckpt_path=runs/stage1/version_0/checkpoints/step=2.ckpt"])
    again = torch.load("runs/stage1/version_0/checkpoints/last.ckpt", weights_only=True)
    assert again["global_step"] == 6
    for name, tensor in again["state_dict"].items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("spelling", [["--ckpt_path={}"], ["--ckpt_path", "{}"]], ids=["one word", "two words"])
def test_a_resumed_run_trains_its_control_from_the_start(spelling, tiny, capsys):
    """And leaves its own folder as it was; what came out of it is shown before the control starts."""
    flags = ["fit", "-c", str(tiny), "--model.writes=false", "--pictures.every_n_epochs=0"]
    main([*flags, "--trainer.max_epochs=1"])
    capsys.readouterr()
    last = "runs/stage1/version_0/checkpoints/last.ckpt"
    done = main([*flags, *(word.format(last) for word in spelling), "--control=true", "--baselines=true"])
    names = ["base model", "stage 1 without experts", "stage 1 with experts"]
    assert list(done.results) == names
    config = yaml.safe_load(Path("runs/stage1/version_0/config.yaml").read_text())
    assert config["name"] == "stage1" and config["model"]["experts"]
    content = torch.load("runs/stage1_without_experts/version_0/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6 and not any("adapters" in name for name in content["state_dict"])
    before, after = capsys.readouterr().out.split("The same without experts, to compare with:")
    assert "stage 1 with experts" in before and "base model" in before and "without experts" not in before
    assert after.count("base model") == 2, "in the two tables of the end: the control does not test it again"
    assert after.count("Use it:") == 1 and after.count("conversations of identities") == 1


def test_without_a_test_conversation_the_checkpoint_is_kept_and_named(tiny, capsys, tmp_path):
    """Galleries of a manifest without a test split."""
    made = galleries(tmp_path / "photos", "pet", [*rows("train", 8), *rows("val", 3)])
    made.save(made.root / "pet.parquet")
    sources = f"--data.galleries=[{{manifest: {made.root}/pet.parquet}}]"
    done = main(["fit", "-c", str(tiny), "--data.world=null", sources, "--control=true", "--trainer.max_epochs=1"])
    printed = capsys.readouterr().out
    assert "Nothing was tested: the test split has nothing to score" in printed and not done.results
    assert "runs/stage1/version_0/checkpoints/best.ckpt" in printed and "runs/stage1/version_0/pictures" in printed
    assert not Path("runs/stage1_without_experts").exists()


REFUSED = {
    "misspelt flag": (["--model.fuson=null"], 2, "Did you mean --model.fusion"),
    "base": (["--model.vlm=vlm_nowhere.world"], 1, "vlm_nowhere.world is no folder"),
    "category": (["--model.experts={cow: pet_mobilenetv3s050.world}"], 1, "cow"),
    "card": (["--model.experts={pet: pet_mobilenet}"], 1, "pet_mobilenet"),
    "two sources": (["--data.galleries=[{manifest: a.parquet}]"], 1, "Give one of the two"),
    "no level": (["--data.tau_quantile=null"], 1, "at least one level"),
    "encoder": (["--data.encoder=general_mobilnet"], 1, "general_mobilnet"),
    "manifest": (["--data.world=null", "--data.galleries=[{manifest: gone.parquet}]"], 1, "no file gone.parquet"),
    "too large": (["--data.k=40"], 1, "all queries of the train split were skipped"),
    "batch": (["--data.batch_size=0"], 1, "data.batch_size is 0"),
    "checkpoint": (["--ckpt_path=gone.ckpt"], 1, "No checkpoint gone.ckpt"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_ends_with_one_readable_message(case, tiny, capsys):
    flags, status, message = REFUSED[case]
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", str(tiny), *flags])
    printed = capsys.readouterr().err
    assert end.value.code == status and message in printed and "Traceback" not in printed, printed


def test_a_checkpoint_of_another_base_is_refused(run, tiny, capsys):
    with pytest.raises(SystemExit) as end:
        main(["test", "-c", str(tiny), f"--model.vlm={base(1)}", f"--ckpt_path={run[1]}/checkpoints/best.ckpt"])
    assert end.value.code == 1 and "trained with another vlm than" in capsys.readouterr().err


# ---------------------------------------------------------------------- configurations


def printed_config(capsys: pytest.CaptureFixture[str], *names: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as end:
        main(["fit", *(word for name in names for word in ("-c", str(CONFIGS / name))), "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_the_configuration_of_the_paper_has_its_settings(capsys):
    config = printed_config(capsys, "vlm_stage1_qwen25vl3b.yaml")
    model, data, train = config["model"], config["data"], config["trainer"]
    assert model["vlm"] == "Qwen/Qwen2.5-VL-3B-Instruct" and model["dtype"] == "bfloat16" and model["cache"] is None
    assert model["gradient_checkpointing"] and model["attention"] == "sdpa" and model["before_projector"]
    assert model["optim"] | {"weight_decay": 0} == {
        "name": "adamw", "lr": 1e-4, "weight_decay": 0, "warmup": 0.03, "head_lr": 1.0, "layer_decay": None,
        "multiples": {},
    }  # fmt: skip
    fusion = model["fusion"]["init_args"]
    assert fusion["similarity"] == "cosine" and fusion["rescale"] is False and fusion["gate"] is True
    assert data["world"] is None and len(data["galleries"]) == 4 and data["tau"] == [0.5] and data["k"] == 5
    assert data["tau_quantile"] is None and data["steps_per_epoch"] is None and train["max_epochs"] == 1
    assert train["precision"] == "bf16-mixed" and train["strategy"] == "ddp" and config["control"] is False


@pytest.mark.parametrize(("given", "kept"), [("true", True), ("false", False), ("null", None), ("here", "here")])
def test_whether_and_where_features_are_kept(given, kept, tiny, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(tiny), f"--model.cache={given}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["cache"] == kept


def test_fsdp_can_be_laid_over_it(capsys):
    """Its strategy can be made, and wraps the classes that it names."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch.strategies import FSDPStrategy
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock

    config = printed_config(capsys, "vlm_stage1_qwen25vl3b.yaml", "vlm_stage1_fsdp.yaml")
    assert config["model"]["dtype"] == "float32" and config["model"]["experts"] and not config["model"]["writes"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FSDPStrategy, "strategy")
    made = parser.instantiate(parser.parse_object({"strategy": config["trainer"]["strategy"]})).strategy
    policy = made.kwargs["auto_wrap_policy"]
    assert policy._module_classes == {Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock}


# ---------------------------------------------------------------------- several processes


def percents(printed: str) -> list[str]:
    """Every cell of the tables of scores."""
    return re.findall(r"\d+\.\d(?= |$)", printed[printed.index("conversations of identities") :], re.MULTILINE)


def test_two_processes_train_and_score_as_one(tmp_path, capsys):
    """Plain SGD, so that gradients show. Each process has one conversation a step, of one category, whose answers have
    more tokens than those of the other; validation batches are unequally many; both fill one cache."""
    config = {**TINY, "model": {**TINY["model"], "cache": str(tmp_path / "features"), "gate_lr": 1.0}}
    config["model"] |= {"optim": {"name": "sgd", "lr": 0.5, "weight_decay": 0.0, "warmup": 0.0}}
    config["data"] = {**TINY["data"], "batch_size": 2, "steps_per_epoch": 4, "eval_batch_size": 1}
    config["data"] |= {"tau_quantile": [0.0], "eval_conversations": 6}  # 6 and 1 to validate on
    (tmp_path / "sgd.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "two").mkdir()
    printed = launch("vlm_stage1", "fit", "-c", "../sgd.yaml", folder=tmp_path / "two", devices=2)
    main(["fit", "-c", str(tmp_path / "sgd.yaml"), "--model.cache=null"])
    ours, theirs = trained(Path("runs/stage1/version_0")), trained(tmp_path / "two/runs/stage1/version_0")
    assert all(float(ours[f"fused.adapters.{category}.gate"]) != 0 for category in EXPERTS)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    curves = [scalars(home / "runs/stage1/version_0", "val/accuracy") for home in (tmp_path, tmp_path / "two")]
    assert curves[0] == pytest.approx(curves[1]) and len(curves[0]) == 3
    assert percents(printed) == percents(capsys.readouterr().out) and len(percents(printed)) >= 15


def test_the_shelfs_base_model_matches_what_is_unlike(tiny, zoo_home):
    """In a world that it never saw; the default recipe starts from it, and keeps features in the zoo's home."""
    drawn = {"families": 12, "members": 1, "views": 4, "size": 112, "seed": 7, "val_share": 0.1, "test_share": 0.7}
    world = {name: {"class_path": f"zoo.world.{kind}", "init_args": drawn} for name, kind in WORLDS.items()}
    config = {
        "model": {
            "vlm": yaml.safe_load((CONFIGS / "vlm_stage1.yaml").read_text())["model"]["vlm"],
            "cache": True,
        },
        "data": {"world": world, "tau": [-1], "tau_quantile": None, "k": 2, "eval_conversations": 32},
    }
    Path("shelf.yaml").write_text(yaml.safe_dump(config))
    done = main(["fit", "-c", str(tiny), "-c", "shelf.yaml", "--trainer.max_steps=1", "--baselines=true"])
    scores = done.results["base model"]
    assert scores[ScoreName("conversations")] == 64 and scores[ScoreName("chance")] == 0.5
    assert list((zoo_home / "features").glob("*/*.idx"))
    assert scores[ScoreName("accuracy")] > 0.7  # 3 standard deviations above chance
