"""What the card of a trained encoder states of its data and scores."""

from datetime import date

import numpy as np

from zoo.cards.cardfile import Score
from zoo.data.index import IdentityIndex
from zoo.scores import ScoreName, Scores

_IN_PARTS = ("rank1", "mAP")  # the scores that a card also lists for each group and each source


def data_names(index: IdentityIndex) -> str:
    """The data sets of an index, with the collections that they come from."""
    sources = np.unique(index.attributes["source"]) if "source" in index.attributes else [index.root.resolve().name]
    origins = f" (of {', '.join(index.origins)})" if index.origins else ""
    return ", ".join(sources) + origins


def card_score(index: IdentityIndex, scores: Scores) -> Score:
    """The entry of a card for scores on the test split: rank-1 and mAP first, no counts, rounded to four digits."""
    first = [ScoreName(name) for name in _IN_PARTS if ScoreName(name) in scores]
    cameras = ", images of its own camera and identity left out" if (index.cameras >= 0).any() else ""
    return Score(
        dataset=f"{data_names(index)}, test",
        protocol=f"each query against the gallery by cosine similarity, itself left out by index{cameras}",
        date=date.today().isoformat(),
        values={str(key): round(scores[key], 4) for key in dict.fromkeys([*first, *scores]) if _is_listed(key)},
    )


def _is_listed(key: ScoreName) -> bool:
    is_count = "queries" in key.name or "pairs" in key.name
    parts = sum(bool(part) for part in (key.source, key.group, key.level))
    return not is_count and (parts == 0 or parts == 1 and key.name in _IN_PARTS)
