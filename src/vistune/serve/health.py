"""Whether the models can still answer. A model that knows says so by `alive` (the engine does: its thread runs, and its step is not stuck).

A dead one does not come back by itself: the server says 503 for a moment, so that whoever spreads the requests sees it, and then ends for
a supervisor to start it anew (`server.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Mortal(Protocol):
    """A model that can die."""

    @property
    def alive(self) -> bool: ...


def all_alive(models: Iterable[object]) -> bool:
    """Whether none of the models has died; one that does not say, such as another server's, counts as alive."""
    return all(model.alive for model in models if isinstance(model, Mortal))
