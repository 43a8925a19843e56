"""Writes a world to disk: several processes, a progress bar, and no harm from being interrupted.

An image is drawn in a hidden folder and moved into place; a unit's record follows when all of its images are
there. The file ``world.json`` is written last: where it is, the world is complete. One process at a time writes a
world; others wait for it.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from zoo.world.base import SPLITS, Wing

DONE = "world.json"
_PARTIAL = ".partial"  # units being rendered, and the records of complete ones


def write(world: Wing, root: Path, workers: int | None) -> Path:
    """Completes the world at ``root`` and returns ``root``; see `Wing.prepare`."""
    if (root / DONE).is_file():
        return root
    console = Console(stderr=True)
    try:
        (root / _PARTIAL).mkdir(parents=True, exist_ok=True)
        with _only_writer(root, console) as lock:
            if (root / DONE).is_file():
                return root
            (root / _PARTIAL).mkdir(exist_ok=True)  # another writer may have finished and tidied up
            todo = [k for k in range(world.units) if not is_complete(world, root, k)]
            kept = world.units - len(todo)
            if kept:
                console.print(f"Going on with {root}: {kept} of {world.units} {world.UNITS} are there already.")
            _render_all(world, root, todo, workers or os.cpu_count() or 1, lock, console)
            _finish(world, root)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The world cannot be written to {root}: {error.strerror or error}. What is complete is kept. "
            "Free some space, or set INSTANCE_ZOO_HOME to a folder that can be written to, and run again",
        ) from error
    return root


def is_complete(world: Wing, root: Path, unit: int) -> bool:
    """Whether a unit's images and record are on disk."""
    return (root / _PARTIAL / f"{world.name_of(unit)}.json").is_file()


def write_unit(world: Wing, root: Path, unit: int, after_image: Callable[[], None] = lambda: None) -> None:
    """Renders all views of one unit; its record, written last, says that all of them are in place."""
    name = world.name_of(unit)
    draft = root / _PARTIAL / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows = []
    for view in range(world.views_of(unit)):
        image, known = world.draw(unit, view)
        path = world.path_of(unit, view)
        drawn = draft / Path(path).name
        how: dict[str, Any] = {"quality": 95, "subsampling": 0}
        if drawn.suffix.lower() == ".png":
            how = {"compress_level": 1}
        Image.fromarray(image).save(drawn, **how)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        drawn.replace(root / path)
        rows.append({"path": path} | known)
        after_image()
    record = draft / "record.json"
    record.write_text(json.dumps(rows))
    record.replace(root / _PARTIAL / f"{name}.json")
    draft.rmdir()


def _finish(world: Wing, root: Path) -> None:
    """Gathers the records, has the wing write its lists, tidies up, and marks the world as complete."""
    records: list[dict[str, Any]] = []
    count = {split: 0 for split in SPLITS}
    for unit in range(world.units):
        split = world.split_of(unit)
        rows = json.loads((root / _PARTIAL / f"{world.name_of(unit)}.json").read_text())
        records += [row | {"split": split} for row in rows]
        count[split] += len(rows)
    records.sort(key=lambda row: row["path"])
    world.write_lists(root, records)
    about = {"world": world.NAME, "version": world.VERSION, "fields": asdict(world), "images": count}
    draft = root / f"{DONE}.draft"
    draft.write_text(json.dumps(about, indent=2) + "\n")
    draft.replace(root / DONE)
    shutil.rmtree(root / _PARTIAL, ignore_errors=True)


@contextmanager
def _only_writer(root: Path, console: Console) -> Iterator[tuple[int, ...]]:
    """Holds the world's lock, which the system lets go when the process dies, however it dies.

    Yields the lock's file descriptors: workers inherit them, so that one which outlives this process for a
    moment cannot meet the next writer.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two writers at once are then the user's affair
        yield ()
        return
    with (root.parent / f".{root.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"Another process is rendering {root}: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def _render_all(
    world: Wing, root: Path, todo: list[int], workers: int, lock: tuple[int, ...], console: Console
) -> None:
    """Renders the units in ``todo`` under a progress bar."""
    workers = min(workers, len(todo))
    if type(world).__module__ == "__main__":  # workers could not import its class
        workers = 1
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TextColumn("{task.fields[rate]}"), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        done = world.images - sum(world.views_of(unit) for unit in todo)
        task = progress.add_task(f"Rendering {world.NAME}", total=world.images, completed=done, rate="")

        def advance() -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f} images/s" if speed else "")

        if workers <= 1:
            for unit in todo:
                write_unit(world, root, unit, advance)
        else:
            _share_out(world, root, todo, workers, lock, advance)


def _share_out(
    world: Wing,
    root: Path,
    todo: list[int],
    workers: int,
    lock: tuple[int, ...],
    advance: Callable[[], None],
) -> None:
    """Lets ``workers`` processes render the units in ``todo``.

    They are plain subprocesses (`zoo.world.worker`), each led by a thread of this process: unlike those of
    multiprocessing they never import the caller's main module, and they end when this process is killed.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for unit in todo:
        pending.put(unit)
    failures: list[Exception] = []

    def lead() -> None:
        try:
            with _worker(world, root, lock) as worker:
                while not failures:
                    unit = pending.get_nowait()
                    _order(worker, unit, world.views_of(unit), advance)
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


def _worker(world: Wing, root: Path, lock: tuple[int, ...]) -> "subprocess.Popen[str]":
    """Starts a worker process; it ends when its standard input is closed."""
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    search = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    what = [type(world).__module__, type(world).__qualname__, str(root)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "zoo.world.worker", *what],
        env=os.environ | one_thread | search,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=lock,
        start_new_session=True,  # Ctrl-C is this process's to handle
    )
    assert worker.stdin
    worker.stdin.write(json.dumps(asdict(world)) + "\n")
    return worker


def _order(worker: "subprocess.Popen[str]", unit: int, views: int, advance: Callable[[], None]) -> None:
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
            advance()
