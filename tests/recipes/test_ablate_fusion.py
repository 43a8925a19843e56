"""`python -m recipes.ablate_fusion`: which runs it makes, how it goes on, and what it says of their scores."""

import csv
import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fusion
from recipes import ablate_fusion as recipe
from recipes import vlm_stage1
from recipes.outcome import Mean, Outcome, ablation_table, growth, level_table
from recipes.tables import as_markdown
from tests.vlm.tiny import tiny_folder
from zoo.scores import ScoreName, from_records, levels_of

LEVELS = ("quantile=0.5", "quantile=0.9")
RIGHT = ScoreName("accuracy")
TINY = """
trainer: {max_epochs: 1, enable_progress_bar: false}
pictures: {every_n_epochs: 0}
data:
  world:
    pet: {class_path: zoo.world.Pets, init_args: {families: 6, members: 3, views: 4, size: 32}}
  k: 3
  tau_quantile: [0.0, 0.5]
  batch_size: 4
  steps_per_epoch: 2
  eval_conversations: 4
  eval_batch_size: 8
  workers: 0
model:
  experts: {pet: pet_mobilenetv3s050.world}
"""


@pytest.fixture(scope="module")
def extra(tmp_path_factory) -> list[str]:
    """Flags of a run of seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    vlm = tiny_folder("qwen2_5_vl")
    return ["-c", str(folder / "tiny.yaml"), f"--model.vlm={vlm}", f"--model.cache={folder / 'cache'}"]


class Stage:
    """Counts the runs of stage 1, real or made up; what fails is named by variant and seed."""

    def __init__(self, monkeypatch, makes_up: bool = True) -> None:
        self.real, self.makes_up = vlm_stage1.main, makes_up
        self.runs: list[str] = []
        self.fails: dict[str, BaseException] = {}
        monkeypatch.setattr(vlm_stage1, "main", self)

    def __call__(self, args: list[str]) -> object:
        if "--print_config" in args:
            return self.real(args)
        name = next(word.removeprefix("--name=") for word in args if word.startswith("--name="))
        self.runs.append(name)
        if name in self.fails:
            try:
                raise self.fails[name]
            except BaseException:
                raise SystemExit(1) from None
        if not self.makes_up:
            return self.real(args)
        results = {"base model": made_up(0.2)} if "--baselines=true" in args else {}
        return SimpleNamespace(results=results | {"stage 1": made_up(0.5)})


def made_up(right: float, harder: float = 0.0) -> dict[ScoreName, float]:
    """Scores of two categories; at the second level, `harder` less."""
    scores: dict[ScoreName, float] = {}
    for name, value in {"accuracy": right, "chance": 0.2, "general": 0.3, "expert": 0.6}.items():
        drop = harder if name == "accuracy" else 0.0
        scores[ScoreName(name)] = value - drop / 2
        scores |= {ScoreName(name, category): value - drop / 2 for category in ("pet", "object")}
        scores |= {ScoreName(name, level=level): value - drop * place for place, level in enumerate(LEVELS)}
        scores |= {ScoreName(name, category, level): value for category in ("pet", "object") for level in LEVELS}
    return scores


def runs_of(*right: float, harder: float = 0.0) -> dict[int, dict[ScoreName, float]]:
    return {seed: made_up(value, harder) for seed, value in enumerate(right)}


def at_levels(values: dict[str, float]) -> dict[ScoreName, float]:
    return {ScoreName("accuracy", level=level): value for level, value in values.items()}


def kept_scores(run: Path) -> dict[ScoreName, float]:
    """The scores that a finished run has left."""
    return from_records(json.loads((run / "results.json").read_text())["scores"])


# ---------------------------------------------------------------------- which runs


@pytest.fixture(scope="module")
def config(extra) -> dict:
    return recipe.default_config(extra)


def variants(config: dict, grid: bool = False) -> dict[str, recipe.Variant]:
    choices = recipe.choices_of(config["model"], config["data"]["encoder"])
    return {variant.name: variant for variant in recipe.variants_of(choices, grid)}


def test_one_factor_at_a_time(config):
    found = variants(config)
    default = {"adapter": "additive", "encoder": "expert", "where": "before"}
    assert list(found)[:2] == ["none", "default"] and found["default"].labels == default and not found["default"].flags
    assert set(found) - {"none", "default"} == {
        "additive_unscaled",
        "additive_literal",
        "concat",
        "cross_attention",
        "patch_attention",
        "general",
        "after",
    }
    for name in set(found) - {"none", "default"}:
        assert sum(found[name].labels[factor] != default[factor] for factor in default) == 1


def test_a_grid_holds_every_combination_once(config):
    found = variants(config, grid=True)
    combinations = {tuple(variant.labels.values()) for variant in found.values()}
    assert len(found) == len(combinations) == 1 + 6 * 2 * 2  # without experts there is nothing to combine
    assert found["concat_general_after"].labels == {"adapter": "concat", "encoder": "general", "where": "after"}


def test_another_default_changes_what_is_ablated(config):
    model = config["model"] | {"before_projector": False, "patch_tokens": False}
    model["fusion"] = {"class_path": "fusion.concat.ConcatFusion", "init_args": {"hidden": 7, "gate": True}}
    choices = recipe.choices_of(model, "general")
    assert next(iter(choices["adapter"])) == "concat" and next(iter(choices["where"])) == "after"
    assert set(choices["adapter"]) == set(fusion.variants()) and list(choices["where"]) == ["after", "before"]
    assert all('"hidden": 7' in flags[0] for flags in choices["adapter"].values() if flags), "kept in all adapters"


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "additive_unscaled",
        "additive_literal",
        "concat",
        "cross_attention",
        "patch_attention",
        "general",
        "after",
    ],
)
def test_the_flags_set_what_they_name_and_nothing_else(name, config, extra, capsys):
    with pytest.raises(SystemExit) as end:
        vlm_stage1.main([*recipe.LEADING, *extra, *variants(config)[name].flags, "--print_config"])
    assert not end.value.code
    found, given = yaml.safe_load(capsys.readouterr().out), config["model"]
    model = found.pop("model")
    assert found == {key: value for key, value in config.items() if key != "model"}
    changed = {key for key in given if model[key] != given[key]}
    additive = given["fusion"]["init_args"]
    general = "general_mobilenetv3s050.world"
    match name:
        case "none":
            assert changed == {"fusion", "experts"} and model["fusion"] is model["experts"] is None
        case "additive_unscaled":
            assert changed == {"fusion"} and model["fusion"]["init_args"] == additive | {"rescale": False}
        case "additive_literal":
            literal = {"rescale": False, "similarity": "plain_cosine", "gate": False}
            assert changed == {"fusion"} and model["fusion"]["init_args"] == additive | literal
        case "concat":
            assert changed == {"fusion"} and model["fusion"]["init_args"] == {"hidden": None, "gate": True}
        case "cross_attention":
            assert changed == {"fusion"} and model["fusion"]["class_path"].endswith("CrossAttentionFusion")
        case "patch_attention":
            assert changed == {"fusion", "patch_tokens"} and model["fusion"]["init_args"]["slots"] == 1
        case "general":
            assert changed == {"experts"} and model["experts"] == {"pet": general}
        case _:
            assert changed == {"before_projector"} and not model["before_projector"]


def test_list_prints_commands_and_runs_nothing(monkeypatch, extra, tmp_path, capsys):
    stage = Stage(monkeypatch)
    assert recipe.main(["--list", "--out", str(tmp_path / "out"), "--seeds", "3", "4", "4", "--", *extra]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == "26 runs: 13 variants, each with 2 seeds" and len(lines) == 13 * 2
    assert lines[0].startswith("none_seed3: python -m recipes.vlm_stage1 fit --control=false")
    assert all(f"--seed_everything={seed} --data.seed={seed}" in lines[13 * (seed - 3)] for seed in (3, 4))
    single = [line.partition(":")[0] for line in lines if "--data.tau_quantile=[" in line]
    assert single[:4] == [f"{name}_at_quantile{level}_seed3" for level in ("0", "0.5") for name in ("none", "default")]
    assert ["--baselines=true" in line for line in lines] == [line.startswith("none_seed") for line in lines]
    assert not stage.runs and not (tmp_path / "out").exists()


def test_levels_of_manifests_and_single_ones_are_not_chosen_among(config):
    data = config["data"]
    assert len(recipe.single_levels(data)) == 4
    assert [v.level for v in recipe.single_levels(data | {"tau_quantile": None, "tau": [0.8, 0.2, 0.5]})] == [
        "tau=0.2", "tau=0.2", "tau=0.8", "tau=0.8",
    ]  # fmt: skip
    for other in ({"world": None}, {"tau_quantile": [0.5]}, {"tau": [0.5]}):
        assert recipe.single_levels(data | other) == []


def test_a_gain_by_training_at_one_level_each(monkeypatch, extra, tmp_path, capsys):
    """Real runs, of two levels; then made-up ones, one of which fails."""
    flags = ["--only", "level", "--seeds", "0", "--out", str(tmp_path / "real"), "--", *extra]
    assert recipe.main(flags) == 0
    scores = {path.parent.name: kept_scores(path.parent) for path in tmp_path.glob("real/*/results.json")}
    levels = {name: levels_of(own, "accuracy") for name, own in scores.items()}
    for name in ("none", "default"):
        assert levels[f"{name}_at_quantile0.5_seed0"] == ["quantile=0.5"]
        assert levels[f"{name}_at_quantile0_seed0"] == ["quantile=0"]
        assert levels[f"{name}_seed0"] == ["quantile=0", "quantile=0.5"]
    text = (tmp_path / "real/table.md").read_text()
    with open(tmp_path / "real/results.csv", newline="") as file:
        assert {"none at quantile=0", "default at quantile=0.5"} < {row["variant"] for row in csv.DictReader(file)}
    gains = [
        100 * (scores[f"default_at_{level}_seed0"][RIGHT] - scores[f"none_at_{level}_seed0"][RIGHT])
        for level in ("quantile0", "quantile0.5")
    ]
    line = next(line for line in text.splitlines() if line.startswith("| experts - none, trained at one level each"))
    said = [float(cell) for cell in line.split("|")[2:5]]
    assert said == pytest.approx([*gains, gains[1] - gains[0]], abs=0.06)
    stage = Stage(monkeypatch)
    stage.fails = {"none_at_quantile0.5_seed1": ValueError("no")}
    flags = ["--only", "level", "--seeds", "0", "1", "--out", str(tmp_path / "made"), "--", *extra]
    assert recipe.main(flags) == 1
    printed = capsys.readouterr().out
    assert "trained at one level each? +0.0 points at quantile=0" in printed and "over 1 seed" in printed


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.fusion=null", "nothing to ablate"),
        ("--model.init_from=runs/it/stage", "its fusion is fixed"),
        ("--trainer.devices=2", "Leave it at 1"),
    ],
)
def test_what_cannot_be_ablated_is_refused(flag, said, extra, capsys):
    assert recipe.main(["--", *extra, flag]) == 1
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def finished(extra, tmp_path_factory) -> Path:
    """Three variants with two seeds, really run."""
    out = tmp_path_factory.mktemp("ablation")
    assert recipe.main(["--only", "encoder", "--seeds", "0", "1", "--out", str(out), "--", *extra]) == 0
    return out


def test_every_run_has_a_folder_as_always(finished):
    for name in ("none_seed0", "default_seed1", "general_seed0"):
        version = finished / name / "version_0"
        assert (version / "config.yaml").is_file() and (version / "checkpoints/best.ckpt").is_file()
        assert list(version.glob("events.out.tfevents*"))
        saved = yaml.safe_load((version / "config.yaml").read_text())
        assert saved["seed_everything"] == saved["data"]["seed"] == int(name[-1])
    bases = {path.parent.name for path in finished.glob("*/results.json") if json.loads(path.read_text())["base"]}
    assert bases == {"none_seed0", "none_seed1"}, "the base model is tested once a seed"


def test_what_is_written_is_what_was_measured(finished):
    with open(finished / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["variant"], row["seed"], row["score"]): float(row["value"]) for row in rows}
    means = []
    for seed in ("0", "1"):
        scores = kept_scores(finished / f"general_seed{seed}")
        rows_of_run = {key[2]: value for key, value in found.items() if key[:2] == ("general", seed)}
        assert rows_of_run == {f"test/{key}": value for key, value in scores.items()}
        means.append(scores[RIGHT])
    assert {(row["variant"], row["encoder"]) for row in rows} == {
        ("none", ""),
        ("default", "expert"),
        ("general", "general"),
        ("base model", ""),
    }
    text = (finished / "table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("|  | general |"))
    assert f"| {100 * fmean(means):.1f} +- {100 * stdev(means):.1f} |" in line
    assert text.count("?") == 2 and "over 2 seeds" in text
    board = EventAccumulator(str(finished / "summary"))
    board.Reload()
    with Image.open(finished / "ablation.png") as picture:
        image = board.Images("ablation")[0]
        assert (image.width, image.height) == picture.size


def test_going_on_runs_only_what_is_missing(finished, extra, monkeypatch, capsys):
    stage = Stage(monkeypatch, makes_up=False)
    flags = ["--only", "encoder", "--seeds", "0", "1", "--out", str(finished), "--", *extra]
    table = (finished / "table.md").read_text()
    assert recipe.main(flags) == 0 and not stage.runs
    (finished / "general_seed1/results.json").unlink()
    (finished / "none_seed0/results.json").write_text('{"key": "to')  # torn
    assert recipe.main(flags) == 0 and stage.runs == ["none_seed0", "general_seed1"]
    assert (finished / "table.md").read_text() == table, "the same numbers again"
    assert "6 runs, 4 of them finished before" in capsys.readouterr().out


def test_other_flags_or_weights_make_other_runs(monkeypatch, extra, tmp_path):
    stage = Stage(monkeypatch)
    flags = ["--only", "where", "--seeds", "0", "--out", str(tmp_path), "--", *extra]
    assert recipe.main(flags) == 0 and len(stage.runs) == 3
    assert recipe.main([*flags, "--model.optim.lr=2e-3"]) == 0 and len(stage.runs) == 6
    assert recipe.main([*flags, "--model.optim.lr=2e-3"]) == 0 and len(stage.runs) == 6
    monkeypatch.setattr(recipe, "_weights", lambda name: f"new weights of {name}")
    assert recipe.main([*flags, "--model.optim.lr=2e-3"]) == 0 and len(stage.runs) == 9
    monkeypatch.setattr(recipe.zoo.world.Pets, "VERSION", 99)
    assert recipe.main([*flags, "--model.optim.lr=2e-3"]) == 0 and len(stage.runs) == 12


def test_a_model_without_a_card_and_manifests_count_by_what_is_in_them(config, tmp_path):
    """Trained or mined again under the same name."""
    model, manifest = tmp_path / "model", tmp_path / "pet.parquet"
    model.mkdir()
    options = SimpleNamespace(seeds=[0], out=tmp_path, extra=[])
    data = {**config["data"], "world": None, "galleries": [{"manifest": str(manifest)}]}
    given = {**config, "model": {**config["model"], "vlm": str(model)}, "data": data}
    keys = []
    for file in (model / "model.safetensors", manifest, model / "config.json"):
        for content in ("1", "2"):
            file.write_text(content)
            (cell,) = recipe.cells_of([recipe.Variant("none")], options, given)
            keys.append(cell.key)
    assert len(set(keys)) == 6
    assert recipe._weights("Some/Model-on-a-hub") == "Some/Model-on-a-hub"


def test_a_failure_is_named_and_the_others_go_on(monkeypatch, extra, tmp_path, capsys):
    stage = Stage(monkeypatch)
    stage.fails = {"none_seed0": RuntimeError("no space\nat all"), "default_seed1": ValueError("[Pet 3] is nan")}
    flags = ["--only", "encoder", "--seeds", "0", "1", "--out", str(tmp_path), "--", *extra]
    assert recipe.main(flags) == 1 and len(stage.runs) == 6
    said = capsys.readouterr()
    assert "failed: none_seed0: RuntimeError: no space\n" in said.err and "2 of 6 runs failed" in said.err
    assert "failed, ValueError: [Pet 3] is nan. 0:00:0" in said.out
    assert "| none | 50.0 | 50.0 | 50.0 |  |  | 1 |" in (tmp_path / "table.md").read_text(), "no common seed"
    stage.fails, stage.runs[:] = {}, []
    assert recipe.main(flags) == 0 and stage.runs == ["none_seed0", "default_seed1"]


def test_all_failures(monkeypatch, extra, tmp_path, capsys):
    stage = Stage(monkeypatch)
    stage.fails = {f"{name}_seed0": ValueError("no") for name in ("none", "default", "after")}
    assert recipe.main(["--only", "where", "--seeds", "0", "--out", str(tmp_path), "--", *extra]) == 1
    assert "3 of 3" in capsys.readouterr().err and not list(tmp_path.glob("*.md"))
    del stage.fails["none_seed0"]
    assert recipe.main(["--only", "where", "--seeds", "0", "--out", str(tmp_path), "--", *extra]) == 1
    assert "Not answered by these runs." in (tmp_path / "table.md").read_text()


def test_ctrl_c_is_no_failure(monkeypatch, extra, tmp_path, capsys):
    """Lightning makes a SystemExit of it."""
    stage = Stage(monkeypatch)
    stage.fails = {"default_seed0": KeyboardInterrupt()}
    assert recipe.main(["--seeds", "0", "--out", str(tmp_path), "--", *extra]) == 130
    assert stage.runs == ["none_seed0", "default_seed0"] and "goes on" in capsys.readouterr().out


# ---------------------------------------------------------------------- what is said


def test_the_mark_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    marks = set()
    for seeds in (2, 3, 5):
        for effect in (0.0, 0.02, 0.1):
            one, other = rng.normal(0.5 + effect, 0.02, seeds), rng.normal(0.5, 0.02, seeds)
            difference = Mean.difference(runs_of(*one), runs_of(*other), RIGHT)
            assert difference.is_clear == (stats.ttest_rel(one, other).pvalue < 0.05)
            assert difference.value == pytest.approx((one - other).mean())
            assert difference.sd == pytest.approx((one - other).std(ddof=1))
            marks.add(difference.is_clear)
    assert marks == {True, False}


def test_rounding_is_no_difference():
    """0.3 - 0.2 is less than 0.2 - 0.1, in floating point."""
    one, other = (
        {seed: at_levels(dict(zip(LEVELS, values, strict=True))) for seed in (0, 1)}
        for values in ((0.2, 0.3), (0.1, 0.2))
    )
    assert growth(one, other).value != 0 and growth(one, other).percent("+") == "+0.0 +- 0.0"


def test_means_of_little():
    assert Mean.of([]).percent() == "" and Mean.of([0.5]).percent("+") == "+50.0" and not Mean.of([0.5]).is_clear
    assert math.isnan(Mean.of([0.5]).sd) and Mean.of([0.0, 0.0]).percent("+") == "+0.0 +- 0.0"
    assert Mean.difference({0: made_up(0.5)}, {1: made_up(0.5)}, RIGHT).seeds == 0


def test_the_table_by_hand():
    none, default, other = runs_of(0.40, 0.50, 0.45), runs_of(0.60, 0.70, 0.65), runs_of(0.5, 0.9)
    groups = {"adapter": {"additive (default)": default, "concat": other, "none": none}}
    rows = cells(ablation_table(groups, default, none, {"chance": (default, "chance")}))
    assert rows[0] == ["factor", "variant", "pet", "object", "mean", "over none", "over default", "seeds"]
    # sd of 0.60, 0.70, 0.65 is 0.05; the gain is 0.20 with every seed
    assert rows[1] == ["adapter", "additive (default)", *["65.0 +- 5.0"] * 3, "+20.0 +- 0.0*", "", "3"]
    # gains of 0.1 and 0.4, and of -0.1 and 0.2: means 0.25 and 0.05, sd 0.3 / sqrt(2) = 0.212
    assert rows[2] == ["", "concat", *["70.0 +- 28.3"] * 3, "+25.0 +- 21.2", "+5.0 +- 21.2", "2"]
    assert rows[3] == ["", "none", *["45.0 +- 5.0"] * 3, "", "-20.0 +- 0.0*", "3"]
    assert rows[4] == ["beside", "chance", *["20.0 +- 0.0"] * 3, "", "", "3"]


def test_the_gain_by_level_by_hand():
    none, expert = runs_of(0.4, 0.5, harder=0.2), runs_of(0.6, 0.7, harder=0.1)
    rows = cells(level_table({"experts - none": (expert, none)}, {"expert alone": (expert, "expert")}))
    assert rows[0] == ["", *LEVELS, "last - first"]
    assert rows[1] == ["experts - none", "+20.0 +- 0.0*", "+30.0 +- 0.0*", "+10.0 +- 0.0*"]
    assert rows[2] == ["expert alone", "60.0 +- 0.0", "60.0 +- 0.0", ""]


def cells(table) -> list[list[str]]:
    lines = [line for line in as_markdown(table).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if "---" not in line]


def test_a_narrow_page_has_no_columns_of_categories():
    labels = {"none": {}, "default": {"encoder": "expert"}}
    outcome = Outcome({"none": runs_of(0.4, 0.5), "default": runs_of(0.6, 0.7)}, {}, labels)
    wide, narrow = (cells(outcome.tables(by_category=by)[0]) for by in (True, False))
    assert wide[0] == [*wide[0][:2], "pet", "object", *narrow[0][2:]] and narrow[0][2] == "mean"
    assert [[*row[:2], *row[4:]] for row in wide] == narrow


def test_levels_are_ordered_by_difficulty_and_those_of_two_kinds_not_compared():
    levels = ("quantile=0.97", "quantile=0.5", "quantile=0.125")
    one = {0: at_levels(dict(zip(levels, (0.9, 0.8, 0.5), strict=True)))}
    other = {0: at_levels(dict.fromkeys(levels, 0.4))}
    assert levels_of(one[0], "accuracy") == list(levels[::-1])
    assert growth(one, other).value == pytest.approx(0.4)
    mixed = {0: at_levels({"tau=0.5": 0.5, "quantile=0.5": 0.1})}
    assert growth(mixed, mixed).seeds == 0 and growth({0: at_levels({"tau=0.5": 0.5})}, {0: {}}).seeds == 0


@pytest.mark.parametrize(
    ("expert", "general", "none_harder", "said"),
    [
        ((0.70, 0.72, 0.71), (0.60, 0.61, 0.62), 0.1, ["grow.*Yes: +10.0 +- 0.0 points", "beat.*Yes: +10.0 +- 1.0"]),
        ((0.60, 0.61, 0.62), (0.70, 0.72, 0.71), -0.1, ["It shrinks: -10.0", "No, the general encoder is better: -10"]),
        ((0.60, 0.80, 0.70), (0.80, 0.60, 0.71), 0.0, ["grow.*No difference beyond the spread", "beat.*No difference"]),
        (
            (0.70,),
            (0.60,),
            0.1,
            ["Not answered by one seed", "Not answered by one seed, without a spread: +10.0 points"],
        ),
        ((0.70, 0.72), (), 0.1, ["levels together.*Yes", "beat.*Not answered by these runs.*harms it"]),
    ],
)
def test_the_two_questions(expert, general, none_harder, said):
    labels = {"none": {}, "default": {"encoder": "expert"}, "general": {"encoder": "general"}}
    none = {seed: made_up(0.4, none_harder) for seed in range(3)}
    outcome = Outcome({"none": none, "default": runs_of(*expert), "general": runs_of(*general)}, none, labels)
    for sentence, pattern in zip(outcome.answers(), said, strict=True):
        assert re.search(pattern.replace("+", r"\+"), sentence), sentence
    assert sum(sentence.count("Yes") for sentence in outcome.answers()) == sum("Yes" in pattern for pattern in said)
