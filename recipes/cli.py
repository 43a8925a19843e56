"""The command line of every recipe: `python -m recipes.<recipe> {fit,validate,test,predict} [flags]`."""

import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

import zoo
from recipes.flags import without_flags
from recipes.process import set_up_process, use_cpu_well
from recipes.tables import score_tables
from zoo.module import ZooModule
from zoo.scores import Scores
from zoo.training.callbacks import ControlRun, SaveComponent, TestBeside, callbacks_of, follow_fit
from zoo.training.checkpoints import read_checkpoint

CONFIGS = Path(__file__).parent / "configs"
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


class RecipeParser(LightningArgumentParser):
    """Refuses what it does not know with the nearest name that it does."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.stderr.write(f"error: {message}\n{self._suggestion(message)}--help after the command lists all flags.\n")
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        known = self._options()
        for word in re.findall(r"[\w-]+(?:\.\w+)+|--\w+", message):
            wanted = "--" + word.lstrip("-")
            near = get_close_matches(wanted, known, n=1, cutoff=0.7)
            if near and wanted not in known:
                return f"Did you mean {near[0]}?\n"
        return ""

    def _options(self) -> set[str]:
        parsers = [self]
        for action in self._actions:
            parsers += getattr(action, "_name_parser_map", {}).values()  # those of the subcommands
        return {option for parser in parsers for action in parser._actions for option in action.option_strings}


class RecipeCLI(LightningCLI):
    """LightningCLI whose flags reach interpolated values, whose runs resume where they were, and that saves, tests and
    compares after a fit, and prints the results.

    Args:
        model: root of the run.
        data: data module.
        recipe: what is run.
        args: the command line with the YAML files of the recipe.
        given: the command line as typed.

    Attributes:
        results: what was tested -> scores, such as `{"trained": {ScoreName("mAP"): 0.4}}`.
        kept: what a fit has kept -> where; empty where it was interrupted.
    """

    model: ZooModule
    datamodule: LightningDataModule

    def __init__(
        self,
        model: type[ZooModule],
        data: type[LightningDataModule],
        recipe: "Recipe",
        args: list[str],
        given: list[str],
    ) -> None:
        self.root, self.recipe, self.given = model, recipe, given
        self.console = Console()
        self.results: dict[str, Scores] = {}
        self.kept: dict[str, Path] = {}
        super().__init__(
            model,
            data,
            args=args,
            parser_class=RecipeParser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": f"python -m recipes.{recipe.name}"},
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
        )

    # ------------------------------------------------------------------ parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--name", type=str, default="run", help="Name of the run; it is kept in runs/NAME.")
        add(
            "--monitor",
            type=str | None,
            default=None,
            help="Score whose largest value makes a checkpoint the best; null for the latest.",
        )
        cards = "Cards of components to test beside the trained one after fit."
        add("--compare_with", type=list[str], default=[], help=cards)
        add(
            "--baselines",
            type=bool,
            default=True,
            help="Test what the model is compared with, too: its start, random weights, the base model.",
        )
        if self.root.control_name:
            same = f"the same {self.root.control_name.replace('_', ' ')}"
            add("--control", type=bool, default=False, help=f"Train {same}, too, in a run of its own, to compare with.")
        if self.recipe.second_part:
            add(
                "--then",
                type=str | None,
                default=None,
                help="YAML of a run that goes on from the component; a name is one of recipes/configs. It is laid over "
                "the YAML files of this run; the flags of the command line hold for both.",
            )
        for key, callback in self.recipe.callbacks.items():
            parser.add_lightning_class_args(callback, key)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(cast(list[str], args))

    def _parse_ckpt_path(self) -> None:
        """Flags and YAML win over what a checkpoint was made with (stock Lightning: the other way round, silently);
        what differs is printed."""
        checkpoint = self._checkpoint()
        if checkpoint is None:
            return
        saved = read_checkpoint(checkpoint).get("hyper_parameters", {})
        subcommand = self.config.subcommand
        now = yaml.safe_load(self._parser(subcommand).dump(self.config[subcommand], skip_none=False))["model"]
        for key in sorted(saved.keys() & now.keys()):
            if saved[key] != now[key]:
                print(f"model.{key} is {now[key]}, the checkpoint was made with {saved[key]}")

    def _checkpoint(self) -> Path | None:
        path = self.config[self.config.subcommand].get("ckpt_path") if self.config.get("subcommand") else None
        if not path:
            return None
        if not Path(path).is_file():
            raise FileNotFoundError(f"No checkpoint {path}. Give ckpt_path a .ckpt file of an earlier run.")
        return Path(path)

    def before_instantiate_classes(self) -> None:
        """A resumed run goes on in its own folder, so that its curves and its best checkpoint stay in one place;
        without a progress bar there is none."""
        config = self.config[self.subcommand]["trainer"]
        if config.get("enable_progress_bar") is False:
            config.callbacks = [c for c in config.callbacks or [] if "ProgressBar" not in c.class_path]
        checkpoint, logger = self._checkpoint(), config.get("logger")
        if self.subcommand == "fit" and checkpoint is not None and hasattr(logger, "init_args"):
            run_folder = checkpoint.parent.parent
            if checkpoint.parent.name == "checkpoints" and run_folder.name.startswith("version_"):
                logger.init_args.save_dir = str(run_folder.parent.parent)
                logger.init_args.name = run_folder.parent.name
                logger.init_args.version = int(run_folder.name.removeprefix("version_"))

    def after_instantiate_classes(self) -> None:
        if self.trainer.strategy.root_device.type == "cpu":
            workers = getattr(self.datamodule, "workers", 0)
            use_cpu_well(getattr(self.datamodule, "busy_workers", workers))
        if self.subcommand == "fit":
            compared = TestBeside(self._get(self.config, "compare_with"), self._get(self.config, "baselines"))
            control = [ControlRun(self._control)] if self._get(self.config, "control") else []
            # Before the checkpoints, which come last.
            callbacks_of(self.trainer)[:0] = [SaveComponent(name=self._get(self.config, "name")), compared, *control]

    # ------------------------------------------------------------------ running

    def before_fit(self) -> None:
        if self.trainer.log_dir and not self.is_dry_run:
            last = Path(self.trainer.log_dir) / "checkpoints" / "last.ckpt"
            self.print(f"If interrupted, go on with:\n  {self._command('fit', f'--ckpt_path={last}')}")

    def after_fit(self) -> None:
        """Save, test and compare, and print where things are."""
        fit = follow_fit(self.trainer, self.model, self.datamodule, self._command("fit"), self.report)
        if fit is None:
            return
        folder = self.folder
        self.kept = {"best checkpoint": fit.best, **fit.kept}
        if (folder / "pictures").is_dir():
            self.kept["pictures"] = folder / "pictures"
        named = {"component": self.model.component_folder}
        lines = [f"{named.get(what, what):<17}{path}" for what, path in self.kept.items()]
        lines.append(f"Look at it:  tensorboard --logdir {folder}")
        if self.recipe.use:
            use = self.recipe.use.format(run=folder, best=fit.best, **fit.kept)
            lines.append(f"Use it:      python -m recipes.{self.recipe.name} {use}")
        self.print("\n".join(lines))

    def _control(self) -> tuple[Trainer, ZooModule, LightningDataModule]:
        """Trainer, root and data of the control: this run's configuration with the root's control arguments."""
        own = self.config, self.config_init, self.model, self.datamodule, self.trainer
        trainer = self._get(self.config, "trainer")
        suffix = f"_{self.model.control_name}"
        changed = {f"model.{key}": value for key, value in self.model.control.items()}
        changed |= {"name": self._get(self.config, "name") + suffix, "ckpt_path": None}
        changed |= {"control": False, "baselines": False}
        changed |= {"trainer.default_root_dir": f"{trainer['default_root_dir']}{suffix}"}
        if hasattr(trainer["logger"], "init_args"):
            changed |= {"trainer.logger.init_args.name": changed["name"], "trainer.logger.init_args.version": None}
        self.config = config = self.config.clone()
        for key, value in changed.items():
            config[f"{self.subcommand}.{key}"] = value
        try:
            self._set_seed()
            self.instantiate_classes()
            return self.trainer, self.model, self.datamodule
        finally:
            self.config, self.config_init, self.model, self.datamodule, self.trainer = own

    def after_validate(self) -> None:
        self.report({"validate": self.model.scores})

    def after_test(self) -> None:
        self.report({"test": self.model.scores})

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are written, not kept: memory does not grow
        elif subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    @property
    def is_dry_run(self) -> bool:
        """Whether the run only tries a few batches and keeps nothing."""
        return bool(self._get(self.config, "trainer").get("fast_dev_run"))

    @property
    def folder(self) -> Path:
        """Where the run keeps what it makes. To be asked for by all processes."""
        return Path(self.trainer.log_dir or ".")

    # ------------------------------------------------------------------ output

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        if self.trainer.is_global_zero:
            self.console.print(text, highlight=False, soft_wrap=True)

    def report(self, results: Mapping[str, Scores]) -> None:
        """Keep scores in `results` and print them, once.

        Args:
            results: what was tested -> scores.
        """
        self.results = {name: dict(scores) for name, scores in results.items()}
        if self.trainer.is_global_zero:
            for table in score_tables(results):
                self.console.print(table)

    def _command(self, subcommand: str, *more: str) -> str:
        flags = without_flags(self.given[self.given.index(subcommand) + 1 :], ("ckpt_path",))
        return shlex.join(["python", "-m", f"recipes.{self.recipe.name}", subcommand, *flags, *more])


class ParsedCLI(RecipeCLI):
    """Parses the command line of a recipe, and makes and runs nothing."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of training runs; testing an encoder leaves that of its training alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


@dataclass(frozen=True)
class Recipe:
    """What a recipe adds to its model and its data.

    Args:
        name: of its module and of its YAML.
        callbacks: flag -> callback of Lightning whose arguments are flags below it.
        use: the subcommand and flags that use the result of a fit; `{run}` is its folder, `{best}` its best checkpoint,
            `{component}` the folder of what it has saved.
        second_part: whether a fit may be followed by one that goes on from its component, by the YAML of `--then`.
    """

    name: str
    callbacks: Mapping[str, type[Callback]] = field(default_factory=dict)
    use: str = ""
    second_part: bool = False


def run(
    model: type[ZooModule],
    data: type[LightningDataModule],
    recipe: str | Recipe,
    args: list[str] | None = None,
) -> RecipeCLI:
    """Run a recipe: its YAML files, then the user's own files and flags. A process may call it many times.

    Args:
        model: root of the run.
        data: data module.
        recipe: the recipe, or its name.
        args: the command line; None takes that of the process.

    Returns:
        What ran, with its `trainer`, `model`, `datamodule`, `results` and `kept`.

    Raises:
        SystemExit: 2 for a command line that cannot be understood, 1 for a run that cannot be done. Set
            ZOO_TRACEBACK=1 to see where from.
    """
    return _started(RecipeCLI, model, data, recipe, args)


def parse(
    model: type[ZooModule],
    data: type[LightningDataModule],
    recipe: str | Recipe,
    args: list[str] | None = None,
) -> dict[str, Any]:
    """The configuration of a run, all defaults filled in, as plain values; nothing is made or run.

    Args:
        model, data, recipe, args: see `run`.

    Raises:
        SystemExit: 2 for a command line that cannot be understood.
    """
    parsed = _started(ParsedCLI, model, data, recipe, args)
    subcommand = parsed.config.subcommand
    return yaml.safe_load(parsed._parser(subcommand).dump(parsed.config[subcommand], skip_none=False))


def _started(
    cli: type[RecipeCLI],
    model: type[ZooModule],
    data: type[LightningDataModule],
    recipe: str | Recipe,
    args: list[str] | None,
) -> RecipeCLI:
    set_up_process()
    recipe = Recipe(recipe) if isinstance(recipe, str) else recipe
    given = sys.argv[1:] if args is None else list(args)
    command = next((i for i, word in enumerate(given) if word in _SUBCOMMANDS), None)
    stacked = list(given)
    if command is not None:
        stacked[command + 1 : command + 1] = [f"--config={path}" for path in config_files(recipe.name)]
    try:
        # In a context of its own: that of the process would keep the parser, and with it the model, until the next run.
        return copy_context().run(cli, model, data, recipe, stacked, given)
    except (ValueError, OSError, RuntimeError, MisconfigurationException) as error:
        # Lightning and torch wrap what happened in a worker or a rank; the cause is in the text.
        if os.environ.get("ZOO_TRACEBACK") or isinstance(error, RuntimeError) and not _is_ours(error):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OSError(f"{error}. The disk is full; what was saved before is intact. Free some space and go on.")
        sys.stderr.write(f"\nerror: {error}\n(ZOO_TRACEBACK=1 shows where it was raised)\n")
        raise SystemExit(1) from None


def config_files(recipe: str) -> list[Path]:
    """The YAML files that a recipe starts from, each laid over those before it: `base.yaml`; that of its family, the
    part of its name before the first underscore (`expert.yaml` for `expert_pet`), where there is one; its own.

    Args:
        recipe: its name.
    """
    names = dict.fromkeys(("base", recipe.partition("_")[0], recipe))
    return [path for path in (CONFIGS / f"{name}.yaml" for name in names) if path.is_file()]


def _is_ours(error: RuntimeError) -> bool:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Path(frame.filename).is_relative_to(Path(zoo.__file__).parent)
