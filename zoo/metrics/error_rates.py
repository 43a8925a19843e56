"""Error rates over thresholds, the threshold for a false acceptance rate, and open-set scores.

Everywhere a pair, or a query, is accepted when its score is *at least* the threshold.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.metrics.histogram import SimilarityHistogram, similarity_histogram
from zoo.metrics.ranking import BLOCK_BYTES, TIE_WIDTH, EmbeddingSet, similarity_blocks


@dataclass(frozen=True)
class ErrorCurve:
    """False acceptance and false rejection rate at every threshold where one of them changes.

    The first threshold accepts every pair, the last one none. A rate whose pairs are missing is nan.

    Args:
        thresholds: `(T,)` float64, rising.
        far: `(T,)` float64, the share of negative pairs with score >= threshold; falling.
        frr: `(T,)` float64, the share of positive pairs with score < threshold; rising. The true acceptance rate
            (TAR) is 1 - frr; DET curves draw far against frr, ROC curves far against TAR.
    """

    thresholds: Tensor
    far: Tensor
    frr: Tensor

    @classmethod
    def of_scores(cls, scores: Tensor, same: Tensor) -> "ErrorCurve":
        """The exact curve.

        Args:
            scores: `(P,)` floating, finite, higher for pairs that are more alike.
            same: `(P,)` bool, True for positive pairs.

        Raises:
            ValueError: Shapes or types do not fit, there is no pair, or a score is not finite.
        """
        scores, same = scores.detach().cpu(), same.cpu()
        if scores.ndim != 1 or scores.shape != same.shape or not scores.is_floating_point() or same.dtype != torch.bool:
            raise ValueError(
                f"scores are {scores.dtype} {tuple(scores.shape)}, same is {same.dtype} {tuple(same.shape)}; "
                "give floating scores and bools, both of shape (P,)."
            )
        if not len(scores):
            raise ValueError("There are 0 pairs; give at least one.")
        if not scores.isfinite().all():
            raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are nan or infinite.")
        levels, level = scores.unique(return_inverse=True)
        # Above the best score in its own type, or a comparison in float32 would round the step away.
        above = torch.nextafter(levels[-1:], torch.full_like(levels[-1:], torch.inf))
        positive = torch.bincount(level[same], minlength=len(levels))
        negative = torch.bincount(level[~same], minlength=len(levels))
        return cls._of_counts(torch.cat([levels, above]), positive, negative)

    @classmethod
    def of_histogram(cls, histogram: SimilarityHistogram) -> "ErrorCurve":
        """The curve at the lower edges of the bins, and above the last one; exact there, unknown between them."""
        above = torch.nextafter(histogram.edges[-1:], torch.full_like(histogram.edges[-1:], torch.inf))
        return cls._of_counts(torch.cat([histogram.edges[:-1], above]), histogram.positive, histogram.negative)

    @classmethod
    def _of_counts(cls, thresholds: Tensor, positive: Tensor, negative: Tensor) -> "ErrorCurve":
        """From the pairs `(T - 1,)` between one threshold and the next."""
        positive, negative = (torch.cat([n.new_zeros(1), n.cumsum(0)]).cpu() for n in (positive, negative))
        far = (negative[-1] - negative).double() / negative[-1]
        return cls(thresholds.double().cpu(), far, positive.double() / positive[-1])

    def rates(self, threshold: float) -> tuple[float, float]:
        """False acceptance and false rejection rate at a threshold; between two of the curve, those of the upper."""
        place = int(torch.searchsorted(self.thresholds, threshold).clamp(max=len(self.thresholds) - 1))
        return float(self.far[place]), float(self.frr[place])

    def threshold_at_far(self, far: float) -> float:
        """The lowest threshold at which the share of negatives with score >= threshold is at most `far`.

        Nan where there are no negatives. Where even one negative is too many, it lies above the best of them.
        """
        place = self._place_at_far(far)
        return float(self.thresholds[place]) if place is not None else float("nan")

    def tar_at_far(self, far: float) -> float:
        """The share of positives accepted at `threshold_at_far`; nan without positives or without negatives."""
        place = self._place_at_far(far)
        return 1 - float(self.frr[place]) if place is not None else float("nan")

    def auc(self) -> float:
        """Area under the ROC curve: how often a positive scores above a negative, ties counting half."""
        return float(torch.trapezoid((1 - self.frr).flip(0), self.far.flip(0)))

    def eer(self) -> tuple[float, float]:
        """The equal error rate and the lowest threshold with far <= frr.

        The rate is where far and frr meet on the straight line between the last threshold with far > frr and the
        first one without. Both are nan where there are no positives or no negatives.
        """
        gap = self.far - self.frr
        if gap.isnan().any():
            return float("nan"), float("nan")
        after = int((gap <= 0).int().argmax())  # at least 1: everything is accepted at the first
        before = after - 1
        share = gap[before] / (gap[before] - gap[after])
        rate = self.far[before] + share * (self.far[after] - self.far[before])
        return float(rate), float(self.thresholds[after])

    def _place_at_far(self, far: float) -> int | None:
        if not 0 <= far <= 1:
            raise ValueError(f"far is {far}; give a share from 0 to 1.")
        if self.far.isnan().any():
            return None
        return int((self.far <= far).int().argmax())


def error_curve(
    query: EmbeddingSet, gallery: EmbeddingSet, bins: int = 20_000, block_bytes: int = BLOCK_BYTES
) -> ErrorCurve:
    """Error rates over all pairs of a retrieval, junk left out, in bounded memory.

    Accurate to the width of a bin, 2 / bins of cosine similarity: the rates are those at the edges of the bins.

    Args:
        query: Q items.
        gallery: N items on the same device.
        bins: Number of bins over [-1, 1].
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.
    """
    return ErrorCurve.of_histogram(similarity_histogram(query, gallery, bins, block_bytes))


@dataclass(frozen=True)
class OpenSetScores:
    """Best gallery scores of queries whose identity is enrolled, and of strangers.

    Args:
        enrolled: `(E,)` float32, the best score of each query of an enrolled identity.
        right: `(E,)` bool, whether that best gallery item is of the query's identity. A wrong one within
            `TIE_WIDTH` of it counts as better.
        strangers: `(S,)` float32, the best score of each query whose identity is not enrolled.
        skipped: Number of queries of enrolled identities that have nothing but junk of theirs in the gallery.
    """

    enrolled: Tensor
    right: Tensor
    strangers: Tensor
    skipped: int

    def rates(self, threshold: float) -> tuple[float, float]:
        """Detection and identification rate (DIR) and false alarm rate at a threshold; nan where no query is.

        DIR is the share of enrolled queries whose best gallery item is right and scores >= threshold; the false
        alarm rate is the share of strangers with any score >= threshold (Phillips, Grother & Micheals, "Evaluation
        Methods in Face Recognition", Handbook of Face Recognition, 2011). FRVT 1:N (Grother & Ngan) names them
        1 - FNIR and FPIR.
        """
        identified = self.right & (self.enrolled >= threshold)
        return float(identified.double().mean()), float((self.strangers >= threshold).double().mean())

    def threshold_at_far(self, far: float) -> float:
        """The lowest threshold with a false alarm rate of at most `far`; nan without strangers."""
        if not len(self.strangers):
            return float("nan")
        scores = torch.cat([self.enrolled, self.strangers])
        return ErrorCurve.of_scores(scores, torch.arange(len(scores)) < len(self.enrolled)).threshold_at_far(far)

    def dir_at_far(self, far: float) -> float:
        """DIR at `threshold_at_far`; nan without strangers or without enrolled queries."""
        return self.rates(self.threshold_at_far(far))[0] if len(self.strangers) else float("nan")


def open_set_scores(
    query: EmbeddingSet, gallery: EmbeddingSet, enrolled: Tensor, block_bytes: int = BLOCK_BYTES
) -> OpenSetScores:
    """Open-set identification: only the enrolled identities stay in the gallery; all queries are searched for.

    Args:
        query: Q items.
        gallery: N items on the same device.
        enrolled: `(I,)` integers, the identities that are enrolled; see `enrolled_identities`.
        block_bytes: See `zoo.metrics.ranking.similarity_blocks`.
    """
    enrolled = enrolled.to(query.identities.device)
    gallery = gallery.select(torch.isin(gallery.identities, enrolled))
    nothing = torch.finfo(torch.float32).min  # finite, or an error curve would not take it
    right, wrong = torch.full((2, len(query)), nothing)
    for block in similarity_blocks(query, gallery, block_bytes):
        scores = block.similarity.gather(1, block.matches)
        here = block.queries.cpu()
        if scores.shape[1]:
            right[here] = scores.masked_fill(~block.positive, nothing).amax(1).cpu()
        # What fills up the matches of a stranger is a negative and stays.
        same = gallery.identities[block.matches] == query.identities[block.queries, None]
        wrong[here] = block.similarity.scatter_(1, block.matches, scores.masked_fill_(same, nothing)).amax(1).cpu()
    known = torch.isin(query.identities, enrolled).cpu()
    searched = known & (right > nothing)
    return OpenSetScores(
        enrolled=right.maximum(wrong)[searched],
        right=(wrong < right - TIE_WIDTH)[searched],
        strangers=wrong[~known],
        skipped=int((known & ~searched).sum()),
    )


def enrolled_identities(identities: Tensor, share: float = 0.5, seed: int = 0) -> Tensor:
    """Choose by seed which identities of a test split count as enrolled; order and repetition do not matter.

    Args:
        identities: `(N,)` integers, of any number of items.
        share: Share of the identities to enrol, rounded to a whole number of them.
        seed: Another seed, another choice.

    Returns:
        `(I,)` int64, rising.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; give a share from 0 to 1.")
    unique = identities.cpu().long().unique()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(unique)))
    return unique[order[: round(share * len(unique))]].sort().values
