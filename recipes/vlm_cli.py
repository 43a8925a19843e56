"""The command line of recipes that train vision-language models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table

from recipes.cli import CONFIGS, RecipeCLI, read_checkpoint, run
from recipes.flags import flags_of, without_flags
from recipes.tables import choice_tables
from zoo.vlm.data import ConversationData
from zoo.vlm.gallery_stage import GalleryStage
from zoo.vlm.match import MatchStage
from zoo.vlm.match_pictures import MatchPictures
from zoo.vlm.small.pretrain import PretrainStage
from zoo.vlm.small.pretrain_data import PretrainData

_WITH, _WITHOUT = "stage 1 with experts", "stage 1 without experts"  # runs in tables
_CONFIG = ("c", "config")


class GalleryCLI(RecipeCLI):
    """Trains a model that is scored by galleries."""

    model: GalleryStage
    datamodule: ConversationData

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults(monitor="val/accuracy")
        parser.add_lightning_class_args(MatchPictures, "pictures")

    @property
    def validates(self) -> bool:
        return self.datamodule.validates

    @property
    def busy_workers(self) -> int:
        """No loader does: a model takes far longer over an image than a loader does. With two threads on two cores, a
        step of stage 1 lasts 0.36 s instead of 0.55 s."""
        return 0

    def tables(self, results: Mapping[str, Mapping[str, float]]) -> list[Table]:
        return choice_tables(results)

    def tested(self, model: GalleryStage, best: Path | None = None) -> dict[str, float]:
        """Scores of a model on the test conversations."""
        return dict(self.trainer.test(model, self.datamodule, ckpt_path=best, verbose=False)[0])


class MatchCLI(GalleryCLI):
    """Stage 1: the trained model is tested beside its base, and beside a control that was trained without experts."""

    model: MatchStage

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--control",
            type=bool,
            default=False,
            help="Train the same without experts, too, as a run of its own, and test it beside.",
        )
        parser.add_argument("--baselines", type=bool, default=True, help="Test the base model, too, to compare with.")

    def after_training(self, best: Path) -> None:
        if self.datamodule.tests:
            self._test(best)
        else:
            self.say(
                "Nothing was tested: the test split has no conversation. Give more identities to it, or a lower k."
            )
        self.say_where(
            {"best checkpoint": best, "pictures": self.folder / "pictures"},
            f"python -m recipes.{self.recipe} test -c {self.folder / 'config.yaml'} --ckpt_path {best}",
        )

    def _test(self, best: Path) -> None:
        named = _WITH if self.model.make_adapter is not None else _WITHOUT
        trained = {named: self.tested(self.model, best)}
        base = {"base model": self._of_base()} if self._get(self.config, "baselines") else {}
        self.report(base | trained)
        if self._get(self.config, "control") and self.model.make_adapter is not None:
            self.say("The same without experts, to compare with:")
            control = {_WITHOUT: self._of_control()}
            self.results.clear()
            self.report(base | control | trained)

    def _of_base(self) -> dict[str, float]:
        """The model as it was, asked in the same way."""
        given = self.model
        base = MatchStage(
            given.vlm_name,
            dtype=given.dtype_name,
            attention=given.attention,
            min_tokens=given.token_budget[0],
            max_tokens=given.token_budget[1],
            cache=given.cache,
            writes=given.writes,
        )
        with self.without_loggers():
            return self.tested(base)

    def _of_control(self) -> dict[str, float]:
        """Starts anew, also where this run went on from a checkpoint: that one has experts."""
        name = f"{self._get(self.config, 'name')}_without_experts"
        given = without_flags(self.given, ("ckpt_path",))
        given += ["--model.fusion=null", "--model.experts=null", f"--name={name}", "--ckpt_path=null"]
        given += ["--control=false", "--baselines=false"]
        return run(MatchStage, ConversationData, self.recipe, given, ControlCLI).results[_WITHOUT]


class ControlCLI(MatchCLI):
    """The control of another run, which shows its scores beside its own."""

    def after_training(self, best: Path) -> None:
        self.results[_WITHOUT] = self.tested(self.model, best)
        self.say_where({"best checkpoint": best})


class PretrainCLI(GalleryCLI):
    """A small base model: kept as a folder that `zoo.load` and transformers read, and then perhaps trained further."""

    model: PretrainStage

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--then",
            type=str | None,
            default=None,
            help="YAML of a run that goes on from the model; a name is one of recipes/configs. It is laid over the "
            "YAML files of this run; the flags of the command line hold for both.",
        )

    def after_training(self, best: Path) -> None:
        self.model.load_state_dict(read_checkpoint(best)["state_dict"])
        folder, then = self.folder / "vlm", self._get(self.config, "then")
        if self.trainer.is_global_zero:
            self.model.save(folder, self._get(self.config, "name"), self._command("fit"))
        self.trainer.strategy.barrier()
        self.say_where({"best checkpoint": best, "model": folder})
        if then is not None:
            path = then if Path(then).is_file() else CONFIGS / f"{then}.yaml"
            run(PretrainStage, PretrainData, self.recipe, second_half(self.given, Path(path), folder), PretrainCLI)


def second_half(given: Sequence[str], config: Path, model: Path) -> list[str]:
    """The command line of the run that goes on from a model, from that of the run before it.

    Args:
        given: the command line as the user has typed it.
        config: YAML that wins over the user's YAML files, and that the user's flags win over.
        model: folder of the model.
    """
    start = given.index("fit") + 1
    files = [word for name, words in flags_of(given[start:]) if name in _CONFIG for word in words]
    flags = without_flags(given[start:], (*_CONFIG, "ckpt_path", "then"))
    added = [f"--model.vlm={model}", "--then=null", "--ckpt_path=null"]
    return [*given[:start], *files, f"--config={config}", *flags, *added]
