"""Reads the examples of coming steps ahead, in threads, so that the model does not wait for pictures.

Decoding lets go of Python's lock, so threads are enough: nothing is copied between processes, and none can be orphaned. What `take(step)`
gives is a function of the step alone. Rows are read by any thread at any time, but handed out in the plan's order, and a row that cannot be
read is an error at the step that needs it, as if that step had read it itself.

    with Loader(objective, plan, first_step, total_steps, workers=2, timeout=300) as loader:
        for step in range(first_step, total_steps):
            forwards = loader.take(step)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import TracebackType

import torch
from torch import Tensor

from vistune.errors import ImageError, WorkerError
from vistune.model.threads import keep_to_one_core
from vistune.train.objectives import Objective, Prepared

Forwards = tuple[tuple[Prepared, ...], ...]
"""One process's part of a step: the examples of each of its forwards. A forward may be empty."""

_STEPS_AHEAD = 2
_BYTES_AHEAD = 512 * 2**20
"""What may lie read and waiting, about: each thread may go over it by the one row that it has begun."""
_GRACE = 10.0
"""Seconds that threads get to finish their row when the loader is closed. Longer ones hang in the file system, and nothing ends them."""


@dataclass(eq=False)
class _Row:
    """A row of a coming step, on its way from the plan to the loop."""

    step: int
    place: int
    started: float | None = None
    prepared: Prepared | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.prepared is not None or self.error is not None


class Loader:
    """Gives this process's examples step by step.

    Args:
        plan_of_step: the places in `objective` of each forward of this process in a step; a pure function of the step.
        first_step: read ahead from here on, from the moment the loader is made,
        last_step: up to here; this step itself is none of the run's any more.
        workers: threads. With 0 every row is read when its step is taken, by the thread that takes it, and for as long as that lasts.
        timeout: seconds after which a row that a thread is still reading ends the run.
    """

    def __init__(
        self,
        objective: Objective,
        plan_of_step: Callable[[int], Sequence[Sequence[int]]],
        first_step: int,
        last_step: int,
        workers: int,
        timeout: float,
    ):
        self._objective, self._plan_of_step, self._timeout = objective, plan_of_step, timeout
        self._next_step, self._last_step = first_step, last_step
        self._planned: deque[list[list[_Row]]] = deque()  # the steps from `_next_step` on
        self._waiting: deque[_Row] = deque()  # their rows that nobody has begun
        self._held = 0  # bytes read and not taken
        self._taking = False
        self._closed = False
        self._changed = threading.Condition()
        # Daemons, because a read that hangs in the file system must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=(torch.get_num_threads(),), name=f"reader-{number}", daemon=True)
            for number in range(workers)
        ]
        if self._threads:
            self._plan_ahead()
            self._start()

    def take(self, step: int) -> Forwards:
        """The examples of a step, forward by forward.

        A step that is not the next one in line is read here and now: one that is computed again is read again as well, so that what a
        fault of memory or disk spoiled has its second chance.

        Raises:
            WorkerError: a row took longer than `timeout`, or more memory than there is; the message names it.
            VistuneError: the row's own, such as an ImageError; a note names the row.
        """
        if not self._threads or step != self._next_step or step >= self._last_step:
            return tuple(tuple(self._read(place) for place in forward) for forward in self._plan_of_step(step))
        with self._changed:
            self._taking = True
            self._changed.notify_all()
            prepared = tuple(tuple(self._wait_for(row) for row in forward) for forward in self._planned[0])
            self._taking = False
            self._planned.popleft()
            self._held -= sum(map(_size, (example for forward in prepared for example in forward)))
            self._next_step += 1
            self._plan_ahead()
            self._changed.notify_all()
        return prepared

    def close(self) -> None:
        """Ends the threads, once each has finished its row."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._planned.clear()
            self._changed.notify_all()
        until = time.monotonic() + _GRACE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # --- the loop's side ---

    def _start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self.close()
            raise WorkerError(f"The threads that read data could not be started ({error}). Set data.workers lower, or to 0.") from error

    def _plan_ahead(self) -> None:
        """Plans in the loop's thread: it is quick, and an error in a plan is the loop's."""
        while len(self._planned) < _STEPS_AHEAD and (step := self._next_step + len(self._planned)) < self._last_step:
            forwards = [[_Row(step, place) for place in forward] for forward in self._plan_of_step(step)]
            self._planned.append(forwards)
            self._waiting.extend(row for forward in forwards for row in forward)

    def _wait_for(self, row: _Row) -> Prepared:
        """Rows are begun in order and awaited in order, so one that is not begun yet is about to be."""
        while not row.done:
            left = self._timeout if row.started is None else row.started + self._timeout - time.monotonic()
            if left <= 0:
                raise WorkerError(
                    f"Row {self._objective.id(row.place)} is still being read after {self._timeout:g} seconds. Is the disk or the network "
                    "drive it lies on gone? Mend that and resume; data.timeout sets how long is waited."
                )
            self._changed.wait(left)
        if row.error is not None:
            raise row.error
        assert row.prepared is not None
        return row.prepared

    # --- the threads' side ---

    def _work(self, threads: int) -> None:
        keep_to_one_core(threads)
        while (row := self._begin()) is not None:
            try:
                prepared, error = self._read(row.place), None
            except BaseException as raised:
                prepared, error = None, raised
            with self._changed:
                row.prepared, row.error = prepared, error
                self._held += _size(prepared) if prepared is not None else 0
                self._changed.notify_all()
            del row, prepared, error  # a thread at rest holds on to nothing

    def _begin(self) -> _Row | None:
        with self._changed:
            self._changed.wait_for(self._may_begin)
            if self._closed:
                return None
            row = self._waiting.popleft()
            row.started = time.monotonic()
            return row

    def _may_begin(self) -> bool:
        """What the loop waits for is read however much lies there already: one step alone may be over the limit."""
        if self._closed or not self._waiting:
            return self._closed
        return self._held < _BYTES_AHEAD or (self._taking and self._waiting[0].step == self._next_step)

    def _read(self, place: int) -> Prepared:
        try:
            return self._objective.prepare(place)
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, ImageError) and error.reason == "memory"):
                raise WorkerError(
                    f"Reading row {self._objective.id(place)} took more memory than there is. Is its picture very large, or does another "
                    "program take the memory? Free some, or mend the row, and resume."
                ) from error
            error.add_note(f"Row {self._objective.id(place)} was being read.")
            raise


def _size(example: Prepared) -> int:
    """The bytes of an example's tensors."""
    values = [getattr(record, field.name) for record in (example, example.inputs) for field in fields(record)]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
