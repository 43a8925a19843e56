"""Datasets that are rendered to a folder: what each must offer, and how it is written.

An image is drawn in a hidden folder and moved into place; a unit's record follows when all of its images are
there. The file ``world.json`` is written last: where it is, the dataset is complete. One process at a time writes a
folder; others wait for it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
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

from zoo.home import worlds
from zoo.world.pool import Order, render_in_processes

SPLITS = ("train", "val", "test")
DONE = "world.json"
_PARTIAL = ".partial"  # units being rendered, and the records of complete ones


@dataclass(frozen=True)
class RenderedDataset:
    """Base of all datasets that are drawn: units of images, numbered from 0, and how they are written to a folder.

    A unit is complete or absent when rendering was interrupted: an identity with its views, or one scene.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1
    UNITS: ClassVar[str] = "identities"

    # What a dataset defines.

    @property
    def units(self) -> int:
        """Number of units in all splits."""
        raise NotImplementedError

    def name_of(self, unit: int) -> str:
        """Name of a unit."""
        raise NotImplementedError

    def views_of(self, unit: int) -> int:
        """Number of images of a unit."""
        raise NotImplementedError

    def split_of(self, unit: int) -> str:
        """``train``, ``val`` or ``test``."""
        raise NotImplementedError

    def path_of(self, unit: int, view: int) -> str:
        """Path of an image under the folder, with forward slashes."""
        raise NotImplementedError

    def draw(self, unit: int, view: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """An image (H, W, 3) and what is known of it, as JSON has it."""
        raise NotImplementedError

    def write_lists(self, root: Path, records: list[dict[str, Any]]) -> None:
        """Writes what the layout has beside the images.

        Args:
            root: the folder.
            records: what `draw` gave for every image, with its ``path`` and ``split``, sorted by path.
        """
        raise NotImplementedError

    # What follows from it.

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return sum(self.views_of(unit) for unit in range(self.units))

    @property
    def folder(self) -> str:
        """Name of the dataset's folder; it changes with every field and with the renderer."""
        key = json.dumps([self.NAME, self.VERSION, asdict(self)], sort_keys=True)
        return f"{self.NAME}-v{self.VERSION}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"

    def prepare(self, cache: str | Path | None = None, workers: int | None = None) -> Path:
        """Renders what is not there yet and returns the data folder.

        Args:
            cache: folder of all worlds; default `worlds` in the zoo's `home`.
            workers: processes that render; default one for each core. The images do not depend on it.

        Raises:
            ValueError: ``workers`` is below 1.
            OSError: the folder cannot be written to, or the disk is full; what is rendered stays.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}. Leave it out to use all cores.")
        root = (Path(cache) if cache else worlds()) / self.folder
        if not (root / DONE).is_file():
            try:
                _complete(self, root, workers or os.cpu_count() or 1)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"The world cannot be written to {root}: {error.strerror or error}. What is complete is kept. "
                    "Free some space, or set INSTANCE_ZOO_HOME to a folder that can be written to, and run again",
                ) from error
        return root


def _complete(dataset: RenderedDataset, root: Path, workers: int) -> None:
    """Renders the units that are not at ``root`` yet, and the lists."""
    console = Console(stderr=True)
    (root / _PARTIAL).mkdir(parents=True, exist_ok=True)
    with _only_writer(root, console) as lock:
        if (root / DONE).is_file():
            return
        (root / _PARTIAL).mkdir(exist_ok=True)  # another writer may have finished and tidied up
        todo = [unit for unit in range(dataset.units) if not is_complete(dataset, root, unit)]
        kept = dataset.units - len(todo)
        if kept:
            console.print(f"Going on with {root}: {kept} of {dataset.units} {dataset.UNITS} are there already.")
        _render_all(dataset, root, todo, workers, lock, console)
        _finish(dataset, root)


def is_complete(dataset: RenderedDataset, root: Path, unit: int) -> bool:
    """Whether a unit's images and record are on disk."""
    return (root / _PARTIAL / f"{dataset.name_of(unit)}.json").is_file()


def write_unit(dataset: RenderedDataset, root: Path, unit: int, after_image: Callable[[], None] = lambda: None) -> None:
    """Renders all views of one unit; its record is written last, so it stands for images that are all in place."""
    name = dataset.name_of(unit)
    draft = root / _PARTIAL / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows = []
    for view in range(dataset.views_of(unit)):
        image, known = dataset.draw(unit, view)
        path = dataset.path_of(unit, view)
        drawn = draft / Path(path).name
        if drawn.suffix.lower() == ".png":
            Image.fromarray(image).save(drawn, compress_level=1)
        else:
            Image.fromarray(image).save(drawn, quality=95, subsampling=0)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        drawn.replace(root / path)
        rows.append({"path": path} | known)
        after_image()
    record = draft / "record.json"
    record.write_text(json.dumps(rows))
    record.replace(root / _PARTIAL / f"{name}.json")
    draft.rmdir()


def _finish(dataset: RenderedDataset, root: Path) -> None:
    """Gathers the records, has the dataset write its lists, tidies up, and marks the folder as complete."""
    records: list[dict[str, Any]] = []
    count = {split: 0 for split in SPLITS}
    for unit in range(dataset.units):
        split = dataset.split_of(unit)
        rows = json.loads((root / _PARTIAL / f"{dataset.name_of(unit)}.json").read_text())
        records += [row | {"split": split} for row in rows]
        count[split] += len(rows)
    records.sort(key=lambda row: row["path"])
    dataset.write_lists(root, records)
    about = {"world": dataset.NAME, "version": dataset.VERSION, "fields": asdict(dataset), "images": count}
    draft = root / f"{DONE}.draft"
    draft.write_text(json.dumps(about, indent=2) + "\n")
    draft.replace(root / DONE)
    shutil.rmtree(root / _PARTIAL, ignore_errors=True)


@contextmanager
def _only_writer(root: Path, console: Console) -> Iterator[tuple[int, ...]]:
    """Holds the folder's lock, which the system lets go when the process dies, however it dies.

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
    dataset: RenderedDataset, root: Path, todo: list[int], workers: int, lock: tuple[int, ...], console: Console
) -> None:
    """Renders the units in ``todo`` under a progress bar."""
    workers = min(workers, len(todo))
    kind = type(dataset)
    if kind.__module__ == "__main__":  # workers could not import its class
        workers = 1
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TextColumn("{task.fields[rate]}"), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    views = {unit: dataset.views_of(unit) for unit in todo}
    with Progress(*columns, console=console) as progress:
        done = dataset.images - sum(views.values())
        task = progress.add_task(f"Rendering {dataset.NAME}", total=dataset.images, completed=done, rate="")

        def advance() -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f} images/s" if speed else "")

        if workers <= 1:
            for unit in todo:
                write_unit(dataset, root, unit, advance)
        else:
            order = Order(kind.__module__, kind.__qualname__, asdict(dataset), root, views)
            render_in_processes(order, workers, lock, advance)
