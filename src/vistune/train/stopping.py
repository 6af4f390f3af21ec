"""Signals that ask a run to stop are noted, and obeyed between two steps, where a checkpoint can be saved.

    SIGTERM, SIGUSR1   what schedulers send before they take the machine away: step, checkpoint, `Preempted`
    SIGINT (Ctrl-C)    the same, and then KeyboardInterrupt; the second Ctrl-C does not wait

A checkpoint is written whole or not at all, so a signal too many harms nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from vistune.errors import Preempted

_ORDERS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes, inside a `with` block, that the run was asked to stop.

    Only the main thread of a process is told of signals; in any other thread this does nothing. Handlers of others are put back at the end,
    and a Ctrl-C that somebody else handles already is left to them.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _ORDERS:
                self._before[number] = signal.signal(number, self._note)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note_or_interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __bool__(self) -> bool:
        return self.received is not None

    def obey(self, where: str) -> NoReturn:
        """Ends the run. `where` says how far it got and what is saved."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(where)
        name = "another process of it" if self.received is None else self.received.name
        raise Preempted(f"The run was asked to stop by {name}. {where}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def _note_or_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self._note(number, frame)
        # os.write, because the loop may be in the middle of printing.
        os.write(2, b"\nCtrl-C: finishing this step and saving; once more leaves at once.\n")
