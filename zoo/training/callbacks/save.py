"""SaveComponent: the best weights of a fit are saved as a component with its card."""

import re
from pathlib import Path
from typing import Protocol, runtime_checkable

from zoo.cards import Card, CardError
from zoo.distributed import from_all_ranks
from zoo.scores import Scores
from zoo.training.callbacks.follow import AfterFit, FinishedFit


@runtime_checkable
class Saved(Protocol):
    """A root that has something to keep as a component."""

    def save_component(self, folder: Path, *, name: str, recipe: str, scores: Scores | None = None) -> Card:
        """Write it as `zoo.load` takes it, in place of an earlier one."""


class SaveComponent(AfterFit):
    """Saves what `zoo.load` takes: before the test, and again with its scores after it.

    Args:
        folder: where to; null for the root's `component_folder` in that of the run.
        name: of the component, in its card and of that folder.
    """

    def __init__(self, folder: str | None = None, name: str = "component") -> None:
        self.folder, self.name = folder, name

    def on_best(self, fit: FinishedFit) -> None:
        self._save(fit, {})

    def on_tested(self, fit: FinishedFit) -> None:
        self._save(fit, fit.results[fit.model.label])

    def _save(self, fit: FinishedFit, scores: Scores) -> None:
        model = fit.model
        if not isinstance(model, Saved):
            return
        folder = Path(self.folder) if self.folder else fit.folder / model.component_folder
        failed = ""
        if fit.trainer.is_global_zero:
            try:
                name = _component_name(self.name)
                model.save_component(folder, name=name, recipe=fit.command, scores=scores)
            except CardError as error:
                failed = str(error)
        failed = from_all_ranks(failed)[0]
        if failed:  # on all processes: none may wait for one that has ended
            raise CardError(failed)
        fit.kept["component"] = folder


def _component_name(text: str) -> str:
    """A name that a card may have, made from any text."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip("._+-") or "component"
