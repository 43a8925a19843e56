"""What a card states of data and scores."""

from pathlib import Path

import numpy as np

from zoo.data.index import IdentityIndex
from zoo.evaluation.saving import card_score, data_names
from zoo.scores import ScoreName


def index(cameras: list[int] | None = None, **attributes: list[str]) -> IdentityIndex:
    columns = {name: np.array(values) for name, values in attributes.items()}
    paths = [f"{row}.png" for row in range(4)]
    return IdentityIndex.build(
        Path("/data/photos"), paths, list("xxyy"), ["test"] * 4, cameras=cameras, attributes=columns
    )


def test_data_is_named_by_its_folder_or_its_sources():
    assert data_names(index()) == "photos"
    assert data_names(index(source=["b", "b", "a", "a"])) == "a, b"


def test_a_card_lists_totals_and_of_parts_what_is_compared_most():
    scores = {
        ScoreName("closed_top1"): 0.123456,
        ScoreName("mAP"): 0.5,
        ScoreName("rank1"): 0.75,
        ScoreName("queries"): 40.0,
        ScoreName("queries_skipped"): 0.0,
        ScoreName("pairs"): 16.0,
        ScoreName("mAP", "clothes=pairs of jeans"): 0.25,
        ScoreName("mINP", "clothes=same"): 0.25,
        ScoreName("rank1", source="source=a"): 0.3,
        ScoreName("rank1", "clothes=same", source="source=a"): 0.2,
    }
    score = card_score(index(), scores)
    assert list(score.values.items()) == [
        ("rank1", 0.75), ("mAP", 0.5), ("closed_top1", 0.1235), ("clothes=pairs of jeans/mAP", 0.25),
        ("source=a/rank1", 0.3),
    ]  # fmt: skip
    assert score.dataset == "photos, test" and "camera" not in score.protocol
    assert "images of its own camera and identity left out" in card_score(index([0, 1, 0, 1]), scores).protocol
