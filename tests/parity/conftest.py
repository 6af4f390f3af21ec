"""What the parity tests share: the number of threads. Models and batches are in `parity_models.py`."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request: pytest.FixtureRequest):
    """Runs a test on one and on two threads: kernels choose by the number of threads, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
