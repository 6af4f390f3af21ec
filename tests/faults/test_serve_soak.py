"""Everything at once for half an hour: memory, descriptors and threads stay where they were. `VISTUNE_SOAK_MINUTES` makes it longer."""

from __future__ import annotations

import os

import pytest
from tests.faults.soak import OPTIONS, soak
from tests.faults.tiny_server import TinyServer, tiny_server

MINUTES = float(os.environ.get("VISTUNE_SOAK_MINUTES", "30"))


@pytest.mark.nightly
@pytest.mark.timeout(60 * MINUTES + 1800)
def test_memory_descriptors_and_threads_stay_flat_under_mixed_traffic():
    with tiny_server(OPTIONS) as server:
        found = soak(MINUTES, server)
    print(f"\nS19: {found}")
    first, last = found.samples[0], found.samples[-1]
    assert set(found.statuses) >= {200, 400}
    assert found.after.memory - found.before.memory < 16  # MiB over the whole: a slope says little of half an hour
    assert found.after.objects < 1.05 * found.before.objects
    assert last.descriptors <= first.descriptors + 8
    assert last.threads <= first.threads + 4


def test_a_second_of_mixed_traffic_leave_a_server_as_it_was(server: TinyServer):
    assert 200 in soak(1 / 60, server).statuses
