"""What tests of runs that go wrong share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.train.conftest import tiny_config, tiny_model

from vistune.train import trainer
from vistune.train.start import Start

if TYPE_CHECKING:
    from tests.faults.tiny_server import TinyServer


@pytest.fixture(scope="session")
def imported_once() -> None:
    """What a run imports at its end, seconds of work: a fork of a process that has it need not do it again."""
    for name in ("matplotlib.pyplot", "peft"):
        importlib.import_module(name)


@pytest.fixture
def tiny_start(imported_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start from the tiny model, also in forked children."""
    monkeypatch.setattr(trainer, "start_model", lambda choice: Start(*tiny_model(tiny_config()), None))


@pytest.fixture(scope="session")
def server() -> Iterator[TinyServer]:
    """One for all tests that leave it as they found it: starting it takes longer than most of them."""
    from tests.faults.tiny_server import Options, tiny_server  # and with it all that serves, for which most tests here need not wait

    with tiny_server(Options(max_running=8, max_queue=16, step_seconds=0.001)) as running:
        yield running
