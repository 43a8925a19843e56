"""Retrieval scores of the zoo and of other libraries, from the same features: `python -m recipes.speed retrieval`.

Everyone ranks the whole gallery for every query and gives rank-1 and mAP, exactly: no neighbour is left out or
approximated. There are no cameras, as not every library knows them. Each works in a process of its own, one at a time
and in turns, from features in its memory to numbers; memory is counted from when library and features are there.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipes.speed.measure import peak_megabytes, resident_megabytes, restart_peak
from recipes.speed.ways import SIZES, WAYS, Features, Scores

AGREEMENT = 1e-4
_TO_START_S = 300.0  # for the imports of a library


# ---------------------------------------------------------------------- a process for each


class Turn(NamedTuple):
    """What one turn gave."""

    seconds: float
    megabytes: float
    scores: Scores


class Stopped(NamedTuple):
    """Why there is nothing to report."""

    reason: str


def serve(connection: Connection, way: str, path: Path) -> None:
    """In its own process: prepare, report it, and work on request until asked to end."""
    features = Features.load(path)
    try:
        work = WAYS[way].prepare(features)
        WAYS[way].prepare(Features.draw(SIZES["small"]))()  # start threads and load what is loaded lazily
    except ImportError as error:
        connection.send(Stopped(f"not installed ({error.name or error}): {WAYS[way].install}"))
        return
    before = _or_nan(resident_megabytes)
    connection.send(before)
    while connection.recv():
        try:
            _or_nan(restart_peak)
            start = time.perf_counter()
            scores = work()
            seconds = time.perf_counter() - start
            connection.send(Turn(seconds, _or_nan(peak_megabytes) - before, scores))
        except Exception as error:  # another library's; what happened is reported
            connection.send(Stopped(f"{type(error).__name__}: {error}"))


def _or_nan(measure: Callable[[], float | None]) -> float:
    """Known on Linux only."""
    try:
        return measure() or 0.0
    except OSError:
        return float("nan")


class Worker:
    """The process of one way, that is killed once it takes more than it may."""

    def __init__(self, way: str, features: Path, time_limit_s: float, memory_limit_gb: float) -> None:
        self.time_limit_s, self.memory_limit_gb = time_limit_s, memory_limit_gb
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, way, features), daemon=True)
        self.process.start()
        theirs.close()
        self.before = 0.0
        ready = self._answer(_TO_START_S, float("inf"))
        self.stopped = ready if isinstance(ready, Stopped) else None
        if self.stopped is None:
            self.before = ready

    def turn(self) -> Turn | Stopped:
        """Work once."""
        if self.stopped is None:
            self.connection.send(True)
            answer = self._answer(self.time_limit_s, self.memory_limit_gb)
            if isinstance(answer, Turn):
                return answer
            self.stopped = answer
        return self.stopped

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _answer(self, time_limit_s: float, memory_limit_gb: float) -> Any:
        start = time.perf_counter()
        try:
            while not self.connection.poll(0.02):
                taken = (_or_nan(lambda: resident_megabytes(self.process.pid or 0)) - self.before) / 1e3
                if taken > memory_limit_gb:
                    return self._stop(f"stopped at {taken:.1f} GB")
                if time.perf_counter() - start > time_limit_s:
                    return self._stop(f"stopped after {time_limit_s:g} s, at {taken:.1f} GB")
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return self._stop(f"its process ended with exit code {self.process.exitcode}")

    def _stop(self, reason: str) -> Stopped:
        self.process.kill()
        return Stopped(reason)


# ---------------------------------------------------------------------- the table


def measure(size: str, options: argparse.Namespace) -> dict[str, list[Turn] | Stopped]:
    """All turns of every way, or why it was stopped."""
    ways = [way for way in options.ways if size in WAYS[way].sizes]
    workers: dict[str, Worker] = {}
    results: dict[str, list[Turn] | Stopped] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npz"
        Features.draw(SIZES[size]).save(path)
        try:
            for way in ways:
                workers[way] = Worker(way, path, options.time_limit_s, options.memory_limit_gb)
            for _ in range(options.rounds):
                for way, worker in workers.items():
                    turn, so_far = worker.turn(), results.setdefault(way, [])
                    if isinstance(turn, Stopped):
                        results[way] = turn
                    elif isinstance(so_far, list):
                        so_far.append(turn)
        finally:
            for worker in workers.values():
                worker.close()
    return results


def table(size: str, results: dict[str, list[Turn] | Stopped]) -> Table:
    """A row for each way; ratios are medians over the rounds, against the zoo in the same round."""
    shape = SIZES[size]
    title = f"{size}: {shape.queries:,} x {shape.gallery:,} x {shape.width}, {torch.get_num_threads()} threads"
    rows = Table("way", title=title, title_justify="left")
    for heading in ("seconds", "x the zoo", "MB over features", "rank-1", "mAP"):
        rows.add_column(heading, justify="right")
    rows.add_column("setting")
    reference = results.get("zoo")
    for way, turns in results.items():
        if isinstance(turns, Stopped):
            rows.add_row(WAYS[way].title, "", "", "", "", "", escape(turns.reason))
            continue
        ratio, verdict = "", ""
        if isinstance(reference, list):
            pairs = zip(turns, reference, strict=True)
            ratio = f"{statistics.median(turn.seconds / ours.seconds for turn, ours in pairs):.2f}"
            if WAYS[way].same_scores and way != "zoo":
                verdict = agreement(turns[-1].scores, reference[-1].scores)
        scores = turns[-1].scores
        rows.add_row(
            WAYS[way].title,
            f"{statistics.median(turn.seconds for turn in turns):.2f}",
            ratio,
            f"{max(turn.megabytes for turn in turns):,.0f}",
            *(f"{100 * scores[name]:.3f}" if name in scores else "" for name in ("rank1", "mAP")),
            escape(f"{WAYS[way].setting}{verdict}"),
        )
    return rows


def agreement(theirs: Scores, ours: Scores) -> str:
    """Whether rank-1 and mAP are the zoo's."""
    apart = [f"{name} {theirs[name] - ours[name]:+.6f}" for name in ours if abs(theirs[name] - ours[name]) > AGREEMENT]
    return f"; apart from the zoo: {', '.join(apart)}" if apart else f"; agrees within {AGREEMENT:g}"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = ", ".join(f"{name} {s.queries:,} x {s.gallery:,} x {s.width}" for name, s in SIZES.items())
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["market", "msmt17"], help=sizes)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to compare")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the ways take turns within each")
    parser.add_argument("--time_limit_s", type=float, default=120.0, help="seconds after which a turn is stopped")
    parser.add_argument("--memory_limit_gb", type=float, default=8.0, help="memory at which a turn is stopped (Linux)")
    options = parser.parse_args(args)
    console = Console()
    for size in options.sizes:
        console.print(table(size, measure(size, options)))
