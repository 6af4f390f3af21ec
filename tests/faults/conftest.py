"""What tests of runs that go wrong share."""

from __future__ import annotations

import importlib

import pytest
from tests.train.conftest import tiny_config, tiny_model

from vistune.train import trainer
from vistune.train.start import Start


@pytest.fixture(scope="session")
def imported_once() -> None:
    """What a run imports at its end, seconds of work: a fork of a process that has it need not do it again."""
    for name in ("matplotlib.pyplot", "peft"):
        importlib.import_module(name)


@pytest.fixture
def tiny_start(imported_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start from the tiny model, also in forked children."""
    monkeypatch.setattr(trainer, "start_model", lambda choice: Start(*tiny_model(tiny_config()), None))
