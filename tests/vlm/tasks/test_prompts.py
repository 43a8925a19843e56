"""The question of a gallery, its options, and how a written answer is read."""

import pytest

from tests.vlm.tiny import picture
from zoo.categories import CATEGORIES, Category, register_category
from zoo.vlm.tasks.prompts import gallery_question, option, options, parse_choice


def test_gallery_first_then_query_then_question() -> None:
    gallery, query = [picture(8, 8, seed) for seed in range(2)], picture(8, 8, 9)
    (message,) = gallery_question(gallery, query, "pet")
    assert message["role"] == "user"
    parts = [part.get("text", part.get("image")) for part in message["content"]]
    assert parts[:6] == ["[Pet 1]", gallery[0], "[Pet 2]", gallery[1], "Query", query]
    assert parts[6:] == ["Which pet is the query? Answer with one bracket."]
    (other,) = gallery_question(gallery, query, "face", no_match=True)
    assert other["content"][-1]["text"] == "Which face is the query? Answer with one bracket, or [None]."


def test_two_queries_of_a_gallery_share_the_beginning() -> None:
    gallery = [picture(8, 8, seed) for seed in range(3)]
    first, second = (gallery_question(gallery, picture(8, 8, seed), "pet")[0]["content"] for seed in (7, 8))
    assert [a == b for a, b in zip(first, second, strict=True)] == [True] * 7 + [False, True]


def test_an_empty_gallery_is_refused() -> None:
    with pytest.raises(ValueError, match="gallery is empty"):
        gallery_question([], picture(8, 8), "pet")
    with pytest.raises(ValueError, match="Unknown category"):
        gallery_question([picture(8, 8)], picture(8, 8), "pets")


def test_options() -> None:
    assert options("person", 3) == ["[Person 1]", "[Person 2]", "[Person 3]"]
    assert options("pet", 1, no_match=True) == ["[Pet 1]", "[None]"]
    assert option("face", 0) == "[None]"
    with pytest.raises(ValueError, match="not -1"):
        option("face", -1)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_every_option_is_parsed_as_itself(category: str) -> None:
    for number, text in enumerate([*options(category, 12)], start=1):
        assert parse_choice(text, category, 12) == number
        assert parse_choice(f"I think {text}, since {text} has a collar.", category, 12) == number
    assert parse_choice("[None]", category, 12) == 0


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[pet 3]", 3),
        ("[ PET  3 ]", 3),
        ("[Pet3]", 3),
        ("[Pet\n3] sleeps", 3),
        ("[none]", 0),
        ("[ NONE ] of them", 0),
        ("[Pet 12]", None),  # not in a gallery of 5, and not [Pet 1]
        ("[Pet 1] or [Pet 2]", None),
        ("[Pet 1] or [None]", None),
        ("[Pet 1] or [Pet 9]", None),
        ("[Pet 2], yes, [pet 2]", 2),
        ("[Person 3] walks [Pet 4]", 4),
        ("[Person 3]", None),
        ("[Carpet 3]", None),
        ("[Pet 0]", None),
        ("[Pet 0] [None]", None),
        ("[Pet -1]", None),
        ("[Pet 1.5]", None),
        ("[Pet ²]", None),
        ("[Pet]", None),
        ("Pet 3", None),
        ("[Pet 3", None),
        ("[[Pet 3]]", 3),
        ("3", None),
        ("", None),
        ("[Pet " + "9" * 5000 + "]", None),
    ],
)
def test_parsing(text: str, choice: int | None) -> None:
    assert parse_choice(text, "pet", 5) == choice


def test_a_noun_of_several_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.categories.CATEGORIES", dict(CATEGORIES))
    register_category("plant", Category("house plant (big)", ""))
    assert option("plant", 2) == "[House plant (big) 2]"
    assert parse_choice("[house  plant (big) 2]", "plant", 5) == 2
