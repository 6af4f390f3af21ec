"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoint.tiny import tiny_llava

from vistune.checkpoint.folder import save_model


@pytest.fixture
def saved_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a tiny model, as we save it."""
    save_model(*tiny_llava(), tmp_path / "saved")
    return tmp_path / "saved"
