"""Seconds and megabytes of a piece of work."""

import time
from collections.abc import Callable
from pathlib import Path


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_megabytes_over_now(work: Callable[[], object]) -> float:
    """How much higher resident memory rises during the work than it is now (Linux; elsewhere nan)."""
    try:
        before = resident_megabytes()
        restart_peak()
        work()
        return peak_megabytes() - before
    except OSError:
        return float("nan")


def restart_peak() -> None:
    """Let this process' peak start again from what is resident now.

    Raises:
        OSError: not on this system.
    """
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Highest resident memory of this process since `restart_peak`."""
    return _megabytes("self", "VmHWM")


def resident_megabytes(process: int | str = "self") -> float:
    """Resident memory of a process now."""
    return _megabytes(process, "VmRSS")


def _megabytes(process: int | str, key: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{key}:")), float("nan"))
