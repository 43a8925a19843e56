"""Stage 1's training step against a bare loop on the same model of transformers: `python -m recipes.speed stage1`.

The plain way runs transformers' processor on text and images, the whole model with its labels and hence the logits of
all tokens, and AdamW over the projector, in every step; it lets go of a batch before it loads the next. Ours is
`MatchStage` under Lightning's Trainer, as the recipe runs it. Both get the same conversations of the procedural world
in the same order, decode them from disk in the training process, start from the same weights, and hold their threads
and freed memory alike. Their losses in the first two steps must agree, the second after an update, else nothing is
compared.

A step lasts from the start of one to the start of the next, loading included. Memory is the highest rise over what it
was before the first step, with the model in place. Each way has a process of its own; they take turns, and ratios are
medians over the rounds.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from recipes.speed.measure import Apart
from recipes.speed.qwen3b import PEAK, SIZES, VOCABULARY
from recipes.speed.stage1_ways import Job, Ours, Plain, Turn
from zoo.vlm.loading import load_config
from zoo.vlm.tasks.match import MatchTask, Worlds

# As recipes/configs/vlm_stage1.yaml has them, so that galleries which were mined for it serve here, too.
WORLD: Worlds = "default"
MINED: dict[str, Any] = {"tau_quantile": [0.5, 0.9, 0.97], "eval_conversations": 200}

WIDE_BATCH = 8  # most conversations in a batch where the logits of all tokens take gigabytes
AGREEMENT = 1e-3, 1e-2  # of losses, in float32 and in bfloat16


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed stage1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--vlm", default="vlm_qwen25vl3m.world", help="name on the shelf, folder or hub id of the model"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the ways take turns within each")
    parser.add_argument("--steps", type=int, default=10, help="training steps of a turn, two or more")
    parser.add_argument("--batch", type=int, default=32, help="conversations in a batch")
    parser.add_argument("--real", action="store_true", help="Qwen2.5-VL-3B's sizes with random weights, too (CUDA)")
    options = parser.parse_args(args)
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}, but the losses of two steps are compared. Give 2 or more.")
    load_config(options.vlm)  # whether there is such a model, before galleries are mined for it
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        manifests = conversations(Path(folder), options.batch * (options.steps + 1))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        job = Job(options.vlm, manifests, options.batch, options.steps, device)
        rows = small_rows(job, options.rounds, Path(folder) / "features")
        rows += wide_rows(replace(job, batch=min(options.batch, WIDE_BATCH), vocabulary=VOCABULARY), options.rounds)
        if options.real and device == "cuda":
            rows += real_rows(replace(job, batch=min(options.batch, WIDE_BATCH), sizes=SIZES), options.rounds)
    console.print(table(rows, f"{options.vlm} on {device}, {torch.get_num_threads()} threads, medians"))
    if options.real and device != "cuda":
        console.print("The row of Qwen2.5-VL-3B's sizes is skipped: there is no CUDA device here.")


# ---------------------------------------------------------------------- turns


def conversations(folder: Path, count: int) -> tuple[str, ...]:
    """Manifests of `count` training conversations of the world, equally many of each category."""
    task = MatchTask(world=WORLD, **MINED)
    task.prepare()
    task.setup()
    task.check("fit")
    paths, rng = [], np.random.default_rng(0)
    for number, mined in enumerate(task.conversations):
        own = np.flatnonzero(mined.column("split") == "train")
        wanted = (count + number) // len(task.conversations)
        paths.append(folder / f"{mined.meta['category']}.parquet")
        chosen = rng.choice(own, wanted, replace=wanted > len(own))
        # One to hold out of each split, else the data would log what they lack.
        held_out = [np.flatnonzero(mined.column("split") == split)[:1] for split in ("val", "test")]
        mined.select(np.sort(np.concatenate([chosen, *held_out]))).save(paths[-1])
    return tuple(map(str, paths))


class Row(NamedTuple):
    """One comparison; the target is the least ratio, or the largest one where less is better."""

    what: str
    ours: str
    other: str
    ratio: float
    target: float | None = None
    less: bool = False

    def cells(self) -> list[str]:
        """As the table has them."""
        if self.target is None or math.isnan(self.ratio):
            return [self.what, self.ours, self.other, f"{self.ratio:.2f}", "", ""]
        met = self.ratio <= self.target if self.less else self.ratio >= self.target
        wanted = f"{'<=' if self.less else '>='} {self.target:g}"
        return [self.what, self.ours, self.other, f"{self.ratio:.2f}", wanted, "met" if met else "not met"]


Turns = Mapping[str, Sequence[Turn]]


def measured(job: Job, ways: Mapping[str, tuple[Any, ...]], rounds: int) -> Turns:
    """All turns of every way, each in a process of its own.

    Args:
        job: what is to be done.
        ways: name -> class, and its arguments after the job; the first is what the others are compared with.
        rounds: turns of each.

    Raises:
        RuntimeError: a way fails, or its losses are not those of the first.
    """
    workers: dict[str, Apart[Turn]] = {}
    turns: dict[str, list[Turn]] = {way: [] for way in ways}
    try:
        for way, (make, *arguments) in ways.items():
            workers[way] = Apart(make, job, *arguments)
        for _ in range(rounds):
            for way, worker in workers.items():
                turns[way].append(worker.turn())
    finally:
        for worker in workers.values():
            worker.close()
    check_same_work(turns, AGREEMENT[1] if job.sizes else AGREEMENT[0])
    return turns


def check_same_work(turns: Turns, within: float) -> None:
    """
    Raises:
        RuntimeError: a way's losses are not those of the first.
    """
    (first, reference), *others = turns.items()
    for way, own in others:
        for step, (loss, expected) in enumerate(zip(own[0].losses, reference[0].losses, strict=False), start=1):
            if not abs(loss - expected) <= within:
                raise RuntimeError(
                    f"The loss of step {step} is {loss:.5f} for {way} and {expected:.5f} for {first}: they do not do "
                    "the same, so their times cannot be compared. Find out where they part before comparing them."
                )


def median_ratio(turns: Turns, way: str, other: str, of: Callable[[Turn], float]) -> float:
    """Median over the rounds of one way's number over the other's in the same round."""
    return statistics.median(of(a) / of(b) for a, b in zip(turns[way], turns[other], strict=True))


def median_of(turns: Sequence[Turn], of: Callable[[Turn], float]) -> float:
    return statistics.median(map(of, turns))


def speed_row(turns: Turns, way: str, other: str, job: Job, what: str, target: float | None = None) -> Row:
    """Conversations in a second."""
    ours, others = (f"{job.batch / median_of(turns[name], _seconds):.1f}/s" for name in (way, other))
    return Row(f"{what}: conversations", ours, others, median_ratio(turns, other, way, _seconds), target)


def memory_row(turns: Turns, way: str, other: str, what: str, target: float | None = None) -> Row:
    """Highest rise of memory."""
    ours, others = (f"{median_of(turns[name], _megabytes):,.0f} MB" for name in (way, other))
    return Row(f"{what}: memory", ours, others, median_ratio(turns, way, other, _megabytes), target, less=True)


def small_rows(job: Job, rounds: int, cache: Path) -> list[Row]:
    """The small model against the plain way, and with cached features against without."""
    ways: dict[str, tuple[Any, ...]] = {
        "plain": (Plain,),
        "ours": (Ours,),
        "ours cached": (Ours, False, cache),
        "ours with experts": (Ours, True),
        "ours with experts cached": (Ours, True, cache),
    }
    turns, batch = measured(job, ways, rounds), f"batch {job.batch}"
    rows = [
        speed_row(turns, "ours", "plain", job, f"ours : plain, {batch}", 1.0),
        memory_row(turns, "ours", "plain", f"ours : plain, {batch}", 0.9),
        speed_row(turns, "ours with experts", "plain", job, "with experts and adapters : plain"),
        memory_row(turns, "ours with experts", "plain", "with experts and adapters : plain"),
    ]
    for way, named in (("ours", "cached : not"), ("ours with experts", "cached : not, with experts and adapters")):
        rows.append(speed_row(turns, f"{way} cached", way, job, named))
        achieved, share = rows[-1].ratio, median_of(turns[way], lambda turn: turn.towers)
        bound = 1 / (1 - share)
        what = f"{named}: of the bound 1 / (1 - s), s = {share:.0%} for decoding, preprocessing and towers"
        rows.append(Row(what, f"{achieved:.2f}x", f"{bound:.2f}x", achieved / bound, 0.85))
    return rows


def wide_rows(job: Job, rounds: int) -> list[Row]:
    """The same model with a large vocabulary."""
    turns = measured(job, {"plain": (Plain,), "ours": (Ours,)}, rounds)
    what = f"vocabulary {job.vocabulary:,}, batch {job.batch}"
    return [speed_row(turns, "ours", "plain", job, what), memory_row(turns, "ours", "plain", what, 0.7)]


def real_rows(job: Job, rounds: int) -> list[Row]:
    """Qwen2.5-VL-3B's sizes."""
    turns = measured(job, {"plain": (Plain,), "ours": (Ours,)}, rounds)
    what, done = f"Qwen2.5-VL-3B's sizes, batch {job.batch}", turns["ours"][0]
    ours, plain = (median_of(turns[way], _seconds) for way in ("ours", "plain"))
    ratio = median_ratio(turns, "plain", "ours", _seconds)
    name = torch.cuda.get_device_name() if job.device == "cuda" else job.device
    peak = next((rate for part, rate in PEAK.items() if part in name), None)

    def rate(seconds: float) -> str:
        return f"{done.flops / seconds / peak:.1%}" if peak else f"{done.flops / seconds / 1e12:.1f} TFLOP/s"

    of = f"model FLOPs of {name}'s {peak / 1e12:.0f} TFLOP/s" if peak else f"model FLOPs (peak of {name} unknown)"
    return [
        Row(f"{what}: tokens", f"{done.tokens / ours:,.0f}/s", f"{done.tokens / plain:,.0f}/s", ratio),
        memory_row(turns, "ours", "plain", what),
        Row(f"{what}: {of}", rate(ours), rate(plain), ratio),
    ]


def table(rows: Sequence[Row], title: str) -> Table:
    """Targets beside what was measured."""
    shown = Table("what", title=title, title_justify="left")
    for heading in ("the zoo", "other", "ratio", "target"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def _seconds(turn: Turn) -> float:
    return turn.seconds


def _megabytes(turn: Turn) -> float:
    return turn.megabytes
