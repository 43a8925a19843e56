"""Names of scores: how they are logged, what they are of, and how they are kept as JSON."""

import json
import math

import pytest

from zoo.scores import ScoreName, Scores, from_records, groups_of, levels_of, to_records, totals

SCORES: Scores = {
    ScoreName("accuracy"): 0.5,
    ScoreName("accuracy", "pet"): 0.25,
    ScoreName("accuracy", level="tau=0.5"): 0.4,
    ScoreName("accuracy", level="tau=0.125"): 0.6,
    ScoreName("accuracy", "pet", "tau=0.5"): math.nan,
    ScoreName("mAP", "clothes=changed", source="source=msmt17"): 1 / 3,
}


def test_a_name_is_logged_from_the_widest_part_to_the_narrowest():
    assert [str(name) for name in SCORES] == [
        "accuracy", "pet/accuracy", "tau=0.5/accuracy", "tau=0.125/accuracy", "pet/tau=0.5/accuracy",
        "source=msmt17/clothes=changed/mAP",
    ]  # fmt: skip


def test_groups_and_levels_are_those_of_one_score_and_levels_rise_in_difficulty():
    assert totals(SCORES) == {"accuracy": 0.5}
    assert groups_of(SCORES, "accuracy") == ["pet"] and groups_of(SCORES, "mAP") == ["clothes=changed"]
    assert levels_of(SCORES, "accuracy") == ["tau=0.125", "tau=0.5"] and levels_of(SCORES, "mAP") == []


def test_scores_come_back_from_json_as_they_were():
    again = from_records(json.loads(json.dumps(to_records(SCORES))))
    assert list(again) == list(SCORES)
    assert list(again.values()) == pytest.approx(list(SCORES.values()), abs=0, nan_ok=True)


def test_a_record_without_a_value_is_refused():
    with pytest.raises(ValueError, match="lacks level, value"):
        from_records([{"source": "", "group": "", "name": "accuracy"}])  # type: ignore[typeddict-item]
