"""TestBeside: the best weights of a fit are tested, and others beside them."""

from lightning import LightningModule, Trainer

from zoo.module import ZooModule
from zoo.training.callbacks.follow import AfterFit, FinishedFit


class TestBeside(AfterFit):
    """Tests the trained root, what it started from and other components, in the same way, on the same data.

    Args:
        compare_with: cards of components to test beside it.
        baselines: also test what the root itself is compared with, such as its start.
    """

    __test__ = False  # no test of pytest

    def __init__(self, compare_with: list[str] | None = None, baselines: bool = True) -> None:
        self.compare_with, self.baselines = compare_with or [], baselines
        self.others: dict[str, ZooModule] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the others before training: now, not after an hour of it, is the time to miss one."""
        if stage == "fit" and not self.others and isinstance(pl_module, ZooModule):
            own = list(pl_module.baselines().items()) if self.baselines else []
            named = [(card, pl_module.peer(card)) for card in self.compare_with if card not in dict(own)]
            self.others = dict([*own[:1], *named, *own[1:]])  # the start stands next to the trained one

    def on_best(self, fit: FinishedFit) -> None:
        if not fit.tests:
            fit.trainer.print("Nothing was tested: the test split has nothing to score. Hold out more data for it.")
            return
        fit.results[fit.model.label] = fit.test(fit.model, logged=True)

    def on_tested(self, fit: FinishedFit) -> None:
        trained = dict(fit.results)
        # Each leaves memory once it is tested: it may be as large as the trained one.
        others = {name: fit.test(self.others.pop(name)) for name in list(self.others)}
        fit.results.clear()
        fit.results |= dict(reversed(others.items())) | trained
        fit.show(fit.results)
