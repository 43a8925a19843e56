"""What a score is of: its name, and the source, the group and the level of difficulty that it was measured on."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict


class ScoreName(NamedTuple):
    """The name of one measurement.

    Args:
        name: such as mAP or accuracy.
        group: category, or attribute and value, that it is restricted to; "" for all.
        level: level of difficulty that it is restricted to, such as "tau=0.5"; "" for all.
        source: data set or task that it belongs to, where a run has several; "" otherwise.
    """

    name: str
    group: str = ""
    level: str = ""
    source: str = ""

    def __str__(self) -> str:
        """As it is logged, after the split: "pet/tau=0.5/accuracy"."""
        return "/".join(part for part in (self.source, self.group, self.level, self.name) if part)

    @property
    def is_total(self) -> bool:
        """Whether it is over everything that was measured."""
        return not (self.group or self.level or self.source)


Scores = Mapping[ScoreName, float]


def totals(scores: Scores) -> dict[str, float]:
    """Name -> value of the scores over everything."""
    return {key.name: value for key, value in scores.items() if key.is_total}


def groups_of(scores: Scores, name: str) -> list[str]:
    """The groups, of all levels together, that a score was measured on, in their order."""
    return [key.group for key in scores if key.name == name and key.group and not key.level]


def levels_of(scores: Scores, name: str) -> list[str]:
    """The levels of difficulty, over all groups, that a score was measured on, from the easiest."""
    found = [key.level for key in scores if key.name == name and key.level and not key.group]
    return sorted(found, key=difficulty)


class ScoreRecord(TypedDict):
    """One measurement as plain JSON; see `ScoreName` for its parts."""

    source: str
    group: str
    level: str
    name: str
    value: float


def to_records(scores: Scores) -> list[ScoreRecord]:
    """Scores as plain JSON, in their order."""
    return [
        {"source": key.source, "group": key.group, "level": key.level, "name": key.name, "value": float(value)}
        for key, value in scores.items()
    ]


def from_records(records: Iterable[ScoreRecord]) -> dict[ScoreName, float]:
    """The scores that `to_records` has written.

    Raises:
        ValueError: a record lacks one of the parts of a score.
    """
    scores = {}
    for record in records:
        lacking = sorted(ScoreRecord.__required_keys__ - record.keys())
        if lacking:
            raise ValueError(f"The record {record} of a score lacks {', '.join(lacking)}. Measure it again.")
        scores[ScoreName(record["name"], record["group"], record["level"], record["source"])] = record["value"]
    return scores


def difficulty(level: str) -> tuple[str, float]:
    """What levels are sorted by: "tau=0.5" -> ("tau", 0.5)."""
    kind, _, value = level.partition("=")
    return kind, float(value)
