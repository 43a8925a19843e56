"""ControlRun: the same training without what it is about, to compare with."""

from collections.abc import Callable
from pathlib import Path

from lightning import LightningDataModule, Trainer

from zoo.module import ZooModule
from zoo.training.callbacks.follow import AfterFit, FinishedFit
from zoo.training.checkpoints import load_weights

Run = tuple[Trainer, ZooModule, LightningDataModule]


class ControlRun(AfterFit):
    """Trains a control after the fit, and tests it beside: the root with its `control` arguments, such as no experts.

    Args:
        make: makes the trainer, the root and the data of the control.
    """

    def __init__(self, make: Callable[[], Run]) -> None:
        self.make = make

    def after_fit(self, fit: FinishedFit) -> None:
        if not fit.tests or not fit.model.control:
            return
        otherwise = fit.model.control_name.replace("_", " ")
        fit.trainer.print(f"The same {otherwise}, to compare with:")
        trainer, model, data = self.make()
        trainer.fit(model, data)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not best or trainer.interrupted:
            return
        load_weights(model, best)
        trainer.test(model, data, verbose=False)
        fit.kept["control"] = Path(best)
        if fit.model.label not in fit.results:
            fit.results[fit.model.label] = fit.test(fit.model)
        trained = {fit.model.label: fit.results.pop(fit.model.label)}
        name = model.label if model.label not in trained else f"{model.label} {otherwise}"
        fit.results |= {name: dict(model.scores)} | trained
        fit.show(fit.results)
