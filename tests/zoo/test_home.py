"""Where the zoo keeps what can be made again."""

from pathlib import Path

import pytest

from zoo.home import home


@pytest.mark.parametrize(
    ("given", "found"),
    [("/data/zoo", "/data/zoo"), ("~/zoo", "/users/kim/zoo"), ("", "/users/kim/.cache/instance_zoo")],
)
def test_home_is_what_the_environment_says_else_the_users_cache(given, found, monkeypatch):
    monkeypatch.setenv("HOME", "/users/kim")
    monkeypatch.setenv("INSTANCE_ZOO_HOME", given)
    assert home() == Path(found)


def test_home_without_a_word_of_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/users/kim")
    monkeypatch.delenv("INSTANCE_ZOO_HOME")
    assert home() == Path("/users/kim/.cache/instance_zoo")
