"""Ablations of stage 1: which adapter, whose identities, where they enter, and what an expert gains by level.

One factor at a time varies around the default, `configs/vlm_stage1.yaml` with the flags after `--`, each variant with
several seeds. A seed is that of the weights, of the training and of the galleries, so variants are compared seed by
seed. Each run is one of `python -m recipes.vlm_stage1 fit`, with a folder of its own and a shorter training
(`--trainer.max_epochs 5` after `--` for the whole); one that is finished is not run again. Written are results.csv,
table.md and ablation.png, which is in TensorBoard, too.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

import fusion
import zoo
import zoo.world
from recipes import vlm_stage1
from recipes.cli import parse
from recipes.outcome import DEFAULT, NONE, Outcome
from zoo.cards import CardError
from zoo.contracts import FusionAdapter
from zoo.scores import ScoreName, Scores, from_records, to_records
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.stage import default_experts
from zoo.vlm.tasks.match import default_worlds

FACTORS = {
    "adapter": "additive, unscaled and literal (eqs. 3 and 4 as printed), concat, attention to identities or patches",
    "encoder": "the category's expert, or the general encoder for all (Table 5)",
    "where": "identities enter before the projector, or after it",
    "level": "training and testing at the easiest or the hardest level only, default and none (Figure 3)",
}
TABLE_WIDTH = 150  # of a table with all categories
_AT = "_at_"  # between a variant's name and its level
_MODEL_FILES = ("*.safetensors", "*.bin", "config.json")
_WITHOUT = ("--model.fusion=null", "--model.experts=null")
# Answers that are written cost more than options that are scored, and are compared nowhere here.
LEADING = ["fit", "--control=false", "--model.writes=false", "--trainer.devices=1"]
# 200 steps, two minutes on two cores: three fifths of what the default gains in 500.
LEADING += ["--trainer.max_epochs=2", "--pictures.every_n_epochs=0"]


@dataclass(frozen=True)
class Variant:
    """The default with some flags.

    Args:
        name: also of its folders.
        labels: factor -> what it is in this variant, for the factors that vary.
        flags: what sets it apart; every value that a factor sets is stated, since swapping a class keeps the values
            of arguments that both classes have.
        level: the only one that it is trained and tested at; "" for all of them together.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    level: str = ""

    @property
    def of(self) -> str:
        """Its name without the level."""
        return self.name.partition(_AT)[0]


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        variant: what is run.
        seed: of everything.
        command: flags of `recipes.vlm_stage1`.
        folder: of the run.
        key: what the result depends on, as a hash.
    """

    variant: Variant
    seed: int
    command: list[str]
    folder: Path
    key: str

    def result(self) -> dict[str, Any] | None:
        """What an earlier run with the same key has left."""
        try:
            found = json.loads((self.folder / "results.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == self.key else None

    def run(self) -> Scores:
        """Train and test, and keep the scores beside the run.

        Raises:
            RuntimeError: the run has come to no scores.
            SystemExit: the recipe refuses.
        """
        start = time.monotonic()
        results = vlm_stage1.main(self.command).results
        base = results.pop("base model", None)
        if len(results) != 1:
            raise RuntimeError("The run has tested nothing: a dry run, or one that was stopped early.")
        (scores,) = results.values()
        record: dict[str, Any] = {
            "key": self.key,
            "command": self.command,
            "seconds": round(time.monotonic() - start, 1),
        }
        record |= {"scores": to_records(scores), "base": to_records(base or {})}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "results.json.part"
        part.write_text(json.dumps(record, indent=1))
        os.replace(part, self.folder / "results.json")
        return scores


# ---------------------------------------------------------------------- what is run


def default_config(extra: list[str]) -> dict[str, Any]:
    """What stage 1 is set to with some flags, all defaults filled in.

    Raises:
        ValueError: there are no experts to ablate, a start would fix the fusion, or a run would take several devices.
        SystemExit: flags that stage 1 does not understand.
    """
    config = parse(MatchStage, MatchData, vlm_stage1.RECIPE, [*LEADING, *extra])
    if config["model"]["experts"] == "default":
        config["model"]["experts"] = default_experts()
    if not config["model"]["experts"] or not config["model"]["fusion"]:
        raise ValueError(
            f"The default has experts {config['model']['experts']} and fusion {config['model']['fusion']}: there is "
            "nothing to ablate. Give it both."
        )
    if config["model"]["init_from"] is not None:
        raise ValueError(
            f"model.init_from is {config['model']['init_from']}: its fusion is fixed, and there is nothing to ablate. "
            "Leave it out."
        )
    if str(config["trainer"]["devices"]) != "1":
        raise ValueError(
            f"trainer.devices is {config['trainer']['devices']}: the runs of an ablation follow each other in one "
            "process. Leave it at 1; run factors beside each other with --only and --out instead."
        )
    return config


def choices_of(model: Mapping[str, Any], general: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Factor -> choice -> its flags; the default, which has none, comes first.

    Args:
        model: what the default sets `model` to.
        general: card of the general encoder.
    """
    given = model["fusion"]["init_args"]
    own, adapters = "", {}
    for name, (adapter, variant) in fusion.variants().items():
        stated = _shared(adapter, given) | variant.arguments
        same_class = model["fusion"]["class_path"].rpartition(".")[2] == adapter.__name__
        if same_class and stated == given and variant.patch_tokens == model["patch_tokens"]:
            own = name
            continue
        setting = json.dumps({"class_path": f"{adapter.__module__}.{adapter.__qualname__}", "init_args": stated})
        adapters[name] = (f"--model.fusion={setting}", f"--model.patch_tokens={str(variant.patch_tokens).lower()}")
    before = model["before_projector"]
    general_for_all = json.dumps(dict.fromkeys(model["experts"], general))
    where = {True: "before", False: "after"}
    return {
        "adapter": {own or model["fusion"]["class_path"]: (), **adapters},
        "encoder": {"expert": (), "general": (f"--model.experts={general_for_all}",)},
        "where": {where[before]: (), where[not before]: (f"--model.before_projector={str(not before).lower()}",)},
    }


def _shared(adapter: type[FusionAdapter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that most adapters have, as far as this one has them: as given, else its defaults."""
    known = signature(adapter).parameters
    return {name: given.get(name, known[name].default) for name in ("hidden", "gate") if name in known}


def variants_of(choices: Mapping[str, Mapping[str, tuple[str, ...]]], grid: bool) -> list[Variant]:
    """None and the default, which all others are compared with; then one factor at a time, or all combinations."""
    defaults = {factor: next(iter(options)) for factor, options in choices.items()}
    found = [Variant(NONE, {}, _WITHOUT), Variant(DEFAULT, defaults)]
    for combination in product(*reversed([*choices.values()])):  # the first factor varies first
        labels = dict(zip(choices, reversed(combination), strict=True))
        changed = [factor for factor in choices if labels[factor] != defaults[factor]]
        if len(changed) == 1 or grid and changed:
            flags = tuple(flag for factor in changed for flag in choices[factor][labels[factor]])
            found.append(Variant("_".join(labels[factor] for factor in changed), labels, flags))
    return found


def single_levels(data: Mapping[str, Any]) -> list[Variant]:
    """None and the default at the easiest and at the hardest of several levels only.

    Args:
        data: what the default sets `data` to; of manifests the levels cannot be chosen.
    """
    kind = "tau_quantile" if data["tau_quantile"] else "tau"
    values = sorted(set(data[kind] or []))
    if not data["world"] or len(values) < 2 or data["tau"] and data["tau_quantile"]:
        return []
    found = []
    for value in (values[0], values[-1]):
        level = f"{kind.removeprefix('tau_')}={value:g}"
        flags = (f"--data.{kind}=[{value}]",)
        for name, own in ((NONE, _WITHOUT), (DEFAULT, ())):
            found.append(Variant(f"{name}{_AT}{level.replace('=', '')}", {}, (*own, *flags), level))
    return found


def cells_of(variants: list[Variant], options: argparse.Namespace, config: Mapping[str, Any]) -> list[Cell]:
    """Every variant with every seed; a whole seed before the next, so that an ablation that is stopped can be read."""
    model = config["model"]
    cards = [model["vlm"], *model["experts"].values(), config["data"]["encoder"]]
    manifests = [_hash_of([Path(source["manifest"])]) for source in config["data"]["galleries"] or []]
    used = [[_weights(card) for card in cards], manifests, _versions(config["data"]["world"] or {})]
    settings = json.dumps([config, used], sort_keys=True, default=str)
    cells = []
    for seed, variant in product(dict.fromkeys(options.seeds), variants):
        name = f"{variant.name}_seed{seed}"
        folder = options.out / name
        own = [f"--seed_everything={seed}", f"--data.seed={seed}"]
        own.append(f"--baselines={str(variant.name == NONE).lower()}")  # the base model is tested once a seed
        place = [f"--name={name}", f"--trainer.logger.save_dir={options.out}", f"--trainer.default_root_dir={folder}"]
        key = hashlib.sha256(json.dumps([settings, variant.flags, own]).encode()).hexdigest()[:16]
        command = [*LEADING, *options.extra, *variant.flags, *own, *place]
        cells.append(Cell(variant, seed, command, folder, key))
    return cells


def _weights(name: str) -> str:
    """Hash of a component's weights, of a model of transformers without a card that of its files; of one on a hub,
    there is its name only."""
    try:
        return zoo.card(name).weights.sha256
    except CardError:
        return _hash_of(sorted(path for end in _MODEL_FILES for path in Path(name).glob(end))) or name


def _hash_of(files: list[Path]) -> str:
    """Of several files, "" of none; those that are not there are refused by the run that needs them."""
    hashes = []
    for path in files:
        if path.is_file():
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(hashes)


def _versions(world: Mapping[str, Any] | str) -> list[int]:
    """Versions of how the worlds are drawn; 0 of those that are not the zoo's."""
    if world == "default":
        return [own.VERSION for own in default_worlds().values()]
    names = [own["class_path"].rpartition(".")[2] for own in cast(Mapping[str, Any], world).values()]
    return [getattr(getattr(zoo.world, name, None), "VERSION", 0) for name in names]


# ---------------------------------------------------------------------- running


def run_cells(cells: list[Cell], console: Console) -> dict[str, str]:
    """Run what is not finished yet, one after another; returns failed cell -> reason."""
    waiting = [cell for cell in cells if cell.result() is None]
    console.print(f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished before")
    start, failed = time.monotonic(), {}
    for number, cell in enumerate(waiting, 1):
        console.rule(f"{number} of {len(waiting)}: {cell.variant.name}, seed {cell.seed}")
        try:
            outcome = f"{100 * cell.run()[ScoreName('accuracy')]:.1f} % right"
        except (Exception, SystemExit) as error:
            cause = error.__context__ or error if isinstance(error, SystemExit) else error
            if isinstance(error, SIGTERMException) or isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None  # what Lightning makes a SystemExit of
            failed[cell.folder.name] = f"{type(cause).__name__}: {cause}".partition("\n")[0]
            outcome = f"failed, {failed[cell.folder.name]}"
        spent = time.monotonic() - start
        left = spent / number * (len(waiting) - number)
        line = f"{cell.variant.name}, seed {cell.seed}: {outcome}. {_clock(spent)} so far, about {_clock(left)} left"
        console.print(line)
    return failed


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def outcome_of(cells: list[Cell], grid: bool) -> Outcome:
    """What the finished cells have found."""
    runs: dict[str, dict[int, Scores]] = {cell.variant.name: {} for cell in cells if not cell.variant.level}
    single: dict[str, dict[str, dict[int, Scores]]] = {
        cell.variant.level: {NONE: {}, DEFAULT: {}} for cell in cells if cell.variant.level
    }
    base: dict[int, Scores] = {}
    for cell in cells:
        variant, result = cell.variant, cell.result()
        if result is not None:
            own = single[variant.level][variant.of] if variant.level else runs[variant.name]
            own[cell.seed] = from_records(result["scores"])
            base |= {cell.seed: from_records(result["base"])} if result["base"] else {}
    labels = {cell.variant.name: cell.variant.labels for cell in cells if not cell.variant.level}
    return Outcome(runs, base, labels, grid, single)


# ---------------------------------------------------------------------- the command line


def main(args: list[str] | None = None) -> int:
    given = sys.argv[1:] if args is None else list(args)
    split = given.index("--") if "--" in given else len(given)
    options = parser().parse_args(given[:split])
    options.extra = given[split + 1 :]
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        config = default_config(options.extra)
    except ValueError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    choices = choices_of(config["model"], config["data"]["encoder"])
    variants = variants_of({factor: choices[factor] for factor in options.only if factor in choices}, options.grid)
    variants += single_levels(config["data"]) if "level" in options.only else []
    cells = cells_of(variants, options, config)
    if options.list:
        for cell in cells:
            words = ["python", "-m", "recipes.vlm_stage1", *cell.command]
            console.print(f"{cell.folder.name}: {shlex.join(words)}")
        seeds = len(cells) // len(variants)
        console.print(f"{len(cells)} runs: {len(variants)} variants, each with {seeds} seed{'s' * (seeds > 1)}")
        return 0
    try:
        failed = run_cells(cells, console)
    except KeyboardInterrupt:
        console.print("\nStopped. The same command goes on with what is not finished.")
        return 130
    outcome = outcome_of(cells, options.grid)
    if any(outcome.runs.values()):
        outcome.save(options.out)
        if not console.is_terminal:
            console.width = max(console.width, TABLE_WIDTH)
        for table in outcome.tables(by_category=console.width >= TABLE_WIDTH):
            console.print(table, soft_wrap=False)
        console.print("\n".join(outcome.answers()))
        console.print(f"\ntable, scores, plot  {options.out}/table.md, results.csv, ablation.png")
        console.print(f"Look at it:          tensorboard --logdir {options.out}")
    for name, reason in failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    if failed:
        sys.stderr.write(f"{len(failed)} of {len(cells)} runs failed; the same command tries them again.\n")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m recipes.ablate_fusion",
        usage="%(prog)s [flags] [-- flags of recipes.vlm_stage1 for every run]",
        description="\n".join([str(__doc__), *(f"  {factor:8} {text}" for factor, text in FACTORS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="0 1 2 by default")
    add("--only", nargs="+", choices=FACTORS, default=list(FACTORS), help="factors to vary; by default all")
    add("--grid", action="store_true", help="all combinations instead of one factor at a time")
    add("--out", type=Path, default=Path("runs/ablate_fusion"), help="folder of all runs and of what came out")
    add("--list", action="store_true", help="print the runs and their commands, and run nothing")
    return top


if __name__ == "__main__":
    sys.exit(main())
