"""What follows a fit, in order: the best weights are loaded, kept, tested, compared."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from zoo.module import ZooModule
from zoo.scores import Scores
from zoo.training.checkpoints import load_weights


@dataclass
class FinishedFit:
    """A fit that has come to its end, with its best weights loaded.

    Args:
        trainer: that ran it.
        model: its root.
        data: its data module.
        best: its best checkpoint.
        command: that made it, for the card.
        show: prints results, once.
        results: what was tested -> scores.
        kept: what is kept -> where.
    """

    trainer: Trainer
    model: ZooModule
    data: LightningDataModule
    best: Path
    command: str = ""
    show: Callable[[Mapping[str, Scores]], None] = lambda results: None
    results: dict[str, Scores] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the run keeps what it makes. To be asked for by all processes."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def test(self, model: ZooModule, logged: bool = False) -> Scores:
        """Test a model on the run's data.

        Args:
            model: with its weights loaded.
            logged: whether the scores and pictures go to the loggers of the run.
        """
        with unlogged(self.trainer) if not logged else _as_it_is():
            self.trainer.test(model, self.data, verbose=False)
        return dict(model.scores)

    @property
    def tests(self) -> bool:
        """Whether the data have something to test on."""
        return bool(getattr(self.data, "tests", True))


class AfterFit(Callback):
    """A callback that also takes part in what follows a fit, see `follow_fit`. Called on every process."""

    def on_best(self, fit: FinishedFit) -> None:
        """The best weights are loaded, and calibrated where the root calibrates."""

    def on_tested(self, fit: FinishedFit) -> None:
        """The scores of the best weights are in `fit.results`."""

    def after_fit(self, fit: FinishedFit) -> None:
        """Everything of this run is tested and kept."""


def follow_fit(
    trainer: Trainer,
    model: ZooModule,
    data: LightningDataModule,
    command: str = "",
    show: Callable[[Mapping[str, Scores]], None] = lambda results: None,
) -> FinishedFit | None:
    """Do what follows a fit, as the trainer's `AfterFit` callbacks ask for it.

    Args:
        trainer: after `trainer.fit(model, data)`.
        model: its root.
        data: its data module.
        command: that made it, for the card.
        show: prints results.

    Returns:
        the results and where things are kept; None where the fit was interrupted or has kept no checkpoint.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not best or trainer.interrupted or getattr(trainer, "fast_dev_run", False):
        return None
    fit = FinishedFit(trainer, model, data, Path(best), command, show)
    callbacks = [callback for callback in callbacks_of(trainer) if isinstance(callback, AfterFit)]
    load_weights(model, fit.best)
    if model.calibrates and getattr(data, "validates", True):
        with unlogged(trainer):
            trainer.validate(model, data, verbose=False)
    for callback in callbacks:
        callback.on_best(fit)
    if fit.results:
        for callback in callbacks:
            callback.on_tested(fit)
    for callback in callbacks:
        callback.after_fit(fit)
    return fit


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's own list of its callbacks, which is not declared in its class."""
    return vars(trainer)["callbacks"]


@contextmanager
def unlogged(trainer: Trainer) -> Iterator[None]:
    """Evaluate without a trace in the curves and pictures of the run."""
    loggers = trainer.loggers
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
