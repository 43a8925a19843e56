"""Copies of this process, for the tests of what several processes write."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch


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
