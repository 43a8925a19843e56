"""The command line of every recipe: `python -m recipes.<recipe> {fit,validate,test,predict} [flags]`."""

import atexit
import ctypes
import errno
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import zoo
from recipes.flags import without_flags
from zoo.module import ZooModule
from zoo.world import World

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
    """LightningCLI whose flags reach interpolated values, whose runs resume where they were, and that says in the
    end what came out.

    A kind of recipe derives from it and overrides, each time calling `super()` where there is something to call:
    `add_arguments_to_parser` for flags of its own, `before_instantiate_classes` to settle what the flags leave open,
    `validates` where its data may have nothing to validate on, `busy_workers` where its loaders have little to do,
    `before_fit`, `after_training` for what follows a whole fit, `tables` for how its scores are shown.

    Args:
        model: root of the run.
        data: data module.
        recipe: name of the recipe.
        args: the command line with the YAML files of the recipe.
        given: the command line as the user has typed it.

    Attributes:
        results: what was tested -> score -> value, such as `{"trained": {"test/mAP": 0.4}}`; filled by `report`.
    """

    model: ZooModule
    datamodule: LightningDataModule

    def __init__(
        self, model: type[ZooModule], data: type[LightningDataModule], recipe: str, args: list[str], given: list[str]
    ) -> None:
        self.recipe, self.given = recipe, given
        self.console = Console()
        self.results: dict[str, dict[str, float]] = {}
        super().__init__(
            model,
            data,
            args=args,
            parser_class=RecipeParser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": f"python -m recipes.{recipe}"},
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
        )

    # ------------------------------------------------------------------ parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="Name of the run; it is kept in runs/NAME.")
        parser.add_argument(
            "--monitor",
            type=str | None,
            default=None,
            help="Score whose largest value makes a checkpoint the best; null for the latest.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

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
            use_cpu_well(self.busy_workers)

    # ------------------------------------------------------------------ running

    @property
    def busy_workers(self) -> int:
        """Loaders that keep a core busy."""
        return getattr(self.datamodule, "workers", 0)

    @property
    def validates(self) -> bool:
        """Whether the data has something to choose the best checkpoint by."""
        return True

    def before_fit(self) -> None:
        if not self.validates:
            for checkpoint in self.trainer.checkpoint_callbacks:
                if str(getattr(checkpoint, "monitor", "")).startswith("val/"):
                    checkpoint.monitor = None  # type: ignore[attr-defined]  # the last epoch counts as the best
        if self.trainer.log_dir and not self.is_dry_run:
            last = Path(self.trainer.log_dir) / "checkpoints" / "last.ckpt"
            self.say(f"If interrupted, go on with:\n  {self._command('fit', f'--ckpt_path={last}')}")

    def after_fit(self) -> None:
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if best and not self.is_dry_run and not self.trainer.interrupted:
            self.after_training(Path(best))

    def after_training(self, best: Path) -> None:
        """What follows a fit that has come to its end: tests, and what is kept of it.

        Args:
            best: its best checkpoint.
        """
        self.say_where({"best checkpoint": best})

    def after_validate(self) -> None:
        self._report_own_scores("validate")

    def after_test(self) -> None:
        self._report_own_scores("test")

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

    @contextmanager
    def without_loggers(self) -> Iterator[None]:
        """Evaluate without a trace in the curves and pictures of the run."""
        loggers = self.trainer.loggers
        self.trainer.loggers = []
        try:
            yield
        finally:
            self.trainer.loggers = loggers

    # ------------------------------------------------------------------ saying what came out

    def say(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        if self.trainer.is_global_zero:
            self.console.print(text, highlight=False, soft_wrap=True)

    def say_where(self, kept: Mapping[str, Path], use: str | None = None) -> None:
        """Say where things are that a fit has left, and the command that uses them."""
        lines = [f"{what:<17}{path}" for what, path in kept.items()]
        lines.append(f"Look at it:  tensorboard --logdir {self.folder}")
        self.say("\n".join([*lines, f"Use it:      {use}"] if use else lines))

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Keep scores in `results` and print them, once.

        Args:
            results: what was tested -> score -> value.
        """
        self.results |= {name: dict(scores) for name, scores in results.items()}
        if self.trainer.is_global_zero:
            for table in self.tables(results):
                self.console.print(table)

    def tables(self, results: Mapping[str, Mapping[str, float]]) -> list[Table]:
        """How scores are shown: a line for each, a column for what was tested."""
        table = Table("score", *results, box=SIMPLE_HEAD, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name in dict.fromkeys(name for scores in results.values() for name in scores):
            table.add_row(name, *(f"{scores[name]:.4g}" if name in scores else "" for scores in results.values()))
        return [table]

    def _report_own_scores(self, name: str) -> None:
        self.report({name: {key: float(value) for key, value in self.trainer.callback_metrics.items()}})

    def _command(self, subcommand: str, *more: str) -> str:
        flags = without_flags(self.given[self.given.index(subcommand) + 1 :], ("ckpt_path",))
        return shlex.join(["python", "-m", f"recipes.{self.recipe}", subcommand, *flags, *more])


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of training runs; testing an encoder leaves that of its training alone."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


_CLI = TypeVar("_CLI", bound=RecipeCLI)


def run(
    model: type[ZooModule],
    data: type[LightningDataModule],
    recipe: str,
    args: list[str] | None = None,
    cli: type[_CLI] = RecipeCLI,  # type: ignore[assignment]  # mypy has no defaults of type variables
) -> _CLI:
    """Run a recipe: its YAML files, then the user's own flags and files. A process may call it many times.

    Args:
        model: root of the run.
        data: data module.
        recipe: name of the recipe, of its YAML and of its module.
        args: the command line; None takes that of the process.
        cli: the command line of this kind of recipe.

    Returns:
        What ran, with its `trainer`, `model`, `datamodule` and `results`.

    Raises:
        SystemExit: 2 for a command line that cannot be understood, 1 for a run that cannot be done. Set
            ZOO_TRACEBACK=1 to see where from.
    """
    _set_up_process()
    given = sys.argv[1:] if args is None else list(args)
    command = next((i for i, word in enumerate(given) if word in _SUBCOMMANDS), None)
    stacked = list(given)
    if command is not None:
        stacked[command + 1 : command + 1] = [f"--config={path}" for path in config_files(recipe)]
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
    part of its name before the first underscore (`expert.yaml` for `expert_pet`), where there is one; its own."""
    names = dict.fromkeys(("base", recipe.partition("_")[0], recipe))
    return [path for path in (CONFIGS / f"{name}.yaml" for name in names) if path.is_file()]


def _set_up_process() -> None:
    """Settings of the whole process; set again, they stay the same."""
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True,  # else flags do not reach the values interpolated from them
        subclasses_enabled=[World],  # of other dataclasses only the very class is accepted
    )
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's, about torch
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # scores are already of all ranks
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen is
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("zoo").setLevel(logging.INFO)


def _leave_group() -> None:
    """Stop the threads of distributed processes before the interpreter goes: it would be aborted by those that run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_ours(error: RuntimeError) -> bool:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Path(frame.filename).is_relative_to(Path(zoo.__file__).parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a run has saved, read without running any code of it.

    Raises:
        ValueError: the file is no checkpoint of a run, or cannot be read.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        if "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint:
            return checkpoint
        reason = "it is no checkpoint of a run"
    except Exception as error:  # torch raises whatever its readers run into
        reason = f"it cannot be read ({type(error).__name__})"
    raise ValueError(
        f"Checkpoint {path} is refused: {reason}. Give the .ckpt file of a run; "
        "`python -m recipes.zoo convert` takes foreign weights."
    )


def use_cpu_well(workers: int) -> None:
    """Share the cores between the model and the loaders, and keep freed memory for the next step.

    Threads that wait for a core spin, which slows all of them down. And glibc hands large buffers back to the system
    after every step, to fault them in again page by page in the next. Together this took 0.39 s a step of the default
    recipe down to 0.15 s on two cores. OMP_NUM_THREADS wins over the choice made here.

    Args:
        workers: loaders that keep a core busy.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - workers))
    with suppress(OSError, AttributeError):  # only glibc has it
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
