"""Waiting for data is told apart from training, on a clock of the test's own."""

import logging
from types import SimpleNamespace

import pytest

from zoo.training.timing import DataTime


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("zoo.training.timing.time", clock)
    return clock


def train(callback: DataTime, clock: Clock, waits: list[float], step: float) -> dict[str, float]:
    """An epoch of steps of `step` seconds after these waits, a validation of 7 s after the first of them."""
    logged: dict[str, float] = {}
    trainer, module = SimpleNamespace(is_global_zero=True), SimpleNamespace(log=logged.__setitem__)
    callback.on_train_epoch_start(trainer, module)
    for number, wait in enumerate(waits):
        clock.now += wait
        callback.on_train_batch_start(trainer, module, None, number)
        clock.now += step
        callback.on_train_batch_end(trainer, module, None, None, number)
        if number == 0:
            clock.now += 7
            callback.on_validation_end(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    return logged


def test_each_epoch_logs_its_own_share_without_validation(clock):
    callback = DataTime()
    assert train(callback, clock, [3.0, 0.0], step=0.5) == {"time/waiting_for_data": pytest.approx(3 / 4)}
    clock.now += 50  # checkpoints and the like between epochs
    assert train(callback, clock, [0.25, 0.25], step=1.0) == {"time/waiting_for_data": pytest.approx(0.5 / 2.5)}
    assert (callback.steps, callback.waiting, callback.stepping) == (4, 3.5, 3.0)


@pytest.mark.parametrize(("wait", "advice"), [(0.5, True), (0.01, False)])
def test_the_end_sums_up_and_advises_where_it_helps(clock, caplog, wait, advice):
    caplog.set_level(logging.INFO, "zoo")
    callback = DataTime()
    train(callback, clock, [wait] * 10, step=0.5)
    callback.on_fit_end(SimpleNamespace(is_global_zero=True), None)
    assert f"{0.5 + wait:.3f} s a step" in caplog.text and f"{100 * wait / (0.5 + wait):.0f}% of it" in caplog.text
    assert ("data.workers" in caplog.text) == advice
