"""Further processes, for the tests of what several of them write."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import zoo


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A copy of this process that has begun to run `target`.

    It computes with one thread: the threads of the original do not live on in a copy, which would wait for them
    forever. It ends with the original at the latest.
    """
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _alone(target: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    target(*arguments)


def launch(recipe: str, *flags: str, folder: Path, devices: int) -> str:
    """Run a recipe in a folder, on this many processes of the CPU, as a user starts it; returns what it printed."""
    parallel = ["--trainer.accelerator=cpu", f"--trainer.devices={devices}"]
    parallel += ["--trainer.strategy=ddp"] * (devices > 1)
    done = subprocess.run(
        [sys.executable, "-m", f"recipes.{recipe}", *flags, *parallel],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1]), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
