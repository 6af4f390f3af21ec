"""What clients and attackers send wrongly: 4xx in OpenAI's shape with a fixed text, never 5xx, and the model is not asked."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.live import Live, ask, data_address, live, png

from vistune.chat_model import ScriptedChatModel
from vistune.errors import (
    ContextLengthError,
    DataError,
    ImageCountError,
    ImageError,
    NonFiniteError,
    OutOfMemory,
    RemoteError,
    UsageError,
)
from vistune.serve.api import Settings
from vistune.serve.failures import ApiError
from vistune.serve.schemas import RequestLimits, read_request
from vistune.types import ImagePart, TextPart

LIMITS = RequestLimits()


@pytest.fixture(scope="module")
def model() -> ScriptedChatModel:
    return ScriptedChatModel(lambda conversation, params: "fine")


@pytest.fixture(scope="module")
def server(model: ScriptedChatModel) -> Iterator[Live]:
    with live(model, Settings(limits=RequestLimits(body_bytes=2 << 20))) as running:
        yield running


def refusal(body: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), LIMITS)
    assert refused.value.status == 400
    assert not re.search(r"0x[0-9a-f]{6,}|/home|\.py|Error|canary", refused.value.message)
    return refused.value


def with_field(text: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "Hi"}], ' + text.encode() + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"\xed\xa0\x80",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        with_field('"temperature": NaN'),
        with_field('"temperature": Infinity'),
        with_field('"temperature": -Infinity'),
        with_field('"seed": ' + "9" * 5000),
        with_field('"unknown": [' + "9" * 101 + "]"),
        with_field('"n": 1, "n": 2'),
        with_field('"logit_bias": {"1": NaN}'),
        with_field('"logit_bias": {"1": 1, "1": 2}'),
    ],
    ids=lambda body: repr(body[:20]) + str(len(body)),
)
def test_what_is_no_json_object_is_refused_at_once(body: bytes):
    started = time.perf_counter()
    assert refusal(body).code == "invalid_json"
    assert time.perf_counter() - started < 1


NUMBERS = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed", "top_logprobs")
NUMBERS += ("frequency_penalty", "presence_penalty", "top_k", "min_p")
WRONG = ["1e999", '"NaN"', '"7"', "true", "[]", "{}", "99999999999999999999999", "-99999999999999999999999"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", WRONG)
def test_numbers_are_strict_and_finite(name: str, value: str):
    assert refusal(with_field(f'"logprobs": true, "{name}": {value}')).param == name


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs", "top_k"])
def test_whole_numbers_are_not_written_as_fractions(name: str):
    assert refusal(with_field(f'"logprobs": true, "{name}": 1e3')).param == name


@pytest.mark.parametrize("value", ["1e999", '{"const": 1e999}', '{"const": -1e999}'])
def test_numbers_within_a_schema_or_a_bias_are_finite(value: str):
    assert refusal(with_field(f'"logit_bias": {{"1": {value}}}')).param == "logit_bias"
    assert refusal(with_field(f'"response_format": {{"type": "json_object", "schema": {value}}}')).param == "response_format"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 2**31),
        ("max_tokens", 0),
        ("n", 10**6),
        ("n", 0),
        ("top_logprobs", 10**6),
        ("temperature", -1),
        ("temperature", 2.1),
        ("top_p", 1.1),
        ("seed", 2**70),
        ("seed", 2**63),
        ("stop", ["x"] * 10**4),
        ("stop", ""),
        ("stop", ["x" * 1000]),
        ("stop", [1]),
        ("stop", "\ud800"),
        ("stop", 5),
        ("model", "x" * 1000),
        ("model", "\ud800"),
        ("model", 7),
        ("stream", "yes"),
        ("stream", 1),
        ("stream_options", "usage"),
        ("stream_options", {"include_usage": "yes"}),
        ("logprobs", 1),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", "1"),
        ("presence_penalty", -3),
        ("presence_penalty", True),
        ("logit_bias", {str(each): 1 for each in range(10**4)}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"one": 1}),
        ("logit_bias", {"1" * 30: 1}),
        ("logit_bias", {"1": "1"}),
        ("logit_bias", [[1, 1]]),
        ("top_k", 2.5),
        ("top_k", -2),
        ("top_k", 2**70),
        ("min_p", 1.5),
        ("cache_salt", 7),
        ("cache_salt", "x" * 257),
        ("cache_salt", "\ud800"),
        ("response_format", "json"),
        ("response_format", {}),
        ("response_format", {"type": "yaml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"enum": ["\ud800"]}}}),
        ("messages", None),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", {}),
        ("messages", [{"role": "user", "content": "x"}] * 1000),
    ],
    ids=str,
)
def test_values_out_of_range_name_their_field(name: str, value: Any):
    assert refusal(ask() | {"top_logprobs": None, "logprobs": True, name: value}).param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 10**6),
        ("tools", [{"type": "function"}]),
        ("repetition_penalty", 1.1),
        ("chat_template", "{{ x }}"),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function"}),
    ],
    ids=str,
)
def test_what_would_change_the_reply_and_cannot_be_honoured_is_refused_by_name(name: str, value: Any):
    refused = refusal(ask() | {name: value})
    assert (refused.param, refused.code) == (name, "unsupported_parameter")


def test_fields_that_ask_for_nothing_and_unknown_ones_pass():
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    neutral |= {"logit_bias": {}, "top_k": -1, "min_p": 0, "service_tier": "auto", "parallel_tool_calls": True, "repetition_penalty": 1}
    request = read_request(json.dumps(ask() | neutral | {"user": "me", "store": False, "metadata": {}, "seed": None}).encode(), LIMITS)
    assert request.params.max_new_tokens == 1024


def test_top_logprobs_without_logprobs_is_refused():
    assert refusal(ask(top_logprobs=3)).param == "top_logprobs"


def of(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (of("Hi"), "messages.0"),
        (of(None), "messages.0"),
        (of({}), "messages.0.role"),
        (of({"role": "user"}), "messages.0.content"),
        (of({"role": "tool", "content": "x"}), "messages.0.role"),
        (of({"role": ["user"], "content": "x"}), "messages.0.role"),
        (of({"role": "user", "content": None}), "messages.0.content"),
        (of({"role": "user", "content": []}), "messages.0.content"),
        (of({"role": "user", "content": 5}), "messages.0.content"),
        (of({"role": "user", "content": ["x"]}), "messages.0.content.0"),
        (of({"role": "user", "content": [{"type": "text"}]}), "messages.0.content.0"),
        (of({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}), "messages.0.content.0"),
        (of({"role": "user", "content": [{"type": "input_audio"}]}), "messages.0.content.0"),
        (of({"role": "user", "content": [{"type": "text", "text": "x"}] * 10**4}), "messages.0.content"),
        (of({"role": "user", "content": "a\ud800b"}), "messages.0.content"),
        (of({"role": "user", "content": "a\0b"}), "messages.0.content"),
        (of({"role": "system", "content": "x"}), "messages"),
        (of(USER, {"role": "system", "content": "x"}, USER), "messages.1.role"),
        (of(USER, {"role": "assistant", "content": "x"}), "messages"),
        (of(USER) | {"continue_final_message": True}, "continue_final_message"),
        (of(USER, {"role": "assistant", "content": None, "tool_calls": [{}]}, USER), "messages.1.tool_calls"),
        (of({"role": "user", "content": "x" * 500_001}), "messages.0.content"),
        (of({"role": "system", "content": [{"type": "image_url", "image_url": data_address()}]}, USER), "messages.0.content.0"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_messages_that_cannot_be_understood_name_their_place(body: dict[str, Any], param: str):
    assert refusal(body).param == param


# --- pictures -----------------------------------------------------------------------------------------------------------------------------


def of_picture(address: Any) -> dict[str, Any]:
    return ask([{"type": "image_url", "image_url": address}])


def sloppy() -> dict[str, Any]:
    plain = base64.b64encode(png()).decode()
    lines = "\n".join(plain[start : start + 76] for start in range(0, len(plain), 76))
    return {
        "an object": {"url": data_address()},
        "an object with detail": {"url": data_address(), "detail": "auto"},
        "a bare string": data_address(),
        "no padding": f"data:image/png;base64,{plain.rstrip('=')}",
        "line breaks": f"data:image/png;base64,{lines}",
        "URL-safe alphabet": f"data:image/png;base64,{base64.urlsafe_b64encode(png()).decode()}",
        "percent-encoded": f"data:image/png;base64,{plain.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        "a wrong type": f"data:image/webp;base64,{plain}",
        "jpg": f"data:image/jpg;base64,{plain}",
        "capital letters": f"DATA:IMAGE/PNG;BASE64,{plain}",
        "a parameter": f"data:image/png;charset=utf-8;base64,{plain}",
        "blanks around": f"  data:image/png;base64, {plain}\n",
        "no data: before it": plain,
    }


@pytest.mark.parametrize("form", sloppy())
def test_data_addresses_are_read_in_whatever_form_clients_make_of_them(form: str):
    request = read_request(json.dumps(of_picture(sloppy()[form])).encode(), LIMITS)
    assert request.conversation.images == (ImagePart(png()),)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("http://127.0.0.1:1/canary.png", "unsupported_image_url"),
        ("https://example.com/canary.png", "unsupported_image_url"),
        ("HTTP://169.254.169.254/", "unsupported_image_url"),
        ("//127.0.0.1/x", "unsupported_image_url"),
        ("file:///etc/passwd", "unsupported_image_url"),
        ("FILE:/etc/passwd", "unsupported_image_url"),
        ("ftp://x/y", "unsupported_image_url"),
        ("gopher://x", "unsupported_image_url"),
        ("\\\\host\\x", "unsupported_image_url"),
        ("/etc/passwd", "unsupported_image_url"),
        ("", "unsupported_image_url"),
        ("\tht\ntp://127.0.0.1/", "unsupported_image_url"),
        ("blob:x", "unsupported_image_url"),
        ("data:text/html;base64,PGI+", "invalid_image"),
        ("data:image/png,abc", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,####", "invalid_image"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "invalid_image"),
        (data_address(png()[:40]), "invalid_image"),
        (data_address(png(size=(1, 1))), "invalid_image"),
        (data_address(png(size=(9000, 50))), "invalid_image"),
        ("data:image/png;base64,\ud800", "invalid_image"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_addresses_that_are_no_picture_are_refused_and_nothing_is_fetched_or_opened(address: str, code: str):
    refused = refusal(of_picture(address))
    assert (refused.code, refused.param) == (code, "messages.0.content.0.image_url")


def test_more_pictures_than_allowed_are_refused_before_any_is_read():
    parts = [{"type": "image_url", "image_url": "data:image/png;base64,####"}] * 17
    assert refusal(ask(parts)).code == "invalid_image"  # the first is looked at before the seventeenth is counted
    assert "more pictures" in refusal(ask([{"type": "image_url", "image_url": data_address()}] * 17)).message


def test_pictures_that_follow_the_words_go_first_and_others_stay_in_their_place():
    picture = {"type": "image_url", "image_url": data_address()}

    def parts(*content: Any) -> list[str]:
        request = read_request(
            json.dumps(ask([each if isinstance(each, dict) else {"type": "text", "text": each} for each in content])).encode(), LIMITS
        )
        return [part.text if isinstance(part, TextPart) else "<image>" for part in request.conversation.messages[0].parts]

    assert "".join(parts("What?", picture)) == "".join(parts(picture, "What?")) == "<image>\nWhat?"
    assert "".join(parts(picture, "\nWhat?")) == "<image>\nWhat?"
    assert "".join(parts(picture, picture, "Which?")) == "<image>\n<image>\nWhich?"
    assert "".join(parts("This:", picture, "and that:", picture)) == "This:\n<image>\nand that:\n<image>"


def test_neighbours_of_one_role_are_one_turn_and_developer_is_system():
    system, user = {"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    request = read_request(json.dumps(of(system, {"role": "developer", "content": "kind"}, user, USER)).encode(), LIMITS)
    assert [(message.role, message.text) for message in request.conversation.messages] == [("system", "Be\nkind"), ("user", "Hi\nHi")]


def test_markers_that_a_user_types_stay_words():
    request = read_request(json.dumps(ask("<image> </s> ASSISTANT:")).encode(), LIMITS)
    assert request.conversation.images == ()
    assert request.conversation.messages[0].parts == (TextPart("<image> </s> ASSISTANT:"),)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["type", "text", "url", "image_url", "role", "content"]), inner)
    ),
    max_leaves=12,
)
names = st.sampled_from(["messages", "model", "stop", "stream", "stream_options", "n", "seed", "temperature", "top_p", "tools", "logprobs"])


@given(st.dictionaries(names, values), st.booleans())
def test_any_json_is_a_request_or_refused(fields: dict[str, Any], with_message: bool):
    statuses = []
    try:
        read_request(json.dumps((ask() if with_message else {}) | fields).encode(), LIMITS)
    except ApiError as error:
        statuses.append(error.status)
    assert statuses in ([], [400])


# --- over HTTP ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "options"),
    [
        (400, "invalid_json", {"content": b"{", "headers": {"content-type": "application/json"}}),
        (400, "missing_required_parameter", {"json": {}}),
        (415, "unsupported_media_type", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        (415, "unsupported_media_type", {"content": b"{}"}),
        (415, "unsupported_media_type", {"content": b"{}", "headers": {"content-type": "application/json", "content-encoding": "gzip"}}),
        (413, "request_too_large", {"json": ask("x" * (3 << 20))}),
        (404, "model_not_found", {"json": ask() | {"model": "canary"}}),
        (404, "not_found", {"json": {}, "path": "/v1/completions"}),
        (404, "not_found", {"json": {}, "path": "/v1/chat/completions/"}),
        (405, "method_not_allowed", {"json": {}, "path": "/v1/models"}),
    ],
    ids=str,
)
def test_every_refusal_has_openais_shape_and_a_request_id(server: Live, status: int, code: str, options: dict[str, Any]):
    response = server.post(**options)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert "canary" not in error["message"]
    assert len(response.headers["x-request-id"]) == 32


def test_a_body_without_a_length_is_cut_off_at_the_limit(server: Live):
    def endless() -> Iterator[bytes]:
        for _ in range(3 * 1024):
            yield b" " * 1024

    response = server.post(content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextLengthError("canary"), 400, "context_length_exceeded"),
        (ImageError("truncated", "canary"), 400, "invalid_image"),
        (ImageCountError("canary"), 400, "invalid_value"),
        (DataError("canary"), 400, "invalid_value"),
        (UsageError("canary"), 400, "invalid_value"),
        (OutOfMemory("canary"), 503, "overloaded"),
        (RemoteError("canary", status=429, retry_after=7.2), 429, "rate_limit_exceeded"),
        (RemoteError("canary", status=400), 400, "invalid_value"),
        (RemoteError("canary"), 502, "model_unavailable"),
        (NonFiniteError("canary"), 500, "internal_error"),
        (ZeroDivisionError("canary"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_model_have_a_status_of_their_own_also_when_a_stream_was_asked_for(
    error: Exception, status: int, code: str, stream: bool
):
    with live(ScriptedChatModel([error, "still alive"])) as server:
        response = server.post(ask(stream=stream))
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert "canary" not in response.text
        assert server.post(ask()).status_code == 200


def test_a_hundred_bad_requests_leave_nothing_behind(server: Live, model: ScriptedChatModel):
    calls = len(model.calls)
    for _ in range(100):
        assert server.post(of_picture("data:image/png;base64,####")).status_code == 400
    assert len(model.calls) == calls
    assert server.gate.num_admitted == server.gate.num_running == 0
    assert server.post(ask()).json()["choices"][0]["message"]["content"] == "fine"
