"""What a run prints in the end: the scores of encoders beside each other."""

import re
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

Scores = Mapping[str, float]

_UNLISTED = ("queries", "pairs", "r_precision", "map_at_r")  # scores without a place in the tables


def result_tables(results: Mapping[str, Scores]) -> list[Table]:
    """A table of retrieval; and one of pairs, thresholds and names, where there is such a thing.

    Args:
        results: encoder -> score, such as `test/mAP` or `test/clothes=changed/mAP`; groups are shown of the last one.
    """
    plain = {
        encoder: {name.split("/", 1)[1]: value for name, value in scores.items() if "/" in name}
        for encoder, scores in results.items()
    }
    last = list(plain.values())[-1]
    ranks = sorted((n for n in last if re.fullmatch(r"rank\d+", n)), key=lambda n: int(n.removeprefix("rank")))
    names = [*ranks, *(n for n in last if n.startswith("mAP") and "/" not in n), "mINP"]
    rows = dict(plain)
    for group in dict.fromkeys(name.rpartition("/")[0] for name in last if "/" in name):
        rows[f"  {group}"] = {n.rpartition("/")[2]: v for n, v in last.items() if n.rpartition("/")[0] == group}
    tables = [_retrieval(names, rows)]
    rest = [n for n in last if n not in names and not n.startswith(_UNLISTED) and "/" not in n]
    return [*tables, _other(rest, plain)] if rest else tables


def _retrieval(names: list[str], rows: Mapping[str, Scores]) -> Table:
    """A line for each encoder or group."""
    table = Table(title="identities never trained on, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("encoder", no_wrap=True, overflow="fold")
    for name in (*names, "queries"):
        table.add_column(name, justify="right")
    for encoder, scores in rows.items():
        table.add_row(encoder, *_percent(names, scores), f"{scores.get('queries', 0):.0f}")
    return table


def _other(names: list[str], columns: Mapping[str, Scores]) -> Table:
    """A line for each score; encoders without any are left out."""
    columns = {encoder: scores for encoder, scores in columns.items() if any(name in scores for name in names)}
    table = Table(
        "score", *columns, title="pairs, thresholds, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    cells = [_percent(names, scores) for scores in columns.values()]
    for name, *values in zip(names, *cells, strict=True):
        table.add_row(name, *values)
    return table


def _percent(names: list[str], scores: Scores) -> list[str]:
    return [f"{100 * scores[name]:.1f}" if name in scores else "" for name in names]


def choice_tables(results: Mapping[str, Scores]) -> list[Table]:
    """Accuracies of models in galleries: a table of categories, and one of levels of difficulty if there are several.

    Args:
        results: model -> score, such as `test/accuracy`, `test/pet/accuracy` or `test/tau=0.5/accuracy`; the baselines
            `chance`, `expert` and `general` are taken from the last one, the latter two of the conversations that have
            a match.
    """
    last = list(results.values())[-1]
    split = next(iter(last)).partition("/")[0]
    lines = {"chance": (last, "chance"), alone("general encoder", last): (last, "general")}
    lines |= {alone("expert", last): (last, "expert")} if f"{split}/expert" in last else {}
    lines |= {model: (scores, "accuracy") for model, scores in results.items()}
    lines |= {
        f"  {model}, written": (scores, "written") for model, scores in results.items() if f"{split}/written" in scores
    }
    categories, levels = groups_of(last)
    count = (
        f"{last.get(f'{split}/conversations', 0):.0f} conversations of identities never trained on, right answers in %"
    )
    tables = [_choices(lines, split, {**{c: f"{c}/" for c in categories}, "mean": ""}, count)]
    if len(levels) > 1:
        tables.append(
            _choices(lines, split, {level: f"{level}/" for level in levels}, "mean over categories, by level")
        )
    return tables


def alone(encoder: str, scores: Scores) -> str:
    """The name of an encoder's own line: it cannot say that none matches, and is asked where there is a match only."""
    return f"{encoder} alone{', if there is a match' * any(name.endswith('/no_match') for name in scores)}"


def _choices(lines: Mapping[str, tuple[Scores, str]], split: str, columns: Mapping[str, str], title: str) -> Table:
    table = Table("model", *columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for line, (scores, name) in lines.items():
        table.add_row(line, *_percent([f"{split}/{where}{name}" for where in columns.values()], scores))
    return table


def groups_of(scores: Scores) -> tuple[list[str], list[str]]:
    """Categories, and levels of difficulty from the easiest, that accuracies such as `test/pet/accuracy` are of."""
    parts = [name.split("/")[1] for name in scores if name.count("/") == 2 and name.endswith("/accuracy")]
    levels = [part for part in parts if "=" in part]
    return [part for part in parts if part not in levels], sorted(levels, key=difficulty)


def difficulty(level: str) -> tuple[str, float]:
    """`tau=0.5` -> ("tau", 0.5)."""
    kind, _, value = level.partition("=")
    return kind, float(value)


def as_markdown(table: Table) -> str:
    """A table of plain text, with its title as a line above."""
    heads = [str(column.header).replace("|", "\\|") for column in table.columns]
    rows = [[str(cell).replace("|", "\\|") for cell in column.cells] for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rules, *zip(*rows, strict=True))]
    return "\n".join([*([str(table.title), ""] if table.title else []), *lines, ""])
