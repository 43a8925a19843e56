"""ZooModule: the base of every component, with optimiser groups, freezing and logging in one place."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, is_dataclass
from fnmatch import fnmatch
from typing import Any, Self

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.scores import Scores


@dataclass(frozen=True)
class Optim:
    """Optimiser and schedule: linear warm-up, then a cosine to zero, stepped every batch.

    Args:
        name: any optimiser that timm knows (adamw, sgd, lamb, muon, ...).
        lr: base learning rate, for the global batch.
        weight_decay: decay of weight matrices and kernels; norms, biases and other vectors get none.
        warmup: share of all steps that warm up.
        head_lr: learning rate of the head as a multiple of `lr`.
        layer_decay: multiply the rate by this for each layer further from the output; null for one rate.
        multiples: parameter name, or that of a submodule, `*` matches anything -> multiple of `lr`, above all others.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    head_lr: float = 1.0
    layer_decay: float | None = None
    multiples: dict[str, float] = field(default_factory=dict)


class Connect(Callback):
    """Gives the model and the data module of a run what they need of each other, before anything is made of either.

    `data.connect(model)` and `model.connect(data)` are called once the data module is set up and before the model is
    configured or a loader is made. Each states in the type of its argument what it takes from the other.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if data is None:
            return
        for one, other in ((data, pl_module), (pl_module, data)):
            connect = getattr(one, "connect", None)
            if callable(connect):
                connect(other)


class ZooModule(LightningModule):
    """A component of the zoo.

    Used inside another module, a component only `forward`s. As the root of a run it defines steps; optimiser,
    schedule, freezing and the reproducible state of each epoch come from here.

    Args:
        optim: optimiser and schedule; only the root's counts.
        freeze: names of submodules or parameters, `*` matches anything; they get no gradient and stay in eval
            mode.
        unfreeze: names of what trains although it is one of the `frozen_parts`.
    """

    #: prefixes of tensors that only training needs; an evaluation that has not built them drops them on loading
    training_only: tuple[str, ...] = ()
    #: whether a validation of the best checkpoint sets something that is kept, such as a threshold
    calibrates: bool = False
    #: folder of the component that a run keeps, within the run's
    component_folder: str = "component"
    #: what is added to the name of a run for that of its control, such as "without_experts"; "" where there is none
    control_name: str = ""

    def __init__(
        self,
        optim: Optim | Mapping[str, Any] | None = None,
        freeze: list[str] | None = None,
        unfreeze: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.optim = optim if isinstance(optim, Optim) else Optim(**(optim or {}))
        self.freeze_patterns, self.unfreeze_patterns = tuple(freeze or ()), tuple(unfreeze or ())
        self._frozen: set[str] = set()  # names of the parameters that `apply_freezing` has frozen
        self._run_seed: int | None = None
        self.scores: Scores = {}  # of the last validation or test

    def configure_callbacks(self) -> list[Callback]:
        """Put before all callbacks of the trainer, once, the one that connects the model and the data module: another's
        `setup` may already configure the model, as that of weight averaging does, and those returned come last."""
        attached: list[Callback] = getattr(self.trainer, "callbacks", [])
        if not any(isinstance(callback, Connect) for callback in attached):
            attached.insert(0, Connect())
        return []

    # ------------------------------------------------------------------ rebuilding

    def init_args(self) -> dict[str, Any]:
        """Plain arguments that build this component again, without its weights: what a card records."""
        return {}

    @classmethod
    def from_init_args(cls, init_args: Mapping[str, Any]) -> Self:
        """The component that `init_args` describes, without its weights."""
        return cls(**init_args)

    @property
    def label(self) -> str:
        """What the trained root is called in the tables of its run."""
        return "trained"

    def baselines(self) -> "dict[str, ZooModule]":
        """Name -> root of what the trained one is tested beside, as it is before training."""
        return {}

    def peer(self, card: str) -> "ZooModule":
        """The root that tests a component of the zoo beside this one.

        Args:
            card: name on the shelf, folder or hub id.

        Raises:
            ValueError: it cannot be tested in the same way.
        """
        raise ValueError(f"compare_with: {card} cannot be tested beside a {type(self).__name__}. Leave it out.")

    @property
    def control(self) -> dict[str, Any]:
        """Arguments that a control run sets otherwise, such as experts to None; {} where there is no control."""
        return {}

    def component_state(self) -> dict[str, Tensor]:
        """The tensors that a component's weights file holds: all, unless parts are frozen and live elsewhere."""
        return self.state_dict()

    def on_filled(self, names: Iterable[str]) -> None:
        """Called when a weights file has been loaded, with the names of its tensors."""

    def frozen_hashes(self) -> dict[str, str]:
        """Part -> hash of it, for the parts that are not in the weights file: a card records them."""
        return {}

    def save_plain_hyperparameters(self) -> None:
        """`save_hyperparameters` for what a checkpoint can hold without a pickle: plain values and dataclasses.

        Call it in `__init__` of a root. Under the command line these are the flags as typed; in Python code
        a part that was given as an object or a class is left out and is to be given again on reload.
        """
        frame = inspect.currentframe()
        assert frame is not None
        self.save_hyperparameters(frame=frame.f_back)
        for name, value in list(self.hparams.items()):
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)
            elif name != "_instantiator" and not _is_plain(value):
                del self.hparams[name]
        self._hparams_initial = deepcopy(self._hparams)  # loggers read this copy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture in words that fit a screen.

        Raises:
            ValueError: tensors are missing, left over or of another shape.
        """
        wanted = self.state_dict()
        unused = tuple(prefix for prefix in self.training_only if not any(k.startswith(prefix) for k in wanted))
        found = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(unused)}
        checkpoint["state_dict"] = found
        misfits = {
            "missing": [k for k in wanted if k not in found],
            "left over": [k for k in found if k not in wanted],
            "of another shape": [k for k in wanted if k in found and found[k].shape != wanted[k].shape],
        }
        parts = [f"{len(names)} {what}, such as {names[0]}" for what, names in misfits.items() if names]
        if parts:
            raise ValueError(
                f"The checkpoint is not of this {type(self).__name__}: of {len(wanted)} tensors, {'; '.join(parts)}. "
                "Give the model flags that it was trained with; its config.yaml has them (-c RUN/config.yaml)."
            )

    # ------------------------------------------------------------------ freezing

    def frozen_parts(self) -> tuple[str, ...]:
        """Patterns of what does not train unless `unfreeze` names it. Override in a root."""
        return ()

    def apply_freezing(self) -> None:
        """Turn off the gradients of the frozen parts and of what `freeze` names, except of what `unfreeze` names, and
        put into eval mode what has no gradient left. Call it when all parts are made.

        Raises:
            ValueError: a pattern that names nothing.
        """
        names: dict[nn.Parameter, list[str]] = {}  # tied ones have several
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        everything = [name for own in names.values() for name in own]
        for option, patterns in (("freeze", self.freeze_patterns), ("unfreeze", self.unfreeze_patterns)):
            for pattern in patterns:
                if not _named(everything, (pattern,)):
                    tops = sorted({".".join(name.split(".")[:2]) for name in everything})
                    raise ValueError(
                        f"{option}: {pattern!r} names no parameter of {type(self).__name__}. "
                        f"Submodules to choose from: {', '.join(tops)}."
                    )
        for parameter, own in names.items():
            spared = _named(own, self.unfreeze_patterns)
            if _named(own, self.freeze_patterns) or _named(own, self.frozen_parts()) and not spared:
                parameter.requires_grad_(False)
                self._frozen.update(own)
            elif spared:
                parameter.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ZooModule":
        """As in torch, but what is frozen stays in eval mode: its BatchNorm statistics must not move."""
        super().train(mode)
        if mode and self._frozen:
            for _, module in self._frozen_modules(self, ""):
                module.eval()
        return self

    def _frozen_modules(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        """Prefix and module of the outermost submodules all of whose parameters are frozen."""
        names = [f"{prefix}{name}" for name, _ in module.named_parameters()]
        if names and self._frozen.issuperset(names):
            yield prefix, module
        elif not self._frozen.isdisjoint(names):
            for name, child in module.named_children():
                yield from self._frozen_modules(child, f"{prefix}{name}.")

    # ------------------------------------------------------------------ optimisation

    def lr_multipliers(self) -> dict[str, float]:
        """Pattern of parameters -> multiple of the base rate; the longest pattern wins. Override in a root; what
        `optim.multiples` names goes before it."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that are not decayed either, such as position embeddings. Override in a root or part."""
        return set()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group for each (rate, decay) among the parameters that train, each with a readable `name`."""
        multipliers, spared = self.lr_multipliers(), self.no_weight_decay()
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            multiplier = _longest_match(name, self.optim.multiples, _longest_match(name, multipliers, 1.0))
            decays = parameter.ndim > 1 and name not in spared
            label = f"x{multiplier:g}, {'decay' if decays else 'no decay'}"
            group = groups.setdefault(
                (multiplier, decays),
                {
                    "name": label,
                    "params": [],
                    "lr": self.optim.lr * multiplier,
                    "weight_decay": self.optim.weight_decay if decays else 0.0,
                },
            )
            group["params"].append(parameter)
        return list(groups.values())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser over the parameter groups, with warm-up and cosine over the whole run; prints what trains.

        Raises:
            ValueError: nothing is left to train.
        """
        from timm.optim import create_optimizer_v2

        groups = self.parameter_groups()
        if not groups:
            raise ValueError(
                f"Every parameter of this {type(self).__name__} is frozen, nothing is left to train. "
                f"Freeze less than {list(self.freeze_patterns)}."
            )
        if self.trainer.is_global_zero:
            self._print_what_trains(groups)
        optimizer = create_optimizer_v2(groups, opt=self.optim.name, lr=self.optim.lr)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = warmup_cosine(optimizer, round(self.optim.warmup * total), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _print_what_trains(self, groups: list[dict[str, Any]]) -> None:
        table = Table("rate, decay", title=f"what trains ({self.optim.name})", title_justify="left")
        for heading in ("tensors", "numbers", "learning rate", "weight decay"):
            table.add_column(heading, justify="right")
        for group in groups:
            numbers = sum(parameter.numel() for parameter in group["params"])
            table.add_row(
                group["name"],
                str(len(group["params"])),
                f"{numbers:,}",
                f"{group['lr']:g}",
                f"{group['weight_decay']:g}",
            )
        frozen = [parameter for parameter in self.parameters() if not parameter.requires_grad]
        table.add_row("frozen", str(len(frozen)), f"{sum(p.numel() for p in frozen):,}", "", "")
        Console().print(table)

    # ------------------------------------------------------------------ scores

    def report(self, split: str, scores: Scores, in_progress_bar: tuple[str, ...] = ()) -> None:
        """Keep the scores of an evaluation and log them, those before training too, which Lightning's sanity check
        would drop.

        Args:
            split: val or test.
            scores: of all processes.
            in_progress_bar: names of scores over everything that the progress bar shows.
        """
        # In float32, as they are logged.
        self.scores = {key: float(torch.tensor(value)) for key, value in scores.items()}
        if self.trainer.sanity_checking:
            if self.logger is not None:
                self.logger.log_metrics({f"{split}/{key}": value for key, value in scores.items()}, step=0)
            return
        for key, value in scores.items():
            self.log(f"{split}/{key}", value, prog_bar=key.is_total and key.name in in_progress_bar)

    # ------------------------------------------------------------------ randomness

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """The run's seed, for parts that are made after the start: by then, strategies have drawn from it or not."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            yield

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed dropout and the like by (seed, epoch, batch, rank), so that a resumed run repeats an uninterrupted one:
        loaders draw from the same generator, before or after an epoch's start."""
        if self._run_seed is None:
            self._run_seed = torch.initial_seed()
        number = 1_000_003 * self.current_epoch + batch_idx
        torch.manual_seed((self._run_seed + 1_000_003 * number + self.global_rank) % 2**63)

    def on_train_end(self) -> None:
        """Go back to the run's seed: it is what parts of a next run in this process are made with."""
        if self._run_seed is not None:
            torch.manual_seed(self._run_seed)


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """Rate factor: 1/warmup, 2/warmup, ... 1 over the warm-up steps, then half a cosine down to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` names this parameter or module, or one that contains it."""
    return fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")


def _longest_match(name: str, values: Mapping[str, float], default: float) -> float:
    """The value of the longest pattern that names this parameter."""
    pattern = max((pattern for pattern in values if _matches(name, pattern)), key=len, default=None)
    return default if pattern is None else values[pattern]


def _named(names: Iterable[str], patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names one of these parameters."""
    return any(_matches(name, pattern) for name in names for pattern in patterns)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
