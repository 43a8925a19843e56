"""The tables of encoders and of stage 1: their lines, columns and cells."""

import pytest

from recipes.outcome import Outcome
from recipes.tables import as_markdown, choice_tables, retrieval_tables
from zoo.scores import ScoreName, Scores


def scores(**more: float) -> dict[ScoreName, float]:
    found = {ScoreName("conversations"): 8.0}
    for name, value in {"accuracy": 0.5, "chance": 0.2, "general": 0.3, "expert": 0.6}.items():
        found |= {ScoreName(name, group, level): value for level in ("", "tau=0.5") for group in ("", "pet")}
    return found | {ScoreName(name): value for name, value in more.items()}


@pytest.mark.parametrize("no_match", [False, True])
def test_encoders_that_cannot_say_none_are_said_to_be_asked_where_there_is_a_match(no_match: bool) -> None:
    one = scores(**{"no_match": 0.25} if no_match else {})
    text = "".join(as_markdown(table) for table in choice_tables({"stage 1": one}))
    outcome = Outcome({"none": {0: one}, "default": {0: one}}, {}, {"none": {}, "default": {}})
    for encoder, value in (("general encoder", "30.0"), ("expert", "60.0")):
        name = f"{encoder} alone, if there is a match" if no_match else f"{encoder} alone"
        assert f"| {name} | {value} | {value} |" in text
        assert name in outcome.lines
    assert "| chance | 20.0 | 20.0 |" in text


def test_without_an_experts_own_score_there_is_no_line_of_it() -> None:
    """Such as with patch tokens."""
    one = {key: value for key, value in scores().items() if key.name != "expert"}
    text = "".join(as_markdown(table) for table in choice_tables({"stage 1": one}))
    outcome = Outcome({"none": {0: one}, "default": {0: one}}, {}, {"none": {}, "default": {}})
    assert "expert" not in text and "general encoder alone" in text and "expert alone" not in outcome.lines


def test_levels_have_a_table_of_their_own_where_there_are_several() -> None:
    two = {key._replace(level=level): value for key, value in scores().items() for level in ("", "tau=0.5", "tau=0.25")}
    tables = choice_tables({"stage 1": two | {ScoreName("written"): 0.4}})
    assert len(choice_tables({"stage 1": scores()})) == 1 and len(tables) == 2
    assert as_markdown(tables[0]).splitlines()[-1] == "|   stage 1, written |  | 40.0 |"
    assert "| model | tau=0.25 | tau=0.5 |" in as_markdown(tables[1])


def retrieval(rank1: float) -> dict[ScoreName, float]:
    names = {"mAP": rank1 / 2, "mINP": 0.1, "rank10": 0.9, "rank1": rank1, "queries": 40.0, "r_precision": 0.3}
    return {ScoreName(name): value for name, value in names.items()}


def test_encoders_and_the_groups_of_the_last_one_stand_in_one_table() -> None:
    trained: Scores = (
        {key._replace(source="source=a"): value / 2 for key, value in retrieval(0.5).items()}
        | {ScoreName("rank1", "clothes=same", source="source=a"): 0.25}
        | retrieval(0.75)
        | {ScoreName("closed_top1"): 0.125, ScoreName("pairs"): 16.0, ScoreName("far"): 0.01}
    )
    first, second = retrieval_tables({"untrained": retrieval(0.5), "trained": trained})
    assert as_markdown(first).splitlines()[2:] == [
        "| encoder | rank1 | rank10 | mAP | mINP | queries |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| untrained | 50.0 | 90.0 | 25.0 | 10.0 | 40 |",
        "| trained | 75.0 | 90.0 | 37.5 | 10.0 | 40 |",
        "|   source=a | 25.0 | 45.0 | 12.5 | 5.0 | 20 |",
        "|   source=a/clothes=same | 25.0 |  |  |  | 0 |",
    ]
    assert as_markdown(second).splitlines()[2:] == [
        "| score | trained |",
        "| --- | ---: |",
        "| closed_top1 | 12.5 |",
        "| far | 1.0 |",
    ]
    assert len(retrieval_tables({"trained": retrieval(0.5)})) == 1
