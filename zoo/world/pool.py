"""The processes that render the units of a dataset, seen from the process that starts them.

They are plain subprocesses (`zoo.world.worker`), each led by a thread of this process: unlike those of
multiprocessing they never import the caller's main module, and they end when this process is killed.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """What the processes render.

    Args:
        module, name: where a worker imports the class of the dataset from.
        fields: its arguments, as JSON has them.
        root: the folder that is written to.
        views: number of images of each unit to render, by the unit's number.
    """

    module: str
    name: str
    fields: Mapping[str, object]
    root: Path
    views: Mapping[int, int]


def render_in_processes(order: Order, workers: int, lock: tuple[int, ...], after_image: Callable[[], None]) -> None:
    """Renders the units of an order in ``workers`` processes.

    Args:
        lock: file descriptors that the processes inherit.
        after_image: called whenever an image is on disk, by any thread.

    Raises:
        OSError: a process could not write an image.
        RuntimeError: a process ended for another reason.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for unit in order.views:
        pending.put(unit)
    failures: list[Exception] = []

    def lead() -> None:
        try:
            with _start(order, lock) as worker:
                while not failures:
                    unit = pending.get_nowait()
                    _render(worker, unit, order.views[unit], after_image)
        except queue.Empty:
            pass
        except Exception as error:
            failures.append(error)

    leaders = [threading.Thread(target=lead, daemon=True) for _ in range(workers)]
    for leader in leaders:
        leader.start()
    for leader in leaders:
        leader.join()
    if failures:
        raise failures[0]


def _start(order: Order, lock: tuple[int, ...]) -> "subprocess.Popen[str]":
    """Starts a worker process; it ends when its standard input is closed."""
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    search = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "zoo.world.worker", order.module, order.name, str(order.root)],
        env=os.environ | one_thread | search,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=lock,
        start_new_session=True,  # Ctrl-C is this process's to handle
    )
    assert worker.stdin
    worker.stdin.write(json.dumps(order.fields) + "\n")
    return worker


def _render(worker: "subprocess.Popen[str]", unit: int, views: int, after_image: Callable[[], None]) -> None:
    """Has a worker render one unit.

    Raises:
        OSError: the worker could not write it.
        RuntimeError: the worker ended for another reason.
    """
    assert worker.stdin and worker.stdout
    worker.stdin.write(f"{unit}\n")
    worker.stdin.flush()
    for expected in ["image"] * views + ["unit"]:
        answer = worker.stdout.readline().strip()
        if not answer:
            raise RuntimeError(
                f"A process rendering number {unit} ended with code {worker.wait()}; its message is "
                "above, if it left one. What is complete is kept. Run again; workers=1 shows the error here."
            )
        if answer != expected:
            number, _, reason = answer.partition(" ")
            raise OSError(int(number), reason)
        if expected == "image":
            after_image()
