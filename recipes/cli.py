"""The command line of every recipe: `python -m recipes.<recipe> {fit,validate,test,predict} [flags]`."""

import ctypes
import errno
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

import zoo
from experts.evaluation import Evaluation
from experts.expert import Expert
from experts.pictures import RetrievalPictures
from recipes.tables import result_tables
from zoo.contracts import IdentityEncoder
from zoo.data.module import InstanceData
from zoo.embeddings import EmbeddingWriter
from zoo.world import World

CONFIGS = Path(__file__).parent / "configs"
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


def run(model: type[Evaluation], data: type[InstanceData], recipe: str, args: list[str] | None = None) -> "RecipeCLI":
    """Run a recipe: `configs/base.yaml`, what the recipe shares with others of its family (`configs/expert.yaml` for
    `expert_pet`), its own `configs/<recipe>.yaml`, then the user's own flags and files.

    Args:
        model: root of the run.
        data: data module.
        recipe: name of the recipe, of its YAML and of its module.
        args: the command line; None takes that of the process.

    Raises:
        SystemExit: 2 for a command line that cannot be understood, 1 for a run that cannot be done. Set
            ZOO_TRACEBACK=1 to see where from.
    """
    # Without the second setting, flags do not reach the values that are interpolated from them.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, subclasses_enabled=[World])
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's, about torch
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # scores are already of all ranks
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("zoo").setLevel(logging.INFO)
    args = sys.argv[1:] if args is None else list(args)
    given = list(args)
    files = [CONFIGS / f"{name}.yaml" for name in dict.fromkeys(("base", recipe.split("_")[0], recipe))]
    defaults = [f"--config={path}" for path in files if path.is_file()]
    command = next((i for i, word in enumerate(args) if word in _SUBCOMMANDS), None)
    if command is not None:
        args = [*args[: command + 1], *defaults, *args[command + 1 :]]
    try:
        return RecipeCLI(model, data, recipe, args, given)
    except (ValueError, OSError, RuntimeError, MisconfigurationException) as error:
        # Lightning and torch wrap what happened in a worker or a rank; the cause is in the text.
        if os.environ.get("ZOO_TRACEBACK") or isinstance(error, RuntimeError) and not _is_ours(error):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OSError(f"{error}. The disk is full; what was saved before is intact. Free some space and go on.")
        sys.stderr.write(f"\nerror: {error}\n(ZOO_TRACEBACK=1 shows where it was raised)\n")
        raise SystemExit(1) from None


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
    end what came out."""

    def __init__(
        self, model: type[Evaluation], data: type[InstanceData], recipe: str, args: list[str], given: list[str]
    ) -> None:
        self.recipe, self.given = recipe, given
        self.console = Console()
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
            "--compare_with",
            type=list[str],
            default=[],
            help="Cards of encoders to test beside the trained one after fit.",
        )
        parser.add_lightning_class_args(RetrievalPictures, "pictures")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Flags and YAML win over what a checkpoint was made with (stock Lightning: the other way round, silently);
        what differs is printed."""
        checkpoint = self._checkpoint()
        if checkpoint is None:
            return
        saved = _read_checkpoint(checkpoint).get("hyper_parameters", {})
        now = yaml.safe_load(self._parser(self.config.subcommand).dump(self.config[self.config.subcommand]))["model"]
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
        """A resumed run goes on in its own folder, so that its curves and its best checkpoint stay in one place; a card
        that the user names is taken at its own size; without a progress bar there is none."""
        self._leave_sizes_of_cards_alone()
        config = self.config[self.subcommand]["trainer"]
        if config.get("enable_progress_bar") is False:
            config.callbacks = [c for c in config.callbacks or [] if "ProgressBar" not in c.class_path]
        checkpoint = self._checkpoint()
        logger = self.config[self.subcommand]["trainer"].get("logger")
        if self.subcommand == "fit" and checkpoint is not None and hasattr(logger, "init_args"):
            run_folder = checkpoint.parent.parent
            if checkpoint.parent.name == "checkpoints" and run_folder.name.startswith("version_"):
                logger.init_args.save_dir = str(run_folder.parent.parent)
                logger.init_args.name = run_folder.parent.name
                logger.init_args.version = int(run_folder.name.removeprefix("version_"))

    def _leave_sizes_of_cards_alone(self) -> None:
        """A recipe's size is that of the card that the recipe starts from, and of no other."""
        model = self.config[self.subcommand]["model"]
        own = CONFIGS / f"{self.recipe}.yaml"
        size = yaml.safe_load(own.read_text()).get("model", {}).get("size")
        start = yaml.safe_load((CONFIGS / "expert.yaml").read_text())["model"]["init_from"]
        typed = any(word.startswith("--model.size") for word in self.given)
        unchanged = isinstance(model.size, tuple | list) and list(model.size) == size
        if unchanged and model.init_from not in (None, start) and not typed:
            model.size = None

    def after_instantiate_classes(self) -> None:
        if self.trainer.strategy.root_device.type == "cpu":
            use_cpu_well(self.datamodule.workers)

    # ------------------------------------------------------------------ running

    def before_fit(self) -> None:
        if not self.datamodule.validates:
            for checkpoint in self.trainer.checkpoint_callbacks:
                if str(getattr(checkpoint, "monitor", "")).startswith("val/"):
                    checkpoint.monitor = None  # type: ignore[attr-defined]  # the last epoch counts as the best
        self.start = deepcopy(self.model.encoder)
        self.others = self._others()  # now, not after an hour of training, is the time to miss one
        if self.trainer.log_dir and not self._is_dry_run:
            last = Path(self.trainer.log_dir) / "checkpoints" / "last.ckpt"
            self.say(f"If interrupted, go on with:\n  {self._command('fit', f'--ckpt_path={last}')}")

    def after_fit(self) -> None:
        """Test the encoder before and after training, and others, on identities that none of them has seen."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if not best or self._is_dry_run or self.trainer.interrupted:
            return
        folder = Path(self.trainer.log_dir or ".")
        loggers = self.trainer.loggers
        if self.datamodule.validates:  # calibrates the threshold; the scores are in the curves already
            self.trainer.loggers = []
            self.trainer.validate(self.model, self.datamodule, ckpt_path=best, verbose=False)
            self.trainer.loggers = loggers
        else:
            self.model.load_state_dict(_read_checkpoint(Path(best))["state_dict"])
        self._save_expert(folder / "expert", {})  # whatever the test may run into
        if self.datamodule.tests:
            results = {"trained": self.trainer.test(self.model, self.datamodule, verbose=False)[0]}
            self._save_expert(folder / "expert", results["trained"])
            self.trainer.loggers = []
            for name, encoder in self.others.items():
                other = Evaluation(encoder, protocol=self.model.protocol)
                results[name] = self.trainer.test(other, self.datamodule, verbose=False)[0]
            self.trainer.loggers = loggers
            self._print_results({name: results[name] for name in reversed(list(results))})
        else:
            self.say("Nothing was tested: no identities with something to find are held out for it.")
        self.say(
            f"best checkpoint  {best}\nexpert           {folder / 'expert'}\npictures         {folder / 'pictures'}\n"
            f"Look at it:  tensorboard --logdir {folder}\n"
            "Use it:      "
            f"python -m recipes.{self.recipe} predict --model.init_from {folder / 'expert'} --data.root PHOTOS"
        )

    def after_test(self) -> None:
        self._print_results({"test": {k: float(v) for k, v in self.trainer.callback_metrics.items()}})

    def after_validate(self) -> None:
        self._print_results({"validate": {k: float(v) for k, v in self.trainer.callback_metrics.items()}})

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are written, not kept: memory does not grow
        elif subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    @property
    def _is_dry_run(self) -> bool:
        return bool(self._get(self.config, "trainer").get("fast_dev_run"))

    def say(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        if self.trainer.is_global_zero:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _save_expert(self, folder: Path, scores: Mapping[str, float]) -> None:
        """The encoder with its card, as `zoo.load` takes it; with its head where the data asks to name by it."""
        if not self.trainer.is_global_zero:
            return
        index = self.datamodule.index
        cameras = ", images of its own camera and identity left out" if (index.cameras >= 0).any() else ""
        zoo.save(
            self.model.encoder,
            folder,
            name=re.sub(r"[^A-Za-z0-9._+-]+", "_", self._get(self.config, "name")).lstrip("._+-") or "expert",
            overwrite=True,
            category=self._get(self.config, "model").get("category") or "",
            head=self.model.head_tensors() if isinstance(self.model, Expert) and len(index.rows("closed")) else None,
            training_data=f"{self._data_names()}: {index.describe()}",
            scores=[]
            if not scores
            else [
                zoo.Score(
                    dataset=f"{self._data_names()}, test",
                    protocol=f"each query against the gallery by cosine similarity, itself left out by index{cameras}",
                    date=date.today().isoformat(),
                    values={
                        name.removeprefix("test/"): round(scores[name], 4)
                        for name in dict.fromkeys(["test/rank1", "test/mAP", *scores])
                        if not re.search(r"queries|pairs|=.*/(?!rank1$|mAP$)", name)
                    },
                )
            ],
            recipe=self._command("fit"),
        )

    def _data_names(self) -> str:
        """Names of the folders or worlds of the run, with the collections that they come from."""
        index = self.datamodule.index
        sources = np.unique(index.attributes["source"]) if "source" in index.attributes else [index.root.resolve().name]
        origins = f" (of {', '.join(index.origins)})" if index.origins else ""
        return ", ".join(sources) + origins

    def _others(self) -> dict[str, IdentityEncoder]:
        """What the trained encoder is compared with: where it started, the cards asked for, and random weights."""
        given = self._get(self.config, "model")
        start = given["init_from"] or ("pretrained" if given["pretrained"] else "untrained")
        others = {start: self.start}
        others |= {name: zoo.load(name) for name in self._get(self.config, "compare_with") if name not in others}
        if "untrained" not in others:
            with self.model.seeded():
                others["untrained"] = type(self.start)(**self.start.init_args())
        return others

    def _command(self, subcommand: str, *more: str) -> str:
        given, skip = [], False
        for word in self.given[self.given.index(subcommand) + 1 :]:
            if skip or word.startswith("--ckpt_path="):
                skip = False
            elif word == "--ckpt_path":
                skip = True
            else:
                given.append(word)
        return shlex.join(["python", "-m", f"recipes.{self.recipe}", subcommand, *given, *more])

    def _print_results(self, results: Mapping[str, Mapping[str, float]]) -> None:
        if self.trainer.is_global_zero:
            for table in result_tables(results):
                self.console.print(table)


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of training runs; testing an encoder leaves that of its training alone."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def _is_ours(error: RuntimeError) -> bool:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Path(frame.filename).is_relative_to(Path(zoo.__file__).parent)


def _read_checkpoint(path: Path) -> dict[str, Any]:
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
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - workers))
    with suppress(OSError, AttributeError):  # only glibc has it
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
