"""Whether the server says that it can answer only while it can, and ends when it never will again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from tests.serve.live import CLIENT, Served, ask, live, until

from vistune.chat_model import ScriptedChatModel
from vistune.errors import WorkerError
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys

ADDRESSES = ("/health", "/health/live", "/health/ready")


class MortalModel(ScriptedChatModel):
    alive = True


@pytest.mark.parametrize("address", ADDRESSES)
def test_health_says_no_from_the_moment_that_a_model_dies_and_needs_no_key(address: str):
    healthy, dying = MortalModel(["fine"]), MortalModel(["fine"])
    settings = Settings(keys=ApiKeys(["sk-canary-0123456789abcdef"]))
    with live({"a": ScriptedChatModel(["fine"]), "b": healthy, "c": dying}, settings) as server:
        assert server.get(address).json()["status"] == "ok"
        dying.alive = False
        response = server.get(address)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_dead")
        assert response.headers["retry-after"] == "10"
        dying.alive = True
        assert server.get(address).status_code == 200


def test_a_server_that_shuts_down_lives_and_is_not_ready():
    with live(ScriptedChatModel(["fine"])) as server:
        server.gate.closing = True
        assert [server.get(address).status_code for address in ADDRESSES] == [503, 200, 503]


def test_probes_may_ask_for_the_headers_alone():
    with live(ScriptedChatModel(["fine"])) as server:
        responses = [CLIENT.head(server.address + address) for address in ADDRESSES]
        assert [(response.status_code, response.text) for response in responses] == [(200, "")] * 3


PROGRAM = """
import time
from vistune.chat_model import ScriptedChatModel
from vistune.serve import server
from vistune.serve.api import Settings

class Model(ScriptedChatModel):
    "Its thread hangs from the first request on, and whoever closes it waits for the thread."
    alive = True

    async def stream(self, conversation, params):
        type(self).alive = False
        async for delta in super().stream(conversation, params):
            yield delta

server.WATCH_SECONDS, server.LAST_SECONDS = 0.1, 0.6
try:
    models = {"scripted": Model(lambda *_: "w " * 99, pause=0.1)}
    server.serve(models, Settings(), host="127.0.0.1", port=0, announce=lambda address: print(address, flush=True))
finally:
    time.sleep(600)
"""


def test_a_server_whose_model_hangs_says_so_and_ends_for_a_supervisor_to_start_it_again():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip().removesuffix("/v1")
            server = Served(address, int(address.rpartition(":")[2]))
            assert server.get("/health").status_code == 200
            asking = threading.Thread(target=_ask_in_vain, args=(server,), daemon=True)
            asking.start()
            until(lambda: server.get("/health").status_code == 503)
            died = time.monotonic()
            assert child.wait(timeout=20) == WorkerError.exit_code
            assert time.monotonic() - died < 10
            asking.join(timeout=10)
            assert not asking.is_alive()
            assert child.stderr is not None
            lines = [json.loads(line) for line in child.stderr]
            assert next(line["message"] for line in lines if line["level"] == "CRITICAL").startswith("A model's thread died or is stuck")
        finally:
            child.kill()


def _ask_in_vain(server: Served) -> None:
    with pytest.raises(httpx2.HTTPError):
        server.post(ask())
