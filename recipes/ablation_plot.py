"""The picture of an ablation: variants beside each other, and what is gained at every level of difficulty."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from zoo.drawing import GREY, PALE, drawn, rgb


def ablation_plot(
    bars: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
    gains: Mapping[str, Sequence[tuple[float, float]]],
    levels: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Variants beside each other, and what is gained at every level of difficulty; error bars are one sd.

    Args:
        bars: variant -> mean and sd of its right answers, in %; nan where there is no sd.
        lines: what they are measured by -> right answers, in %.
        gains: what is gained -> mean and sd at every level, in points.
        levels: the easiest first.
        title: a line above.
    """
    from matplotlib.figure import Figure  # takes a second to import, which only the end of an ablation needs

    figure = Figure(figsize=(11, 1.6 + 0.3 * max(8, len(bars) + len(lines))), dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    means, sds = np.array(list(bars.values()), dtype=float).reshape(-1, 2).T
    left.barh(list(bars), means, xerr=np.nan_to_num(sds), color=rgb(PALE), edgecolor=rgb(GREY), capsize=3)
    left.invert_yaxis()
    for place, (label, value) in enumerate(lines.items()):
        left.axvline(value, color=f"C{place}", linestyle="--", label=f"{label} {value:.1f}")
    left.set(xlabel="right answers, %: mean and sd", title=title, xlim=(0, 100))
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    for place, (label, values) in enumerate(gains.items()):
        means, sds = np.array(values, dtype=float).reshape(-1, 2).T
        apart = np.arange(len(levels)) + 0.04 * place  # error bars beside each other
        right.errorbar(apart, means, np.nan_to_num(sds), marker="o", capsize=3, label=label)
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="level of difficulty", ylabel="gain over no experts, points", title="gain by level")
    right.set_xticks(range(len(levels)), levels)
    if gains:
        right.legend(frameon=False, fontsize=8)
    return drawn(figure)
