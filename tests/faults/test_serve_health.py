"""An engine that died, hangs or fails: the server never says that it is well, and goes where a supervisor starts it anew."""

from __future__ import annotations

import threading
import time
from typing import Literal

import httpx2
import pytest
from tests.faults.serve_traffic import CHAT, ask
from tests.faults.tiny_server import PATIENCE, Options, TinyServer, tiny_server
from tests.serve.live import CLIENT, until

from vistune.errors import WorkerError

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


def ask_in_the_background(server: TinyServer) -> threading.Thread:
    def work() -> None:
        try:
            CLIENT.post(server.address + CHAT, json=ask(), timeout=PATIENCE)
        except httpx2.HTTPError:
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def health(server: TinyServer) -> int:
    """The status, 0 where nobody answers any more."""
    try:
        return CLIENT.get(server.address + "/health").status_code
    except httpx2.HTTPError:
        return 0


@pytest.mark.parametrize(("how", "longest"), [("die", 120.0), ("stick", 1.0)])
def test_a_dead_or_stuck_engine_is_never_well_and_the_process_ends_for_a_restart(how: Literal["die", "stick"], longest: float):
    with tiny_server(Options(longest_step=longest)) as server:
        assert server.post(ask()).status_code == 200
        assert health(server) == 200
        server.break_engine(how)
        started = time.monotonic()
        asking = ask_in_the_background(server)
        until(lambda: health(server) != 200, seconds=PATIENCE)
        noticed = time.monotonic() - started
        said = {health(server)}
        while server.child.poll() is None and time.monotonic() - started < PATIENCE:
            said.add(health(server))
            time.sleep(0.1)
        ended = time.monotonic() - started
        print(f"\nS13, {how}: /health {sorted(said)} after {noticed:.1f} s, exit {server.child.returncode} after {ended:.1f} s")
        assert said <= {503, 0}  # never well again
        assert server.child.returncode == WorkerError.exit_code
        asking.join(timeout=30)
        assert not asking.is_alive()  # nobody is left waiting


def test_an_engine_that_fails_at_a_step_tells_its_callers_and_goes_on():
    with tiny_server() as server:
        alone = server.post(ask()).json()["choices"][0]["message"]["content"]
        server.break_engine("fail")
        until(lambda: server.post(ask()).status_code == 500, seconds=PATIENCE)
        assert health(server) == 200
        server.break_engine("mend")
        until(lambda: server.post(ask()).status_code == 200, seconds=PATIENCE)
        assert server.post(ask()).json()["choices"][0]["message"]["content"] == alone
        server.settled()
