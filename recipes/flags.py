"""Command lines as lists of words, taken apart into flags."""

import re
from collections.abc import Collection, Sequence


def flags_of(given: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Name without dashes, and the words, of each flag with its values; other words, such as `fit`, have no name."""
    found: list[tuple[str, list[str]]] = []
    for word in given:
        is_flag = re.match(r"--?[A-Za-z]", word) is not None
        has_value = found and found[-1][0] and ("=" in found[-1][1][0] or len(found[-1][1]) > 1)
        if is_flag:
            found.append((word.lstrip("-").partition("=")[0], [word]))
        elif found and found[-1][0] and not has_value:
            found[-1][1].append(word)
        else:
            found.append(("", [word]))
    return found


def without_flags(given: Sequence[str], names: Collection[str]) -> list[str]:
    """A command line less some flags, however they are written."""
    return [word for name, words in flags_of(given) if name not in names for word in words]
