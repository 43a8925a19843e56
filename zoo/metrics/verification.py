"""Verification: do two images show the same identity? ROC-AUC, EER, k-fold accuracy, TAR at a FAR."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from zoo.data.index import Pairs
from zoo.metrics.error_rates import ErrorCurve
from zoo.metrics.gathered import EmbeddingMetric, each_index_once
from zoo.metrics.options import MetricOptions
from zoo.metrics.ranking import BLOCK_BYTES, EmbeddingSet


def roc_auc(scores: Tensor, same: Tensor) -> float:
    """Area under the ROC curve of `(P,)` scores and bools, ties counting half; nan with one class only."""
    return ErrorCurve.of_scores(scores, same).auc()


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """The rate at which false acceptance equals false rejection, see `ErrorCurve.eer`; nan with one class only."""
    return ErrorCurve.of_scores(scores, same).eer()[0]


def tar_at_far(scores: Tensor, same: Tensor, far: float) -> float:
    """True acceptance rate at a false acceptance rate, exact; nan with one class only.

    Ties: the threshold is the lowest one at which the share of negatives with score >= threshold is at most `far`,
    so negatives that tie are accepted or rejected together.

    Args:
        scores: `(P,)` floating, higher for pairs that are more alike.
        same: `(P,)` bool.
        far: From 0 to 1.
    """
    return ErrorCurve.of_scores(scores, same).tar_at_far(far)


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """The threshold at which most pairs are classified right, `same` being score >= threshold.

    It lies half-way between two neighbouring scores, at the lowest score where all are to be accepted, and just above
    the highest where none. Of several thresholds that are as good it is the strictest.

    Args:
        scores: `(P,)` floating, higher for pairs that are more alike.
        same: `(P,)` bool.
    """
    curve = ErrorCurve.of_scores(scores, same)
    positives = int(same.sum())
    # A class without pairs has rates of 0 / 0 and makes no errors.
    wrong = curve.frr.nan_to_num(0) * positives + curve.far.nan_to_num(0) * (len(same) - positives)
    place = len(wrong) - 1 - int(wrong.round().flip(0).argmin())
    upper = float(curve.thresholds[place])
    if place in (0, len(wrong) - 1):
        return upper
    lower = float(curve.thresholds[place - 1])
    middle = (lower + upper) / 2
    return middle if middle > lower else upper


def k_fold_accuracy(scores: Tensor, same: Tensor, fold: Tensor | None = None, folds: int = 10) -> tuple[float, float]:
    """The accuracy of each fold at the best threshold of all others, as in LFW (Huang et al., 2007).

    Args:
        scores: `(P,)` floating, higher for pairs that are more alike.
        same: `(P,)` bool.
        fold: `(P,)` integers, the fold of each pair; None, or one fold for all, cuts the pairs into `folds` runs in
            the order given, the first ones longer by one where they do not come out even.
        folds: Number of runs, at least 2.

    Returns:
        Mean and standard deviation over the folds (divided by their number). Nan with fewer than 2 pairs.
    """
    fold = folds_of(len(scores), fold, folds)
    accuracies = []
    for number in fold.unique().tolist():
        held = fold == number
        if held.all():
            return float("nan"), float("nan")
        threshold = best_threshold(scores[~held], same[~held])
        accuracies.append(((scores[held].double() >= threshold) == same[held]).double().mean())
    per_fold = torch.stack(accuracies)
    return float(per_fold.mean()), float(per_fold.std(correction=0))


def folds_of(count: int, fold: Tensor | None, folds: int) -> Tensor:
    """The fold of each pair, `(P,)` int64; see `k_fold_accuracy`."""
    if folds < 2:
        raise ValueError(f"folds is {folds}; one fold is tested at the threshold of the others, so give at least 2.")
    if fold is not None and len(fold.unique()) > 1:
        return fold
    return torch.arange(folds).repeat_interleave(count // folds + (torch.arange(folds) < count % folds).long())


class VerificationMetrics(EmbeddingMetric):
    """How well cosine similarity separates pairs of one identity from pairs of two.

    `update` takes in embeddings, `compute(pairs)` compares those that the pairs name by index:

    - `roc_auc`: see `roc_auc`;
    - `eer`: see `equal_error_rate`;
    - `accuracy`, `accuracy_std`: see `k_fold_accuracy`; the folds are cut before any pair is skipped;
    - `tar@{far}`: see `tar_at_far`;
    - `pairs`: the number of pairs compared; `pairs_skipped`: those with an image that was never given, since it
      could not be read.

    An index that comes twice, as a distributed sampler pads its shards, counts once. Neither the order of the
    updates nor the number of processes changes a bit of the result.

    Args:
        fars: The false acceptance rates at which to give the true one.
        folds: Number of folds where the pairs come without.
        **kwargs: See `MetricOptions`.

    Example:
        >>> metrics = VerificationMetrics(fars=(0.1,))
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> metrics.update(embeddings, indices=torch.arange(3))
        >>> metrics.compute(Pairs.build([0, 0], [1, 2], [True, False]))["roc_auc"]
        tensor(1.)
    """

    def __init__(
        self, fars: Sequence[float] = (1e-3, 1e-2, 1e-1), folds: int = 10, **kwargs: Unpack[MetricOptions]
    ) -> None:
        super().__init__(columns=1, **kwargs)  # index
        self.compute_with_cache = False  # else the first result would be given for all other pairs, too
        if any(not 0 <= far <= 1 for far in fars):
            raise ValueError(f"fars is {tuple(fars)}; give shares from 0 to 1.")
        self.fars, self.folds = tuple(fars), folds

    def update(self, embeddings: Tensor, indices: Tensor) -> None:
        """Take in a batch.

        Args:
            embeddings: `(B, D)`, of any length; normalised later.
            indices: `(B,)` integers, the row of each item in the index that the pairs are numbered by.

        Raises:
            ValueError: Shapes or types do not fit, or an embedding is not finite; the batch is left out.
        """
        batch = EmbeddingSet(embeddings, indices.new_zeros(len(embeddings), dtype=torch.int64), indices)
        self.take_in(embeddings, (batch.indices,))

    def compute(self, pairs: Pairs | None = None) -> dict[str, Tensor]:
        """Compare the pairs, each named by two indices.

        Returns:
            Name -> scalar float32, see the class.

        Raises:
            ValueError: No pairs, or no items, were given.
        """
        if pairs is None:
            raise ValueError("There are no pairs to compare. Call update, not forward, and then compute(pairs).")
        columns = (pairs.first, pairs.second, pairs.same, pairs.fold)
        first, second, same, fold = (torch.as_tensor(column) for column in columns)
        scores, given = self._similarity(first, second)
        fold = folds_of(len(first), fold, self.folds)[given]
        same = same[given]
        names = ["roc_auc", "eer", "accuracy", "accuracy_std", *(f"tar@{far:g}" for far in self.fars)]
        result = dict.fromkeys(names, float("nan"))
        if len(scores):
            curve = ErrorCurve.of_scores(scores, same)
            result |= {"roc_auc": curve.auc(), "eer": curve.eer()[0]}
            result["accuracy"], result["accuracy_std"] = k_fold_accuracy(scores, same, fold, self.folds)
            result |= {f"tar@{far:g}": curve.tar_at_far(far) for far in self.fars}
        result |= {"pairs": len(scores), "pairs_skipped": len(first) - len(scores)}
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in result.items()}

    def _similarity(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities `(P,)` on the CPU of the pairs that were given, and which ones were, `(V,)` bool."""
        order, again = each_index_once(self.all_records()[:, 0])
        order = order[~again]
        indices = self.all_records()[order, 0].cpu()
        places = [torch.searchsorted(indices, side).clamp(max=len(indices) - 1) for side in (first, second)]
        given = (indices[places[0]] == first) & (indices[places[1]] == second)
        embeddings = self.all_embeddings(order)
        rows = max(1, BLOCK_BYTES // (12 * embeddings.shape[1]))
        left, right = (place[given].to(embeddings.device).split(rows) for place in places)
        # Pair by pair and not as a product of matrices, so that copies of a pair score the same to the last bit.
        parts = [(embeddings[a] * embeddings[b]).sum(1).cpu() for a, b in zip(left, right, strict=True)]
        return torch.cat(parts), given
