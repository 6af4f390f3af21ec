"""`/metrics` as Prometheus reads it: what is counted, under which labels, and what can never stand there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serve.live import CLIENT, HeldModel, Live, ask, data_address, live, until

from vistune.chat_model import BrokenReply, ScriptedChatModel
from vistune.engine.counters import EngineCounters
from vistune.engine.engine import Engine
from vistune.errors import RemoteError, UsageError
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys, read_keys
from vistune.serve.metrics import Counted
from vistune.types import Conversation, Reply, SamplingParams

KEY, WATCHING = "sk-canary-0123456789abcdef", "sk-canary-watching-01234567"
COUNTERS = EngineCounters(3, 2, 100, 60, 7, 9, 1 << 20, None, 4, 5)
Labels = frozenset[tuple[str, str]]


def samples(text: str) -> dict[tuple[str, Labels], float]:
    """Every value by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Page:
    """What `/metrics` says at one moment."""

    def __init__(self, server: Live, **options: Any):
        response = server.get("/metrics", **options)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text, self.values = response.text, samples(response.text)

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]


def fine(_conversation: Conversation, _params: SamplingParams) -> str:
    return "fine"


def test_requests_are_counted_by_route_status_and_model_with_their_tokens_and_times():
    first, broken = Reply("fine", "stop", 50, 40, 3), BrokenReply("half", RemoteError("gone"))
    with live({"scripted": ScriptedChatModel([first, "fine", broken])}) as server:
        assert server.post(ask()).status_code == 200
        server.post(ask(stream=True))
        server.post(ask(stream=True))
        server.post(ask(temperature=9))
        server.get("/web/app.js")
        server.get("/web/style.css")
        server.get("/nowhere")
        page = Page(server)
    chat = "/v1/chat/completions"
    assert page("vistune_requests_total", route=chat, status="200", model="scripted") == 3
    assert page("vistune_requests_total", route=chat, status="400", model="") == 1
    assert page("vistune_requests_total", route="/web", status="200", model="") == 2
    assert page("vistune_requests_total", route="unknown", status="404", model="") == 1
    assert page("vistune_errors_total", code="model_unavailable") == 1, "a stream that broke off has the status 200 and is an error"
    assert page("vistune_errors_total", code="invalid_value") == 1
    assert page("vistune_prompt_tokens_total", model="scripted") == 50
    assert page("vistune_cached_tokens_total", model="scripted") == 40
    assert page("vistune_completion_tokens_total", model="scripted") == 3 + 1
    assert page("vistune_request_seconds_count", route=chat) == 4
    assert page("vistune_first_token_seconds_count", model="scripted") == 3
    assert 0 < page("vistune_first_token_seconds_sum", model="scripted") <= page("vistune_request_seconds_sum", route=chat)
    assert page("process_resident_memory_bytes") > 1 << 20
    assert page("process_open_fds") > 3


def test_what_an_engine_counts_is_shown_once_however_many_names_it_has():
    class Counting(ScriptedChatModel):
        def counters(self) -> EngineCounters:
            return COUNTERS

    model = Counting(fine)
    with live({"one": model, "two": model, "elsewhere": ScriptedChatModel(fine)}) as server:
        page = Page(server)
    engine = {name: (labels, value) for (name, labels), value in page.values.items() if name.startswith("vistune_engine_")}
    assert {name.removeprefix("vistune_engine_"): value for name, (_, value) in engine.items()} == {
        "running": 3, "waiting": 2, "prompt_tokens_total": 100, "cached_tokens_total": 60, "completion_tokens_total": 7, "steps_total": 9,
        "images_encoded_total": 5, "kv_bytes": 1 << 20, "kept_prefixes": 4, "prefix_hit_ratio": 0.6,
    }  # fmt: skip
    assert {labels for labels, _ in engine.values()} == {frozenset({("model", "one")})}


def test_the_documentation_names_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    with live(ScriptedChatModel(fine)) as server:
        families = list(text_string_to_metric_families(server.get("/metrics").text))
    names = [family.name.removeprefix("vistune_engine").removeprefix("vistune") for family in families if family.name.startswith("vistune")]
    assert len(names) > 20
    assert not [name for name in names if name not in page]


def test_our_engine_counts_what_the_page_asks_for_and_says_whether_it_lives():
    assert issubclass(Engine, Counted)
    assert isinstance(Engine.alive, property)
    asked = {"running", "waiting", "prompt_tokens", "cached_tokens", "completion_tokens", "steps", "kv_bytes_used", "kv_bytes_limit"}
    assert asked <= {field.name for field in fields(EngineCounters)}


def test_the_queue_can_be_watched_and_what_it_turned_away_is_counted():
    model = HeldModel()
    with live(model, Settings(max_running=2, max_queue=1)) as server, ThreadPoolExecutor(4) as pool:
        accepted = [pool.submit(server.post, ask()) for _ in range(3)]
        until(lambda: (server.gate.num_running, server.gate.num_waiting) == (2, 1))
        assert server.post(ask()).status_code == 429
        page = Page(server)
        assert [page(f"vistune_{name}") for name in ("admitted", "running", "waiting", "queue_limit", "queue_full_total")] == [
            3,
            2,
            1,
            1,
            1,
        ]
        assert page("vistune_body_bytes") == server.gate.num_bytes > 0
        assert page("vistune_requests_total", route="/v1/chat/completions", status="429", model="") == 1
        model.let_go.set()
        assert {done.result().status_code for done in accepted} == {200}
        page = Page(server)
        assert [page(f"vistune_{name}") for name in ("admitted", "running", "waiting", "body_bytes")] == [0, 0, 0, 0]


def test_nothing_that_a_client_wrote_becomes_a_label_so_the_page_does_not_grow():
    with live(ScriptedChatModel(["canary reply"] * 99), Settings(keys=ApiKeys([KEY, f"metrics:{WATCHING}"]))) as server:
        allowed = {"authorization": f"Bearer {KEY}"}

        def ask_wrongly(number: int) -> None:
            server.post(ask() | {"model": f"canary-{number}"}, headers=allowed)
            server.post(ask("canary", user=f"canary-{number}"), headers=allowed | {"x-request-id": f"canary-{number}"})
            server.post(ask([{"type": "image_url", "image_url": f"http://canary-{number}/"}]), headers=allowed)
            server.post(ask([{"type": "image_url", "image_url": data_address()}]), headers={"authorization": f"Bearer canary-{number}"})
            server.get(f"/canary-{number}?canary={number}", headers=allowed)
            server.get(f"/v1/models/canary-{number}", headers=allowed)
            CLIENT.request(f"CANARY{number}", server.address + "/v1/models", headers=allowed)

        watching = {"authorization": f"Bearer {WATCHING}"}
        ask_wrongly(0)
        Page(server, headers=watching)
        before = Page(server, headers=watching)
        for number in range(1, 5):
            ask_wrongly(number)
        after = Page(server, headers=watching)
    assert before.values.keys() == after.values.keys()
    assert "canary" not in after.text.lower()


def test_with_keys_the_page_wants_one_and_there_are_keys_for_it_alone():
    with live(ScriptedChatModel(fine), Settings(keys=read_keys(None, f"{KEY}, metrics:{WATCHING}"))) as server:

        def status(path: str, key: str) -> int:
            return server.get(path, headers={"authorization": f"Bearer {key}"}).status_code

        assert server.get("/metrics").status_code == 401
        assert [status("/metrics", key) for key in (KEY, WATCHING, f"metrics:{WATCHING}", "wrong")] == [200, 200, 401, 401]
        assert [status("/v1/models", key) for key in (KEY, WATCHING, f"metrics:{WATCHING}")] == [200, 401, 401]
        asked = CLIENT.post(f"{server.address}/v1/chat/completions", json=ask(), headers={"authorization": f"Bearer {WATCHING}"})
        assert asked.status_code == 401


@pytest.mark.parametrize("keys", [f"metrics:{WATCHING}", f"{KEY},metrics:short", f"{KEY},metrics:"])
def test_keys_that_open_the_metrics_only_must_be_safe_and_not_the_only_ones(keys: str):
    with pytest.raises(UsageError) as refused:
        read_keys(None, keys)
    assert WATCHING not in str(refused.value)
