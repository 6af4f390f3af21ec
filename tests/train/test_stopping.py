"""Signals wait for the end of a step, and handlers are put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vistune.errors import Preempted
from vistune.train.stopping import StopSignals

ALL = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = [signal.getsignal(number) for number in ALL]
    yield
    assert [signal.getsignal(number) for number in ALL] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_order_to_stop_is_noted_however_often_it_comes(number: signal.Signals):
    with StopSignals() as asked:
        assert not asked
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert asked
        with pytest.raises(Preempted, match=f"{number.name}. Saved"):
            asked.obey("Saved.")


def test_the_first_ctrl_c_is_noted_and_the_second_does_not_wait(capfd: pytest.CaptureFixture[str]):
    with StopSignals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked
        assert "finishing this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            asked.obey("Saved.")


def test_ctrl_c_after_an_order_to_stop_does_not_wait_either():
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_somebody_else_handles_is_left_to_them():
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_no_handler_is_touched():
    before, seen = [signal.getsignal(number) for number in ALL], []

    def run() -> None:
        with StopSignals() as asked:
            seen.append([signal.getsignal(number) for number in ALL] == before and not asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


def test_handlers_are_put_back_when_the_run_fails():
    def fail() -> None:
        with StopSignals():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
