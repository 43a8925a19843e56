"""Losses over the pairs of a batch, on the features before the neck."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import TypeVar

import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction, TripletMarginLoss, WeightRegularizerMixin
from pytorch_metric_learning.miners import BaseMiner, BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from zoo import ZooModule

Options = dict[str, bool | int | float | str | list[float]]
_Part = TypeVar("_Part")  # a loss or a miner of the library

_REFUSED = {
    "DynamicSoftMarginLoss": "its running histogram is in no checkpoint, and it keeps the graph of earlier steps",
    "GenericPairLoss": "it is the base of others",
    "HistogramLoss": "it fails on two equal rows, whose cosine is rounded to more than 1",
    "InstanceLoss": "it takes the number of a class for a row of the batch",
    "ManifoldLoss": "it takes no identities",
    "SmoothAPLoss": "it fails where identities have unequal numbers of rows, as an unreadable image leaves them",
    "TupletMarginLoss": "it is nan for two equal rows, whose cosine is rounded to more than 1",
    "VICRegLoss": "it takes no identities",
}
# Arguments of the library's classes that are objects, belong to those objects, or are not known to a configuration.
_NO_OPTIONS = {
    *("distance", "reducer", "embedding_regularizer", "embedding_reg_weight", "collect_stats"),
    *("mat_based_loss", "num_classes"),
}


class MetricLoss(ZooModule):
    """A loss over the pairs of a batch, the rows of all ranks together."""

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, embed_dim) features before the neck, (B,) identities -> scalar loss, in float32.

        Without two rows of one identity it is 0, and gradients, all of them 0, flow as ever.
        """


class BatchHardTriplet(MetricLoss):
    """Hardest positive against hardest negative of every anchor (Hermans et al., "In Defense of the Triplet Loss",
    2017, eq. 5), averaged over all anchors, also those that already keep the margin.

    Args:
        margin: how much further the negative should be. 0.3 suits plain features, 0.1 to 0.2 unit-norm ones; null
            for the soft margin ln(1 + exp(positive - negative)), which never stops pulling.
        normalize: compare directions only.

    Raises:
        ValueError: the soft margin on unit-norm features, whose distances of 0 to 2 leave it nearly straight.
    """

    def __init__(self, margin: float | None = 0.3, normalize: bool = False) -> None:
        super().__init__()
        if margin is None and normalize:
            raise ValueError(
                "The soft margin does not suit unit-norm features: at best it falls to ln(1 + exp(-2)), never near 0. "
                "Set model.metric_loss.margin to 0.1 or 0.2, or normalize to false."
            )
        distance = LpDistance(normalize_embeddings=normalize)
        self.miner = BatchHardMiner(distance=distance)
        soft = margin is None
        self.loss = TripletMarginLoss(
            margin=0.0 if soft else margin, smooth_loss=soft, distance=distance, reducer=MeanReducer()
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        if not len(features):
            return features.float().sum()
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return self.loss(features, labels, self.miner(features, labels))


class PairLoss(MetricLoss):
    """Any loss over labelled pairs or triplets of pytorch-metric-learning, and with a memory where one is wanted.

    The memory is that of Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020: the last rows of earlier
    steps, without gradient, are further partners of the batch. As in the authors' code, the loss of the batch against
    itself and that of the batch against the memory are added; here each counts only where it has a pair of one
    identity. The rows of the present batch enter the memory after the loss, so that none meets itself there (paper,
    algorithm 1: before it; the authors' code then drops positives that are all too similar). A checkpoint holds
    the memory, memory * width numbers.

    Under DDP every rank passes the rows of all, in one order, and so holds the same memory.

    Args:
        name: class of `pytorch_metric_learning.losses`, such as MultiSimilarityLoss, NTXentLoss or CircleLoss.
        options: its arguments by name.
        miner: class of `pytorch_metric_learning.miners` that picks the pairs; null takes all.
        miner_options: its arguments by name.
        memory: rows of earlier steps that are kept; 0 for none.
        width: width of the features, which a memory has to know.
        warmup: training steps before the memory begins to fill, while features still change fast.

    Raises:
        ValueError: no such class or argument, one that does not fit, or a loss that needs classifier weights.
    """

    queue: Tensor
    queue_labels: Tensor
    steps: Tensor

    def __init__(
        self,
        name: str = "MultiSimilarityLoss",
        options: Options | None = None,
        miner: str | None = None,
        miner_options: Options | None = None,
        memory: int = 0,
        width: int | None = None,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        if memory < 0 or warmup < 0:
            raise ValueError(f"memory {memory} and warmup {warmup} count rows and steps; give 0 or more.")
        if miner_options and miner is None:
            raise ValueError(f"miner_options {miner_options} belong to no miner. Name one in model.metric_loss.miner.")
        self.name, self.memory, self.warmup = name, memory, warmup
        self.loss = _built(losses, BaseMetricLossFunction, "loss", name, options or {})
        self.miner = None if miner is None else _built(miners, BaseMiner, "miner", miner, miner_options or {})
        if memory:
            self.register_buffer("queue", torch.zeros(memory, width or 0))
            self.register_buffer("queue_labels", torch.full((memory,), -1))  # -1: still empty
            self.register_buffer("steps", torch.tensor(0))
        self._try_out()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """See `MetricLoss`; in training mode the rows then move into the memory.

        Raises:
            ValueError: the features are not as wide as the memory.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            kept, kept_labels = self._kept(features)
            loss = features[:0].sum()
            if len(labels.unique()) < len(labels):
                loss = loss + self._compare(features, labels)
            if torch.isin(labels, kept_labels).any():
                loss = loss + self._compare(features, labels, kept, kept_labels)
            if self.memory and self.training:
                self._keep(features.detach(), labels)
        return loss

    def _compare(self, rows: Tensor, labels: Tensor, others: Tensor | None = None, of: Tensor | None = None) -> Tensor:
        """The library's loss of the rows against themselves, or against others of known identities."""
        pairs = None if self.miner is None else self.miner(rows, labels, others, of)
        return self.loss(rows, labels, pairs, others, of)

    def _kept(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if not self.memory:
            return features[:0], torch.empty(0, dtype=torch.int64, device=features.device)
        if self.queue.shape[1] != features.shape[1]:
            raise ValueError(
                f"The features are {features.shape[1]} wide, the memory is made for {self.queue.shape[1]}. "
                f"Set model.metric_loss.width to {features.shape[1]}."
            )
        full = self.queue_labels >= 0
        return self.queue[full].float(), self.queue_labels[full]

    def _keep(self, rows: Tensor, labels: Tensor) -> None:
        """New tensors, not new content: the present loss still needs the old one for its gradient."""
        if self.steps >= self.warmup:
            self.queue = torch.cat([self.queue, rows.to(self.queue.dtype)])[-self.memory :]
            self.queue_labels = torch.cat([self.queue_labels, labels])[-self.memory :]
        self.steps = self.steps + 1

    def _try_out(self) -> None:
        """Run once on a few rows, so that what does not fit is refused now and not in the first step."""
        generator = torch.Generator().manual_seed(0)
        rows, labels = torch.randn(8, 4, generator=generator), torch.arange(8) // 2
        others, of = torch.randn(24, 4, generator=generator), torch.arange(24) // 6
        title = self.name if self.miner is None else f"{self.name} with {type(self.miner).__name__}"
        with torch.random.fork_rng(devices=[]):  # some miners draw
            try:
                self._compare(rows, labels)
            except Exception as error:  # the library raises whatever its tensors run into
                raise ValueError(f"{title} does not work ({error}). Choose another loss, miner or option.") from error
            try:
                if self.memory:
                    self._compare(rows, labels, others, of)
            except Exception as error:
                raise ValueError(
                    f"{title} compares a batch with itself only. Set model.metric_loss.memory to 0."
                ) from error


def _built(module: ModuleType, base: type[_Part], kind: str, name: str, options: Options) -> _Part:
    """An instance of the library's class of this name.

    Raises:
        ValueError: no such class, one that is no pair loss, no such argument, or values that it does not take.
    """
    classes = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    known = [n for n, c in classes.items() if n not in _REFUSED and not _needs_classes(c)]
    if name in classes and _needs_classes(classes[name]):
        raise ValueError(f"{name} learns a weight for each identity: it is a head. See experts.heads for model.head.")
    if name in _REFUSED:
        raise ValueError(f"{name} is refused: {_REFUSED[name]}. Known: {', '.join(known)}.")
    if name not in known:
        raise ValueError(f"Unknown {kind} {name!r}.{_meant(name, known)} Known: {', '.join(known)}.")
    takes = _arguments(classes[name])
    for option in options:
        if option not in takes:
            held = ", ".join(takes) or "none"
            raise ValueError(f"{name} has no option {option!r}.{_meant(option, takes)} Options: {held}.")
    missing = [option for option, required in takes.items() if required and option not in options]
    if missing:
        raise ValueError(f"{name} needs a value for {', '.join(missing)}. Give it in the options of this {kind}.")
    try:
        return classes[name](**options)
    except Exception as error:  # the library checks by assertions, arithmetic and its own errors
        raise ValueError(
            f"{name} does not take {dict(options)}: {error or type(error).__name__}. Correct them."
        ) from error


def _arguments(cls: type) -> dict[str, bool]:
    """Argument of one of the library's classes, or of a base that takes the rest -> whether it must be given."""
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("pytorch_metric_learning"):
            for parameter in list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]:
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    found.setdefault(parameter.name, parameter.default is parameter.empty)
    return {name: required for name, required in found.items() if name not in _NO_OPTIONS}


def _needs_classes(cls: type) -> bool:
    number = inspect.signature(cls).parameters.get("num_classes")
    return issubclass(cls, WeightRegularizerMixin) or (number is not None and number.default is number.empty)


def _meant(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
