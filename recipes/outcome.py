"""Outcome: the scores of an ablation as tables and a plot, and answers that hold beyond the spread of the seeds."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.special import stdtrit
from torch.utils.tensorboard import SummaryWriter

from recipes.ablation_plot import ablation_plot
from recipes.tables import alone, as_markdown
from zoo.drawing import save_png
from zoo.scores import ScoreName, Scores, difficulty, groups_of, levels_of

Runs = Mapping[int, Scores]  # seed -> scores of one variant
NONE, DEFAULT = "none", "default"
_RIGHT = ScoreName("accuracy")  # share of right answers, over all categories and levels
_SINGLE = f"experts - {NONE}, trained at one level each"
_ROUNDING = 1e-9  # of differences of shares
_MINED = (
    "The galleries are of images that the general encoder finds alike: that harms it alone, the more the higher the "
    "level, and perhaps in the experts' place, too."
)
_CHANCE = "A star marks that 0 lies outside of the 95% interval; of 20 comparisons of equals, one is starred by chance."


class Mean(NamedTuple):
    """A mean over seeds.

    Args:
        value: mean; nan of nothing.
        sd: standard deviation of the sample; nan of fewer than two.
        seeds: how many there are.
    """

    value: float
    sd: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        return cls(fmean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan, len(values))

    @classmethod
    def difference(cls, one: Runs, other: Runs, name: ScoreName) -> "Mean":
        """Of a score of one variant less that of another, seed by seed, where both have it."""
        seeds = [seed for seed in sorted(one.keys() & other.keys()) if name in one[seed] and name in other[seed]]
        return cls.of([one[seed][name] - other[seed][name] for seed in seeds])

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside of the 95% interval of Student's t. Of three seeds that is 4.3 standard errors: two
        would find a difference where there is none in every sixth comparison."""
        if self.seeds < 2:
            return False
        half = float(stdtrit(self.seeds - 1, 0.975)) * self.sd / math.sqrt(self.seeds)
        return abs(self.value) > max(half, _ROUNDING)

    def percent(self, sign: str = "") -> str:
        """Such as `54.2 +- 1.3`; with a sign `+4.2 +- 1.3*`, the star for a clear one."""
        if not self.seeds:
            return ""
        spread = f" +- {100 * self.sd:.1f}" if self.seeds > 1 else ""
        return f"{100 * self.value:{sign}z.1f}{spread}{'*' if sign and self.is_clear else ''}"


def ablation_table(
    groups: Mapping[str, Mapping[str, Runs]],
    default: Runs,
    none: Runs,
    lines: Mapping[str, tuple[Runs, str]],
    by_category: bool = True,
) -> Table:
    """Variants of a model, grouped by what varies: mean and sd over seeds, and what is gained, seed by seed.

    Args:
        groups: factor -> variant -> its runs.
        default: what all of them vary.
        none: the same without experts.
        lines: what they are measured by -> runs and the name of the score in them, such as `chance`.
        by_category: with a column for each category.
    """
    runs = [scores for group in groups.values() for variant in group.values() for scores in variant.values()]
    categories = groups_of(runs[0], "accuracy") if runs and by_category else []
    where = [*categories, ""]  # the mean comes last
    title = "right answers in %, mean +- sd over seeds; * beyond the spread of the seeds (Student's t, 95%, paired)"
    names = ("factor", "variant", *categories, "mean", "over none", "over default", "seeds")
    table = Table(*names, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.justify, column.overflow = "right", "fold"
    for factor, variants in groups.items():
        for place, (variant, own) in enumerate(variants.items()):
            cells = [_of(own, ScoreName("accuracy", group)).percent() for group in where]
            gains = [
                "" if own is other else Mean.difference(own, other, _RIGHT).percent("+") for other in (none, default)
            ]
            table.add_row(factor * (not place), variant, *cells, *gains, str(len(own)))
    for line, (own, score) in lines.items():
        cells = [_of(own, ScoreName(score, group)).percent() for group in where]
        table.add_row("" if line != next(iter(lines)) else "beside", line, *cells, "", "", str(len(own)))
    return table


def level_table(gains: Mapping[str, tuple[Runs, Runs]], lines: Mapping[str, tuple[Runs, str]]) -> Table:
    """What is gained at every level of difficulty, in points, and by how much more at the last than at the first.

    Args:
        gains: what is gained -> the runs with it and those without.
        lines: what it is measured by -> runs and the name of the score in them.
    """
    runs = [scores for own, _ in lines.values() for scores in own.values()]
    levels = levels_of(runs[0], "accuracy") if runs else []
    title = "gain over none by level, in points, seed by seed; below it, right answers in %"
    table = Table("", *levels, "last - first", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for line, (one, other) in gains.items():
        cells = [Mean.difference(one, other, _right_at(level)).percent("+") for level in levels]
        table.add_row(line, *cells, growth(one, other).percent("+"))
    for line, (own, score) in lines.items():
        cells = [_of(own, ScoreName(score, level=level)).percent() for level in levels]
        table.add_row(line, *cells, "")
    return table


def growth(one: Runs, other: Runs) -> Mean:
    """How much more one variant gains over another at the hardest level than at the easiest; of no seeds where levels
    cannot be compared: a single one, or some by tau and some by quantile."""
    levels = _levels(one)
    if len(levels) < 2 or len({difficulty(level)[0] for level in levels}) > 1:
        return Mean.of([])
    first, last = _right_at(levels[0]), _right_at(levels[-1])
    seeds = [seed for seed in one if {first, last} <= one[seed].keys() & other.get(seed, {}).keys()]
    gains = {name: [one[seed][name] - other[seed][name] for seed in seeds] for name in (first, last)}
    return Mean.of([b - a for a, b in zip(*gains.values(), strict=True)])


class Outcome:
    """The scores of all runs of an ablation that are finished.

    Args:
        runs: variant -> its runs; `none` and `default` among them, with which all others are compared; these are
            trained on all levels together.
        base: runs of the model as it was.
        labels: variant -> factor -> what it is in this variant; none has no factors.
        grid: whether all combinations were run.
        single: level -> `none` and `default` -> runs that were trained and tested at this level only (Figure 3).
    """

    def __init__(
        self,
        runs: Mapping[str, Runs],
        base: Runs,
        labels: Mapping[str, Mapping[str, str]],
        grid: bool = False,
        single: Mapping[str, Mapping[str, Runs]] | None = None,
    ) -> None:
        self.runs, self.base, self.labels, self.grid, self.single = runs, base, labels, grid, single or {}

    @property
    def groups(self) -> dict[str, dict[str, Runs]]:
        """Factor -> variant -> runs, with the default in every group; one group of all for a grid."""
        if self.grid:
            return {"grid": dict(self.runs)}
        groups: dict[str, dict[str, Runs]] = {}
        if not self.labels[DEFAULT]:
            return {"": {DEFAULT: self.runs[DEFAULT], NONE: self.runs[NONE]}}
        for factor, label in self.labels[DEFAULT].items():
            groups[factor] = {f"{label} (default)": self.runs[DEFAULT]}
            others = {
                name: labels[factor] for name, labels in self.labels.items() if labels.get(factor, label) != label
            }
            groups[factor] |= {other: self.runs[name] for name, other in others.items()}
            if factor != "where":  # where nothing enters
                groups[factor] |= {NONE: self.runs[NONE]}
        return groups

    @property
    def lines(self) -> dict[str, tuple[Runs, str]]:
        """What the variants are measured by -> runs and the name of the score; only those that there are."""
        default = self.runs[DEFAULT]
        some = next(iter(default.values()), {})
        wanted: dict[str, tuple[Runs, str]] = {
            "chance": (default, "chance"),
            "base model": (self.base, "accuracy"),
            alone("general encoder", some): (default, "general"),
            alone("expert", some): (default, "expert"),
        }
        return {
            name: (runs, score)
            for name, (runs, score) in wanted.items()
            if runs and all(ScoreName(score) in scores for scores in runs.values())
        }

    @property
    def gains(self) -> dict[str, tuple[Runs, Runs]]:
        """What is gained over none, by experts and by the general encoder in their place."""
        encoders = {"experts": self.runs[DEFAULT], "general encoder": self.runs.get("general", {})}
        found = {f"{name} - {NONE}": (runs, self.runs[NONE]) for name, runs in encoders.items() if runs}
        return found | ({_SINGLE: (self._by_level(DEFAULT), self._by_level(NONE))} if self.single else {})

    def _by_level(self, variant: str) -> Runs:
        """Of every seed, the score at each level of the run that was trained at that level only."""
        found: dict[int, dict[ScoreName, float]] = {}
        for level, runs in self.single.items():
            for seed, scores in runs[variant].items():
                found.setdefault(seed, {})[_right_at(level)] = scores[_RIGHT]
        return found

    def answers(self) -> list[str]:
        """The paper's two questions, answered by what was measured."""
        expert, none = self.runs[DEFAULT], self.runs[NONE]
        better = Mean.difference(expert, self.runs.get("general", {}), _RIGHT)
        asked = {"trained on all levels together": (expert, none)}
        if self.single:
            asked["trained at one level each"] = self._by_level(DEFAULT), self._by_level(NONE)
        return [
            *(
                f"Does the gain of experts grow with the level of difficulty, {how}? {_grown(*r)}"
                for how, r in asked.items()
            ),
            "Does an expert beat a general encoder in its place? "
            + _judged(better, "Yes", "No, the general encoder is better")
            + f" {_MINED}",
        ]

    def save(self, folder: Path) -> None:
        """Write results.csv, table.md and ablation.png, and the picture to TensorBoard.

        Args:
            folder: where to.
        """
        text = "\n".join([*map(as_markdown, self.tables()), *[f"{line}\n" for line in (_CHANCE, *self.answers())]])
        (folder / "table.md").write_text(text)
        with open(folder / "results.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["variant", *self.labels[DEFAULT], "seed", "score", "value"])
            writer.writerows(self._rows())
        picture = self.plot()
        save_png(picture, folder / "ablation.png")
        with SummaryWriter(str(folder / "summary")) as board:
            board.add_image("ablation", np.asarray(picture), 0, dataformats="HWC")
            board.add_text("ablation", text, 0)

    def tables(self, by_category: bool = True) -> list[Table]:
        """All variants, and what is gained by level; the columns of the categories need a wide page."""
        default, none = self.runs[DEFAULT], self.runs[NONE]
        lines: dict[str, tuple[Runs, str]] = {"experts": (default, "accuracy"), NONE: (none, "accuracy")}
        lines = {name: (runs, score) for name, (runs, score) in lines.items() if runs} | self.lines
        return [ablation_table(self.groups, default, none, self.lines, by_category), level_table(self.gains, lines)]

    def plot(self) -> Image.Image:
        """Bars of all variants, and what is gained over the levels."""
        means = {name: _of(runs, _RIGHT) for name, runs in self.runs.items() if runs}
        levels = levels_of(next(scores for runs in self.runs.values() for scores in runs.values()), "accuracy")
        default = ", ".join(self.labels[DEFAULT].values())
        return ablation_plot(
            {name: _percent(mean) for name, mean in means.items()},
            {name: _percent(_of(runs, ScoreName(score)))[0] for name, (runs, score) in self.lines.items()},
            {
                name: [_percent(Mean.difference(*pair, _right_at(level))) for level in levels]
                for name, pair in self.gains.items()
            },
            levels,
            f"default: {default}",
        )

    def _rows(self) -> Iterator[list[str | int | float]]:
        factors = list(self.labels[DEFAULT])
        single = {f"{name} at {level}": runs for level, own in self.single.items() for name, runs in own.items()}
        for name, runs in {**self.runs, **single, "base model": self.base}.items():
            own = [self.labels.get(name, {}).get(factor, "") for factor in factors]
            for seed, scores in runs.items():
                for key, value in scores.items():
                    yield [name, *own, seed, f"test/{key}", value]


def _grown(one: Runs, other: Runs) -> str:
    """Whether the gain of one variant over another grows from the easiest level to the hardest."""
    more, ends = growth(one, other), ""
    if more.seeds:
        easiest, *_, hardest = _levels(one)
        first, last = (Mean.difference(one, other, _right_at(level)) for level in (easiest, hardest))
        ends = f"{first.percent('+')} points at {easiest}, {last.percent('+')} at {hardest}. "
    return ends + _judged(more, "Yes", "It shrinks")


def _levels(runs: Runs) -> list[str]:
    """All levels that any of the runs has scores of, from the easiest."""
    return sorted({level for scores in runs.values() for level in levels_of(scores, "accuracy")}, key=difficulty)


def _right_at(level: str) -> ScoreName:
    return ScoreName("accuracy", level=level)


def _of(runs: Runs, name: ScoreName) -> Mean:
    return Mean.of([scores[name] for scores in runs.values()])


def _percent(mean: Mean) -> tuple[float, float]:
    return 100 * mean.value, 100 * mean.sd


def _judged(mean: Mean, more: str, less: str) -> str:
    measured = f"{mean.percent('+').rstrip('*')} points over {mean.seeds} seeds."
    if not mean.seeds:
        return "Not answered by these runs."
    if mean.seeds == 1:
        return f"Not answered by one seed, without a spread: {measured.replace('seeds', 'seed')}"
    if not mean.is_clear:
        return f"No difference beyond the spread of the seeds: {measured}"
    return f"{more if mean.value > 0 else less}: {measured}"
