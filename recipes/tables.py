"""Tables of scores beside each other: those that a run prints in the end."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zoo.scores import ScoreName, Scores, groups_of, levels_of, totals

_Key = TypeVar("_Key")
_UNLISTED = ("queries", "pairs", "r_precision", "map_at_r")  # scores without a place in the tables


def score_tables(results: Mapping[str, Scores]) -> list[Table]:
    """The tables that suit what was measured: retrieval, choices, or a line for each score.

    Args:
        results: what was tested -> scores.
    """
    last = list(results.values())[-1]
    if ScoreName("mAP") in last:
        return retrieval_tables(results)
    if ScoreName("accuracy") in last and ScoreName("chance") in last:
        return choice_tables(results)
    return [plain_table(results)]


def plain_table(results: Mapping[str, Scores]) -> Table:
    """A line for each score, a column for what was tested."""
    table = Table("score", *results, box=SIMPLE_HEAD, pad_edge=False)
    _align(table)
    for key in dict.fromkeys(key for scores in results.values() for key in scores):
        table.add_row(str(key), *(f"{scores[key]:.4g}" if key in scores else "" for scores in results.values()))
    return table


def retrieval_tables(results: Mapping[str, Scores]) -> list[Table]:
    """A table of retrieval; and one of pairs, thresholds and names, where there is such a thing.

    Args:
        results: encoder -> scores; sources and groups are shown of the last one.
    """
    plain = {encoder: totals(scores) for encoder, scores in results.items()}
    last = list(results.values())[-1]
    names = list(totals(last))
    ranks = sorted((n for n in names if re.fullmatch(r"rank\d+", n)), key=lambda n: int(n.removeprefix("rank")))
    listed = [*ranks, *(n for n in names if n.startswith("mAP")), "mINP"]
    rows = dict(plain)
    for key in dict.fromkeys(key._replace(name="") for key in last if not key.is_total):
        part = {name: last[key._replace(name=name)] for name in names if key._replace(name=name) in last}
        rows[f"  {key}"] = part
    tables = [_retrieval(listed, rows)]
    rest = [n for n in names if n not in listed and not n.startswith(_UNLISTED)]
    return [*tables, _other(rest, plain)] if rest else tables


def _retrieval(names: list[str], rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A line for each encoder or group."""
    table = Table(title="identities never trained on, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("encoder", no_wrap=True, overflow="fold")
    for name in (*names, "queries"):
        table.add_column(name, justify="right")
    for encoder, scores in rows.items():
        table.add_row(encoder, *_percent(names, scores), f"{scores.get('queries', 0):.0f}")
    return table


def _other(names: list[str], columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A line for each score; encoders without any are left out."""
    columns = {encoder: scores for encoder, scores in columns.items() if any(name in scores for name in names)}
    table = Table(
        "score", *columns, title="pairs, thresholds, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    _align(table)
    cells = [_percent(names, scores) for scores in columns.values()]
    for name, *values in zip(names, *cells, strict=True):
        table.add_row(name, *values)
    return table


def choice_tables(results: Mapping[str, Scores]) -> list[Table]:
    """Accuracies of models in galleries: a table of categories, and one of levels of difficulty if there are several.

    Args:
        results: model -> scores: `accuracy` and perhaps `written`, and the baselines `chance`, `expert` and `general`,
            over all and by category (the group) and level; `conversations` and `no_match` over all. The baselines are
            taken from the last one, `expert` and `general` of the conversations that have a match.
    """
    last = list(results.values())[-1]
    lines = {"chance": (last, "chance"), alone("general encoder", last): (last, "general")}
    lines |= {alone("expert", last): (last, "expert")} if ScoreName("expert") in last else {}
    lines |= {model: (scores, "accuracy") for model, scores in results.items()}
    lines |= {
        f"  {model}, written": (scores, "written")
        for model, scores in results.items()
        if ScoreName("written") in scores
    }
    count = last.get(ScoreName("conversations"), 0)
    title = f"{count:.0f} conversations of identities never trained on, right answers in %"
    categories = {category: ScoreName("", group=category) for category in groups_of(last, "accuracy")}
    tables = [_choices(lines, {**categories, "mean": ScoreName("")}, title)]
    levels = {level: ScoreName("", level=level) for level in levels_of(last, "accuracy")}
    if len(levels) > 1:
        tables.append(_choices(lines, levels, "mean over categories, by level"))
    return tables


def alone(encoder: str, scores: Scores) -> str:
    """The name of an encoder's own line: it cannot answer that none matches, so it is asked where there is a match."""
    return f"{encoder} alone{', if there is a match' * (ScoreName('no_match') in scores)}"


def _choices(lines: Mapping[str, tuple[Scores, str]], columns: Mapping[str, ScoreName], title: str) -> Table:
    """
    Args:
        lines: what is shown -> scores and the name of one of them.
        columns: heading -> what its scores are of, the name left open.
        title: a line above.
    """
    table = Table("model", *columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    _align(table)
    for line, (scores, name) in lines.items():
        table.add_row(line, *_percent([part._replace(name=name) for part in columns.values()], scores))
    return table


def _align(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def _percent(names: Sequence[_Key], scores: Mapping[_Key, float]) -> list[str]:
    return [f"{100 * scores[name]:.1f}" if name in scores else "" for name in names]


def as_markdown(table: Table) -> str:
    """A table of plain text, with its title as a line above."""
    heads = [str(column.header).replace("|", "\\|") for column in table.columns]
    rows = [[str(cell).replace("|", "\\|") for cell in column.cells] for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rules, *zip(*rows, strict=True))]
    return "\n".join([*([str(table.title), ""] if table.title else []), *lines, ""])
