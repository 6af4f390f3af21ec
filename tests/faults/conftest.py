"""What tests of runs that go wrong share."""

from __future__ import annotations

import pytest
from tests.train.conftest import tiny_config, tiny_model

from vistune.train import trainer
from vistune.train.start import Start


@pytest.fixture
def tiny_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start from the tiny model, also in forked children."""
    monkeypatch.setattr(trainer, "start_model", lambda choice: Start(*tiny_model(tiny_config()), None))
