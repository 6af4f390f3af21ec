"""The exact shape of answers, errors and headers, held against the records of OpenAI's own client, strictly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.serve.live import HeldModel, Live, ask, live, until

from vistune.chat_model import ScriptedChatModel
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.serve.schemas import RequestLimits
from vistune.types import Reply, TokenLogprob

KEY = "sk-test-0123456789abcdef"
ALLOWED = {"authorization": f"Bearer {KEY}"}
OF_ALL = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def reply(*_: Any) -> Reply:
    return Reply("Hé", "stop", 5, 2, 1, (TokenLogprob("Hé", -0.5, (("Hé", -0.5), ("Ho", -2.0))),))


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live({"scripted": ScriptedChatModel([reply()] * 20)}, Settings(keys=ApiKeys([KEY]), limits=RequestLimits(body_bytes=9999))) as up:
        yield up


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0, timeout=20) as made:
        yield made


def test_the_list_of_models_is_openais(client: openai.OpenAI):
    answer = client.models.with_raw_response.list()
    listed = json.loads(answer.content)
    assert listed.keys() == {"object", "data"}
    assert listed["object"] == "list"
    (model,) = [Model.model_validate(each, strict=True) for each in listed["data"]]
    assert (model.id, model.object, model.owned_by) == ("scripted", "model", "vistune")
    assert abs(time.time() - model.created) < 600
    assert json.loads(client.models.with_raw_response.retrieve("scripted").content) == listed["data"][0]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.items() >= OF_ALL.items()


def test_a_completion_and_its_headers_are_openais(client: openai.OpenAI):
    answer = client.chat.completions.with_raw_response.create(**ask(logprobs=True, top_logprobs=2))
    written = json.loads(answer.content)
    completion = ChatCompletion.model_validate(written, strict=True)
    assert written.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert written["choices"][0].keys() == {"index", "message", "logprobs", "finish_reason"}
    assert written["choices"][0]["message"] == {"role": "assistant", "content": "Hé", "refusal": None}
    assert written["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}
    }  # fmt: skip
    assert completion.choices[0].logprobs is not None
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.items() >= OF_ALL.items()
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.parse()._request_id == answer.headers["x-request-id"]


def test_every_event_of_a_stream_is_openais(server: Live):
    answer = server.post(ask(stream=True, stream_options={"include_usage": True}), headers=ALLOWED)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers.items() >= OF_ALL.items()
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [ChatCompletionChunk.model_validate(json.loads(event.removeprefix("data: ")), strict=True) for event in events]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []


def test_an_id_that_a_client_chose_is_not_taken_over(client: openai.OpenAI, server: Live):
    for answer in (
        server.post(ask(), headers=ALLOWED | {"x-request-id": "chosen"}),
        server.get("/nowhere", headers={"x-request-id": "chosen"}),
    ):
        assert answer.headers["x-request-id"] != "chosen"
    first, second = (client.models.with_raw_response.list().headers["x-request-id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("wrong", "kind", "status", "code"),
    [
        ({"max_tokens": 0}, openai.BadRequestError, 400, "invalid_value"),
        ({"model": "none"}, openai.NotFoundError, 404, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, openai.APIStatusError, 413, "request_too_large"),
        ({"extra_headers": {"Authorization": "Bearer sk-someone-else-0000"}}, openai.AuthenticationError, 401, "invalid_api_key"),
        ({"extra_headers": {"Content-Type": "text/plain"}}, openai.APIStatusError, 415, "unsupported_media_type"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_refusal_is_an_error_of_openais_client(
    client: openai.OpenAI, wrong: dict[str, Any], kind: type[openai.APIStatusError], status: int, code: str, stream: bool
):
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**(ask() | wrong), stream=stream)
    error = refused.value
    assert (error.status_code, error.code) == (status, code)
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    assert error.request_id is not None
    assert error.response.headers["content-type"] == "application/json"
    assert error.response.headers.items() >= OF_ALL.items()


def test_the_client_waits_as_long_as_it_is_told_and_then_gets_in():
    model = HeldModel()
    with (
        live(model, Settings(max_running=1, max_queue=0)) as server,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        first = threading.Thread(target=client.chat.completions.create, kwargs=ask())
        first.start()
        until(lambda: server.gate.is_full)
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**ask())
        assert (refused.value.code, refused.value.type) == ("queue_full", "rate_limit_error")

        def let_go_once_refused_again() -> None:
            until(lambda: "vistune_queue_full_total 2.0" in server.get("/metrics").text)
            model.let_go.set()

        began, wait = time.monotonic(), int(refused.value.response.headers["retry-after"])
        threading.Thread(target=let_go_once_refused_again).start()
        patient = client.with_options(max_retries=5)
        assert patient.chat.completions.create(**ask()).choices[0].message.content == "fine"
        assert time.monotonic() - began >= wait
        first.join(timeout=10)
