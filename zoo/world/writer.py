"""Writes a world to disk: several processes, a progress bar, and no harm from being interrupted.

An image is drawn in a hidden folder and moved into place; an identity's record follows when all of its images are
there. The file ``world.json`` is written last: where it is, the world is complete. One process at a time writes a
world; others wait for it.
"""

import csv
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

from zoo.world.base import SPLITS, World

DONE = "world.json"
_PARTIAL = ".partial"  # identities being rendered, and the attributes of complete ones
_COLUMNS = ("path", "identity", "family")
_BOX = ("x", "y", "w", "h")


def write(world: World, root: Path, workers: int | None) -> Path:
    """Completes the world at ``root`` and returns ``root``; see `World.prepare`."""
    if (root / DONE).is_file():
        return root
    console = Console(stderr=True)
    try:
        (root / _PARTIAL).mkdir(parents=True, exist_ok=True)
        with _only_writer(root, console) as lock:
            if (root / DONE).is_file():
                return root
            (root / _PARTIAL).mkdir(exist_ok=True)  # another writer may have finished and tidied up
            todo = [k for k in range(world.identities) if not is_complete(world, root, k)]
            kept = world.identities - len(todo)
            if kept:
                console.print(f"Going on with {root}: {kept} of {world.identities} identities are there already.")
            _render_all(world, root, todo, workers or os.cpu_count() or 1, lock, console)
            _finish(world, root)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The world cannot be written to {root}: {error.strerror or error}. What is complete is kept. "
            "Free some space, or set INSTANCE_ZOO_HOME to a folder that can be written to, and run again",
        ) from error
    return root


def is_complete(world: World, root: Path, identity: int) -> bool:
    """Whether an identity's images and attributes are on disk."""
    return (root / _PARTIAL / f"{world.name_of(identity)}.json").is_file()


def write_identity(world: World, root: Path, identity: int, after_image: Callable[[], None] = lambda: None) -> None:
    """Renders all views of one identity; its record, written last, says that all of them are in place."""
    name = world.name_of(identity)
    draft = root / _PARTIAL / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows = []
    for view in range(world.views_of(identity)):
        sample = world.render(identity, view)
        path = world.path_of(identity, view)
        drawn = draft / Path(path).name
        how: dict[str, Any] = {"quality": 95, "subsampling": 0}
        if drawn.suffix.lower() == ".png":
            how = {"compress_level": 1}
        Image.fromarray(sample.image).save(drawn, **how)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        drawn.replace(root / path)
        row = {"path": path, "identity": name, "family": f"{identity // world.members:03d}"} | sample.attributes
        rows.append(row | {side: str(length) for side, length in zip(_BOX, sample.box, strict=True)})
        after_image()
    record = draft / "record.json"
    record.write_text(json.dumps(rows))
    record.replace(root / _PARTIAL / f"{name}.json")
    draft.rmdir()


def _finish(world: World, root: Path) -> None:
    """Gathers the attributes, has the wing write its lists, tidies up, and marks the world as complete."""
    rows: list[dict[str, str]] = []
    count = {split: 0 for split in SPLITS}
    splits: dict[str, str] = {}
    for identity in range(world.identities):
        rows += json.loads((root / _PARTIAL / f"{world.name_of(identity)}.json").read_text())
        splits[world.name_of(identity)] = world.split_of(identity)
        count[world.split_of(identity)] += world.views_of(identity)
    rows.sort(key=lambda row: row["path"])
    names = [*_COLUMNS, *(name for name in rows[0] if name not in (*_COLUMNS, *_BOX)), *_BOX]
    with (root / "attributes.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    world.finish(root, [row | {"split": splits[row["identity"]]} for row in rows])
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
    world: World, root: Path, todo: list[int], workers: int, lock: tuple[int, ...], console: Console
) -> None:
    """Renders the identities in ``todo`` under a progress bar."""
    workers = min(workers, len(todo))
    if type(world).__module__ == "__main__":  # workers could not import its class
        workers = 1
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TextColumn("{task.fields[rate]}"), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        done = world.images - sum(world.views_of(identity) for identity in todo)
        task = progress.add_task(f"Rendering {world.NAME}", total=world.images, completed=done, rate="")

        def advance() -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f} images/s" if speed else "")

        if workers <= 1:
            for identity in todo:
                write_identity(world, root, identity, advance)
        else:
            _share_out(world, root, todo, workers, lock, advance)


def _share_out(
    world: World,
    root: Path,
    todo: list[int],
    workers: int,
    lock: tuple[int, ...],
    advance: Callable[[], None],
) -> None:
    """Lets ``workers`` processes render the identities in ``todo``.

    They are plain subprocesses (`zoo.world.worker`), each led by a thread of this process: unlike those of
    multiprocessing they never import the caller's main module, and they end when this process is killed.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for identity in todo:
        pending.put(identity)
    failures: list[Exception] = []

    def lead() -> None:
        try:
            with _worker(world, root, lock) as worker:
                while not failures:
                    identity = pending.get_nowait()
                    _order(worker, identity, world.views_of(identity), advance)
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


def _worker(world: World, root: Path, lock: tuple[int, ...]) -> "subprocess.Popen[str]":
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


def _order(worker: "subprocess.Popen[str]", identity: int, views: int, advance: Callable[[], None]) -> None:
    """Has a worker render one identity.

    Raises:
        OSError: the worker could not write it.
        RuntimeError: the worker ended for another reason.
    """
    assert worker.stdin and worker.stdout
    worker.stdin.write(f"{identity}\n")
    worker.stdin.flush()
    for expected in ["image"] * views + ["identity"]:
        answer = worker.stdout.readline().strip()
        if not answer:
            raise RuntimeError(
                f"A process rendering identity {identity} ended with code {worker.wait()}; its message is "
                "above, if it left one. What is complete is kept. Run again; workers=1 shows the error here."
            )
        if answer != expected:
            number, _, reason = answer.partition(" ")
            raise OSError(int(number), reason)
        if expected == "image":
            advance()
