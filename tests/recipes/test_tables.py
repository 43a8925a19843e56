"""What the tables of stage 1 say beside their numbers."""

import pytest

from recipes.outcome import Outcome
from recipes.tables import as_markdown, choice_tables


def scores(**more: float) -> dict[str, float]:
    found = {"test/conversations": 8.0}
    for name, value in {"accuracy": 0.5, "chance": 0.2, "general": 0.3, "expert": 0.6}.items():
        found |= {f"test/{where}{name}": value for where in ("", "pet/", "tau=0.5/", "pet/tau=0.5/")}
    return found | more


@pytest.mark.parametrize("no_match", [False, True])
def test_encoders_that_cannot_say_none_are_said_to_be_asked_where_there_is_a_match(no_match: bool) -> None:
    one = scores(**{"test/no_match": 0.25} if no_match else {})
    text = "".join(as_markdown(table) for table in choice_tables({"stage 1": one}))
    outcome = Outcome({"none": {0: one}, "default": {0: one}}, {}, {"none": {}, "default": {}})
    for encoder, value in (("general encoder", "30.0"), ("expert", "60.0")):
        name = f"{encoder} alone, if there is a match" if no_match else f"{encoder} alone"
        assert f"| {name} | {value} | {value} |" in text
        assert name in outcome.lines
    assert "| chance | 20.0 | 20.0 |" in text


def test_without_an_experts_own_score_there_is_no_line_of_it() -> None:
    """Such as with patch tokens."""
    one = {name: value for name, value in scores().items() if not name.endswith("/expert")}
    text = "".join(as_markdown(table) for table in choice_tables({"stage 1": one}))
    outcome = Outcome({"none": {0: one}, "default": {0: one}}, {}, {"none": {}, "default": {}})
    assert "expert" not in text and "general encoder alone" in text and "expert alone" not in outcome.lines
