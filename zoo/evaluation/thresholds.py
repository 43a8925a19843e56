"""The threshold of "the same identity": calibrated on validation identities, tested on others."""

import math

from zoo.cards.cardfile import Threshold
from zoo.metrics import EmbeddingSet, enrolled_identities, error_curve, open_set_scores


def calibrate_threshold(query: EmbeddingSet, gallery: EmbeddingSet, far: float, data: str) -> Threshold | None:
    """The lowest threshold of cosine similarity whose false acceptance rate on these identities is at most `far`.

    Args:
        query: Q items.
        gallery: N items on the same device.
        far: from 0 to 1.
        data: what it is calibrated on, as its card states it.

    Returns:
        None where there is no pair of two identities, or none of one.
    """
    curve = error_curve(query, gallery)
    value = curve.threshold_at_far(far)
    acceptance, rejection = curve.rates(value)
    if math.isnan(acceptance) or math.isnan(rejection):
        return None
    return Threshold(round(value, 4), round(acceptance, 6), round(rejection, 4), data)


def threshold_scores(threshold: float, query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, float]:
    """How a threshold fares on other identities than it was calibrated on.

    Args:
        threshold: of cosine similarity.
        query: Q items.
        gallery: N items on the same device.

    Returns:
        `far`, `frr`: false acceptance and rejection rate of their pairs; `dir`, `false_alarms`: detection and
        identification rate and false alarm rate in an open set with half of them enrolled. A rate that nothing counts
        for is left out.
    """
    far, frr = error_curve(query, gallery).rates(threshold)
    enrolled = enrolled_identities(gallery.identities)
    identified, alarms = open_set_scores(query, gallery, enrolled).rates(threshold)
    rates = {"far": far, "frr": frr, "dir": identified, "false_alarms": alarms}
    return {name: rate for name, rate in rates.items() if not math.isnan(rate)}
