"""Command lines taken apart: no word is lost, and a flag goes with its value and with nothing else."""

import pytest

from recipes.flags import flags_of, without_flags


@pytest.mark.parametrize("written", [["--ckpt_path", "a.ckpt"], ["--ckpt_path=a.ckpt"], ["--ckpt_path="]])
@pytest.mark.parametrize("place", [0, 1, 3, 4, 6])
def test_a_flag_goes_with_its_value_however_it_is_written(written: list[str], place: int) -> None:
    """Also twice; the number below zero is a value, and a longer name is another flag."""
    flags = ["fit", "--data.k", "-1", "--ckpt_path_of=b", "-c", "mine.yaml"]
    given = [*flags[:place], *written, *flags[place:], *written]
    assert without_flags(given, ("ckpt_path",)) == flags


def test_names_and_words_of_flags() -> None:
    given = ["fit", "-c", "a.yaml", "--name=x=y", "b", "--flag", "--last", "1", "2"]
    found = flags_of(given)
    assert [name for name, _ in found] == ["", "c", "name", "", "flag", "last", ""]
    assert [word for _, words in found for word in words] == given
