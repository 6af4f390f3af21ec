"""Requests that nobody would send on purpose: each is answered with 200 or with one of the server's own 4xx, and nothing stays behind."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.faults.serve_traffic import (
    CHAT,
    JSON,
    ask,
    exchange,
    fixed_texts,
    good_bodies,
    json_seeds,
    mutated,
    mutated_head,
    oversized,
    request,
    shown,
)
from tests.faults.tiny_server import CANARY, TinyServer, faults_of_an_answer
from tests.serve.live import CLIENT, data_address, png

from vistune.serve.schemas import Body

ANSWERS = {200, 400, 404, 413, 415}
TEXTS = fixed_texts()


def send(server: TinyServer, body: bytes) -> int:
    """Sends a body, and finds fault with the answer."""
    response = server.post(content=body, headers=JSON)
    assert response.status_code in ANSWERS, body[:500]
    if response.status_code != 200:
        assert_refused(response.text, body)
    return response.status_code


def assert_refused(text: str, sent: Any = "") -> None:
    assert faults_of_an_answer(text) == [], sent[:500]
    assert TEXTS.fullmatch(json.loads(text)["error"]["message"]), text


# --- S1: requests out of the schema -------------------------------------------------------------------------------------------------------

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12), st.sampled_from(["\ud800", CANARY, "NaN"])
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from(["type", "text", "url", "role", "content", "image_url"])
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3))


_ANYTHING = _LEAVES | _nested(_LEAVES | _nested(_LEAVES))
_TEXTS = st.text(max_size=20) | st.sampled_from(["<image>", "<|im_end|>", "<|im_start|>assistant", " ", "\n", "a\0", "x" * 800])
_PICTURES = st.sampled_from(
    [data_address(), data_address(png("blue", (40, 7))), data_address(png()[:40]), "http://127.0.0.1:9/canary.png", "data:,", "/etc/passwd"]
)
_PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, _TEXTS),
    st.builds(lambda address: {"type": "image_url", "image_url": {"url": address}}, _PICTURES),
    _ANYTHING,
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", 5]), "content": _TEXTS | st.lists(_PARTS, max_size=4)}
    ),
    max_size=4,
)


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values near what a field of the schema allows: in its bounds, just outside, and of another type."""
    kinds = {each.get("type") for each in (schema, *schema.get("anyOf", ()))}
    near: list[st.SearchStrategy[Any]] = [st.none(), _ANYTHING]
    for kind in kinds & {"integer", "number"}:
        bound = st.integers(-2, 12) | st.sampled_from([0, 1, 600, 601, 2**31, 2**63, -(2**63) - 1])
        near += [bound, bound, st.floats(-0.5, 2.5) if kind == "number" else bound]
    if "boolean" in kinds:
        near += [st.booleans()] * 2
    if "string" in kinds:
        near += [_TEXTS, st.just("tiny")]
    if "array" in kinds:
        near.append(st.lists(_TEXTS, max_size=18))
    return st.one_of(near)


_FIELDS = {"messages": _MESSAGES | _ANYTHING} | {
    name: _values(schema) for name, schema in Body.model_json_schema()["properties"].items() if name != "messages"
}
_OTHERS = dict.fromkeys(("tools", "tool_choice", "response_format", "logit_bias", "chat_template", "user", "metadata"), _ANYTHING)
_CHANGES = st.one_of([st.tuples(st.just(name), values) for name, values in (_FIELDS | _OTHERS).items()])
# Most requests are nearly right: one that is wrong in everything is refused at its first field.
requests = st.one_of(
    st.fixed_dictionaries({}, optional=_FIELDS | _OTHERS),
    st.builds(lambda changes: ask(shown("Hi", png())) | dict(changes), st.lists(_CHANGES, max_size=2)),
    st.builds(lambda messages: ask() | {"messages": messages}, _MESSAGES),
)


def short(fields: dict[str, Any]) -> dict[str, Any]:
    """At most a few tokens and choices, where a valid number says more: it is refusals that are looked for here."""
    for name, most in (("max_tokens", 6), ("max_completion_tokens", 6), ("n", 2)):
        if type(fields.get(name)) is int and most < fields[name] <= 600:
            fields[name] = most
    return fields


@pytest.mark.parametrize("count", [100, pytest.param(5_000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])])
def test_any_request_near_the_schema_is_answered_or_refused_in_fixed_words(server: TinyServer, count: int):
    found: dict[int, int] = {}

    @settings(
        max_examples=count,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        database=None,
        derandomize=count < 1000,
    )
    @given(requests)
    @example(ask(temperature=1e-300))
    def ask_anything(fields: dict[str, Any]) -> None:
        status = send(server, json.dumps(short(fields)).encode())
        found[status] = found.get(status, 0) + 1

    ask_anything()
    print(f"\nS1, schema: {found}")
    assert set(found) >= {200, 400}  # a test that is only refused, or never, looks at one half
    server.settled()
    assert server.alive()


@pytest.mark.parametrize("count", [400, pytest.param(5_000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])])
def test_bytes_that_were_a_request_are_answered_or_refused_and_memory_comes_back(server: TinyServer, count: int):
    generator, bodies = random.Random(count), good_bodies()
    for body in bodies * 3:  # warm: what a first request of each kind allocates is no leak
        assert send(server, body) == 200
    before, found = server.memory(), dict[int, int]()
    for number in range(count):
        body = mutated(generator, bodies)
        if number % 5:
            status = send(server, body)
        else:
            status = exchange(server.port, mutated_head(generator, body)).status
            assert status in ANSWERS | {0, 401, 403, 405, 408, 421, 431}, body
        found[status] = found.get(status, 0) + 1
    server.settled()
    print(f"\nS1, bytes: {found}; memory {before:.0f} → {server.memory():.0f} MiB")
    assert set(found) >= {200, 400}
    assert server.alive()
    assert server.memory() < before * 1.1 + 10  # 10 MiB for the allocator


# --- S2, S3: the known ones ---------------------------------------------------------------------------------------------------------------


def test_every_body_that_is_no_request_is_refused_over_http(server: TinyServer):
    for name, body in json_seeds().items():
        response = server.post(content=body, headers=JSON)
        assert response.status_code == 400, f"{name}: {response.text[:200]}"
        assert_refused(response.text, name)
    assert server.state().idle


@pytest.mark.nightly
def test_twenty_megabytes_of_text_are_refused_without_being_kept(server: TinyServer):
    before = server.memory()
    for _ in range(5):
        response = server.post(content=json.dumps(ask("x" * (20 << 20))).encode(), headers=JSON)
        assert response.status_code == 413
        assert_refused(response.text)
    assert server.memory() < before * 1.1 + 10


def test_what_asks_for_too_much_is_refused_before_any_of_it_is_made(server: TinyServer):
    memory = server.memory()
    for name, body in oversized().items():
        response = server.post(body)
        assert response.status_code == 400, f"{name}: {response.text[:200]}"
        assert_refused(response.text, name)
    assert server.memory() < memory + 64
    assert server.state().idle


@pytest.mark.nightly
def test_what_asks_for_too_much_costs_little_time(server: TinyServer):
    """Seconds of the server's own CPU, twenty times each: how busy the machine is does not count."""
    costs = {}
    for name, body in oversized().items():
        content = json.dumps(body).encode()
        before = server.cpu_seconds()
        for _ in range(20):
            server.post(content=content, headers=JSON)
        costs[name] = (server.cpu_seconds() - before) / 20
    print("\nS3, CPU milliseconds a request:", {name: round(1000 * cost, 1) for name, cost in costs.items()})
    assert max(costs.values()) < 0.2


# --- addresses ----------------------------------------------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is(server: TinyServer):
    """Paths out of letters: what a router reads as a pattern, a number or an end."""
    generator = random.Random(1)
    for _ in range(30):
        path = "/" + "".join(generator.choices(string.ascii_letters + "%./;:@&=+$,{}*?#", k=12))
        said = exchange(server.port, request(b"", method="GET", path=path))
        assert said.status in {200, 400, 404}, path
        if said.status == 404:
            assert_refused(said.body, path)
    assert CLIENT.request("PATCH", server.address + CHAT).status_code == 405
