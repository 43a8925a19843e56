"""Seconds and megabytes of a piece of work, in this process or in one of its own."""

import ctypes
import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

Answer = TypeVar("Answer")


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


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Rise:
    """How much memory rises over what it is now: what torch allocates on a CUDA device, else what is resident.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 1e6
            return
        with suppress(OSError, AttributeError):  # only glibc has it
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is freed but kept would hide the first of the rise
        self.before = float("nan")
        with suppress(OSError):
            restart_peak()
            self.before = resident_megabytes()

    def megabytes(self) -> float:
        """The highest rise up to now, nan where the system does not report it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self.before
        with suppress(OSError):
            return peak_megabytes() - self.before
        return float("nan")


class _Failed(NamedTuple):
    trace: str


class Apart(Generic[Answer]):
    """Work in a process of its own, which is prepared once and then done as often as it is asked for.

    Args:
        prepare: makes the work there; a function or class of a module, as it is sent by name.
        arguments: of `prepare`.

    Raises:
        RuntimeError: preparing it failed.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Answer]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def turn(self) -> Answer:
        """Do the work once.

        Raises:
            RuntimeError: it failed, or its process was ended.
        """
        self.connection.send(True)
        return self._answer()

    def close(self) -> None:
        """End the process, or what it is still at after ten seconds."""
        with suppress(OSError):
            self.connection.send(False)
        self.process.join(10)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise RuntimeError(
                f"A process that was measured ended with exit code {self.process.exitcode}; -9 is often for want of "
                "memory: take less at a time."
            ) from None
        if isinstance(answer, _Failed):
            raise RuntimeError(f"What was to be measured failed:\n{answer.trace}")
        return answer


def _serve(connection: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    try:
        work = prepare(*arguments)
        connection.send(None)
        while connection.recv():
            connection.send(work())
    except Exception:
        connection.send(_Failed(traceback.format_exc()))
