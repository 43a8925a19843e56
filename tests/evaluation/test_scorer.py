"""Anything that gives a vector for each row of an index can be scored, by retrieval and against a threshold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.data.index import IdentityIndex
from zoo.evaluation import Evaluation, Protocol, RetrievalScorer
from zoo.module import ZooModule
from zoo.scores import ScoreName


@pytest.fixture
def index() -> IdentityIndex:
    """Four identities to validate on and four to test, three images of each, of two sources with two coats."""
    count = 24
    return IdentityIndex.build(
        Path("nowhere"),
        [f"{row}.png" for row in range(count)],
        [str(row // 3) for row in range(count)],
        ["val"] * 12 + ["test"] * 12,
        attributes={
            "source": np.array(["ab"[row // 3 % 2] for row in range(count)]),
            "coat": np.array(["red" if row % 3 else "" for row in range(count)]),
        },
    )


def vectors(index: IdentityIndex, noise: float = 0.2) -> Tensor:
    """(N, 8), near a point for each identity."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(len(index.names), 8, generator=draw)
    return points[index.identities] + noise * torch.randn(len(index), 8, generator=draw)


def scored(index: IdentityIndex, protocol: Protocol, noise: float) -> RetrievalScorer:
    scorer = RetrievalScorer(protocol)
    scorer.start(index, "test")
    for rows in torch.from_numpy(index.rows("test")).split(5):
        scorer.update(vectors(index, noise)[rows], rows)
    return scorer


def test_groups_and_sources_are_scored_apart_and_named(index):
    scores = scored(index, Protocol(ks=(1,), group_by="coat"), 0.8).retrieval_scores()
    names = [str(key) for key in scores if key.name == "mAP"]
    assert names == [
        "source=a/mAP", "source=a/coat=red/mAP", "source=b/mAP", "source=b/coat=red/mAP", "mAP",
    ]  # fmt: skip
    each = [scores[ScoreName("mAP", source=f"source={name}")] for name in "ab"]
    assert scores[ScoreName("mAP")] == pytest.approx(np.mean(each)) and len(set(each)) == 2
    assert scores[ScoreName("queries")] == 12
    assert scores[ScoreName("queries", "coat=red", source="source=a")] == 4


def test_a_threshold_is_calibrated_on_one_split_and_tested_on_another(index):
    scorer = RetrievalScorer(Protocol())
    scorer.start(index, "val")
    rows = torch.from_numpy(index.rows("val"))
    scorer.update(vectors(index)[rows], rows)
    threshold = scorer.calibrate()
    assert threshold is not None and threshold is scorer.threshold
    assert threshold.far <= 0.01 and threshold.data == "nowhere, val"
    scorer.start(index, "test", threshold=threshold)
    rows = torch.from_numpy(index.rows("test"))
    scorer.update(vectors(index)[rows], rows)
    scores = scorer.test_scores()
    assert {"far", "frr", "dir", "false_alarms"} <= {key.name for key in scores if key.is_total}
    assert scores[ScoreName("far")] < 0.1 and scores[ScoreName("rank1")] == 1


def test_of_one_identity_there_is_no_threshold(index):
    one = index.select(np.arange(3))
    scorer = RetrievalScorer(Protocol())
    scorer.start(one, "val")
    scorer.update(vectors(one), torch.arange(3))
    assert scorer.calibrate() is None


def test_what_was_taken_in_before_does_not_count(index):
    scorer = scored(index, Protocol(), 0.8)
    scorer.start(index, "test")
    rows = torch.from_numpy(index.rows("test"))
    scorer.update(vectors(index, 0.0)[rows], rows)
    scores = scorer.retrieval_scores()
    assert scores[ScoreName("mAP")] == 1 and scores[ScoreName("queries")] == 12


class Lookup(ZooModule):
    """A root that is no encoder of images: it embeds the numbers of rows."""

    def __init__(self, index: IdentityIndex) -> None:
        super().__init__()
        self.index, self.scorer = index, RetrievalScorer(Protocol(ks=(1,)))

    def on_test_epoch_start(self) -> None:
        self.scorer.start(self.index, "test")

    def test_step(self, rows: Tensor, batch_idx: int) -> None:
        self.scorer.update(vectors(self.index, 0.8)[rows], rows)

    def on_test_epoch_end(self) -> None:
        self.report("test", self.scorer.test_scores())


def test_a_root_that_is_no_identity_encoder_is_scored_alike(index):
    model = Lookup(index)
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    logged = run.test(model, DataLoader(index.rows("test"), batch_size=5), verbose=False)[0]
    expected = scored(index, Protocol(ks=(1,)), 0.8).test_scores()
    assert logged == pytest.approx({f"test/{key}": value for key, value in expected.items()})


def test_without_data_a_root_states_what_it_lacks():
    from tests.evaluation.test_evaluation import Pixels

    with pytest.raises(RuntimeError, match="not connected to any data. Run it by a Trainer"):
        Evaluation(Pixels()).index  # noqa: B018
