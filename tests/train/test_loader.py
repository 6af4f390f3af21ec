"""Reading ahead changes nothing but the time: the rows of a step are the plan's, in order, and what goes wrong names its row."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from vistune.errors import ImageError, WorkerError
from vistune.model.inputs import ModelInputs
from vistune.train import loader as loader_module
from vistune.train.loader import Forwards, Loader
from vistune.train.objectives import Objective, Prepared

STEPS = 7


def plan(step: int) -> list[list[int]]:
    """Five rows in three forwards, of which one is empty."""
    first = 5 * step
    return [[first + 3, first], [], [first + 1, first + 4, first + 2]]


class Rows(Objective):
    """Rows whose only token is their place. `before` runs as a row is read."""

    def __init__(self, before: Callable[[int], object] = lambda place: None):
        self.before, self.read = before, []

    def __len__(self) -> int:
        return 5 * STEPS

    def id(self, place: int) -> str:
        return f"row{place}"

    def prepare(self, place: int) -> Prepared:
        self.read.append(place)
        self.before(place)
        return Prepared(self.id(place), ModelInputs(torch.tensor([place]), torch.tensor([False])), 1.0)

    size = conversation = loss = _process = None  # type: ignore[assignment]


Rows.__abstractmethods__ = frozenset()


def open_loader(rows: Rows, workers: int, *, first: int = 0, timeout: float = 20.0) -> Loader:
    return Loader(rows, plan, first, STEPS, workers, timeout)


def places(forwards: Forwards) -> list[list[int]]:
    return [[int(example.inputs.input_ids[0]) for example in forward] for forward in forwards]


@contextmanager
def threads_end() -> Iterator[None]:
    """Nothing that was started inside still runs at the end."""
    before = set(threading.enumerate())
    yield
    assert not [each.name for each in threading.enumerate() if each not in before]


def wait_until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
@pytest.mark.parametrize("first", [0, 3])
def test_the_rows_of_a_step_are_the_plans_however_many_threads_read_them(workers: int, first: int):
    draw = random.Random(workers)
    with threads_end(), open_loader(Rows(lambda place: time.sleep(draw.random() / 500)), workers, first=first) as loader:
        for step in range(first, STEPS):
            assert places(loader.take(step)) == plan(step)


def test_a_step_that_is_taken_again_is_read_again_and_does_not_disturb_the_next():
    rows = Rows()
    with threads_end(), open_loader(rows, 2) as loader:
        first, again, following = loader.take(0), loader.take(0), loader.take(1)
        assert places(first) == places(again) == plan(0)
        assert places(following) == plan(1)
        assert sorted(place for place in rows.read if place < 5) == sorted(2 * [0, 1, 2, 3, 4])
        assert first[0][0] is not again[0][0]


def test_it_reads_two_steps_ahead_and_no_further():
    rows = Rows()
    with threads_end(), open_loader(rows, 2) as loader:
        wait_until(lambda: len(rows.read) == 10)
        time.sleep(0.05)
        assert sorted(rows.read) == list(range(10))
        loader.take(0)
        wait_until(lambda: len(rows.read) == 15)


def test_it_reads_no_more_ahead_than_may_lie_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader_module, "_BYTES_AHEAD", 18)  # two rows of nine bytes
    rows = Rows()
    with threads_end(), open_loader(rows, 1) as loader:
        wait_until(lambda: len(rows.read) == 2)
        time.sleep(0.05)
        assert rows.read == [3, 0]
        for step in range(STEPS):  # a step of five rows is over the limit, and is read all the same
            assert places(loader.take(step)) == plan(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_cannot_be_read_is_an_error_of_its_own_step_with_its_name(workers: int):
    def refuse(place: int) -> None:
        if place in (12, 14):
            raise ImageError("broken", "cut off")

    with threads_end(), open_loader(Rows(refuse), workers) as loader:
        for step in range(2):
            assert places(loader.take(step)) == plan(step)
        with pytest.raises(ImageError, match="cut off") as raised:
            loader.take(2)
    assert raised.value.__notes__ == ["Row row14 was being read."]  # the first in the plan's order, whichever was met first
    assert raised.value.reason == "broken"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [MemoryError(), ImageError("memory", "not enough")])
def test_a_row_that_takes_more_memory_than_there_is_is_named(workers: int, error: Exception):
    def too_much(place: int) -> None:
        if place == 6:
            raise error

    with threads_end(), open_loader(Rows(too_much), workers) as loader:
        loader.take(0)
        with pytest.raises(WorkerError, match=r"row6 .* memory"):
            loader.take(1)


def test_a_row_that_is_read_for_ever_ends_the_run_by_name_and_on_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader_module, "_GRACE", 0.1)
    released = threading.Event()

    def hang(place: int) -> None:
        if place == 7:
            released.wait()

    with threads_end():
        started = time.monotonic()
        with open_loader(Rows(hang), 2, timeout=0.3) as loader:
            assert places(loader.take(0)) == plan(0)
            with pytest.raises(WorkerError, match=r"row7 is still being read after 0\.3 seconds"):
                loader.take(1)
        assert time.monotonic() - started < 10
        released.set()
        wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("reader-")])


def test_slow_rows_within_the_limit_are_waited_for_however_many_they_are():
    with threads_end(), open_loader(Rows(lambda place: time.sleep(0.05)), 1, timeout=0.5) as loader:
        for step in range(3):
            assert places(loader.take(step)) == plan(step)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_runs_on_when_the_loop_is_left_early(error: type[BaseException]):
    def leave() -> None:
        with open_loader(Rows(lambda place: time.sleep(0.01)), 4) as loader:
            loader.take(0)
            raise error

    with threads_end(), pytest.raises(error):
        leave()


def test_an_interrupt_while_a_row_is_awaited_is_not_held_up(monkeypatch: pytest.MonkeyPatch):
    with threads_end(), open_loader(Rows(lambda place: time.sleep(0.3)), 2) as loader:
        monkeypatch.setattr(loader._changed, "wait", lambda seconds=None: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loader.take(0)
        monkeypatch.undo()


def test_a_plan_that_fails_fails_in_the_loop():
    def failing(step: int) -> list[list[int]]:
        return plan(step) if step < 3 else 1 / 0  # type: ignore[return-value]

    with threads_end(), Loader(Rows(), failing, 0, STEPS, 2, 20.0) as loader:
        loader.take(0)
        with pytest.raises(ZeroDivisionError):
            loader.take(1)
