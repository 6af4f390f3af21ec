"""The protocol's helpers, the scripted double, and the OpenAI client against a server that runs in the test."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import traceback
from collections.abc import AsyncGenerator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vistune.chat_model import BrokenReply, ChatModel, OpenAIChatModel, ScriptedChatModel, SynchronousChatModel, sample
from vistune.errors import ContextLengthError, DataError, ImageError, RemoteError, UsageError
from vistune.types import Conversation, Delta, ImagePart, Reply, SamplingParams, TokenLogprob

QUESTION = Conversation(()).then("user", "What is this?")
PNG = b"\x89PNG\r\n\x1a\n rest of a picture"


# --- the scripted double ---


def test_a_script_is_followed_and_every_call_is_recorded():
    scripted = ScriptedChatModel(["A cat.", "A dog."])
    with SynchronousChatModel(scripted) as model:
        assert [model.generate(QUESTION).text for _ in range(2)] == ["A cat.", "A dog."]
        with pytest.raises(UsageError, match="script has ended"):
            model.generate(QUESTION)
    assert isinstance(scripted, ChatModel)
    assert scripted.calls[0] == (QUESTION, SamplingParams())


def test_streamed_pieces_join_to_the_reply_that_the_last_one_carries():
    with SynchronousChatModel(ScriptedChatModel(["A sleeping cat."])) as model:
        deltas = list(model.stream(QUESTION))
    assert [delta.text for delta in deltas] == ["A sl", "eepi", "ng c", "at.", ""]
    assert deltas[-1].reply == Reply("A sleeping cat.", "stop", completion_tokens=4)


def test_stop_strings_and_length_are_honoured_by_the_double():
    with SynchronousChatModel(ScriptedChatModel(lambda conversation, params: "one two three")) as model:
        assert model.generate(QUESTION, SamplingParams(stop=(" three", " two"))).text == "one"
        cut = model.generate(QUESTION, SamplingParams(max_new_tokens=1))
    assert (cut.text, cut.finish_reason) == ("one ", "length")


def test_a_scripted_failure_comes_after_the_text_before_it():
    with SynchronousChatModel(ScriptedChatModel([BrokenReply("half", DataError("broken"))])) as model:
        stream = model.stream(QUESTION)
        assert next(stream) == Delta("half")
        with pytest.raises(DataError, match="broken"):
            next(stream)


def test_leaving_a_stream_cancels_the_work():
    scripted = ScriptedChatModel(["A long reply that nobody reads to its end."])
    with SynchronousChatModel(scripted) as model:
        stream = model.stream(QUESTION)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert (scripted.num_cancelled, scripted.num_active) == (1, 0)


def test_several_replies_are_drawn_at_once_with_seeds_of_their_own():
    scripted = ScriptedChatModel(lambda conversation, params: f"seed {params.seed}", pause=0.01)
    with SynchronousChatModel(scripted) as model:
        replies = model.sample(QUESTION, SamplingParams(n=3, seed=5, temperature=1.0))
        with pytest.raises(UsageError, match="n=3"):
            model.generate(QUESTION, SamplingParams(n=3))
    assert [reply.text for reply in replies] == ["seed 5", "seed 6", "seed 7"]
    assert scripted.max_active == 3


# --- any /v1 server ---


class Server:
    """Plays one prepared answer to each request and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.status, self.headers, self.body = 200, {"content-type": "application/json"}, b"{}"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response_only(outer.status)  # no Date of its own
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def answers(self, text: str, finish_reason: str | None = "stop", **choice: Any) -> None:
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4}}
        choices = [{"index": 0, "message": message, "finish_reason": finish_reason} | choice]
        self.body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
        ).encode()

    def streams(self, pieces: list[str], finish_reason: str | None = "stop") -> None:
        chunks = [[{"index": 0, "delta": {"content": piece}, "finish_reason": None}] for piece in pieces]
        chunks.append([{"index": 0, "delta": {}, "finish_reason": finish_reason}])
        events = [{"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": each} for each in chunks]
        events.append({**events[0], "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}})
        self.headers = {"content-type": "text/event-stream"}
        self.body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"

    def fails(self, status: int, error: dict[str, Any], **headers: str) -> None:
        self.status, self.body = status, json.dumps({"error": error}).encode()
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def server_at(url: str) -> Any:
    return SimpleNamespace(url=url)


async def told(model: OpenAIChatModel) -> AsyncGenerator[Reply, None]:
    yield await model.generate(QUESTION)


def ask(server: Server, conversation: Conversation, params: SamplingParams | None = None, *, stream: bool = False) -> Reply | list[Delta]:
    async def call() -> Reply | list[Delta]:
        model = OpenAIChatModel("m", base_url=server.url, max_retries=0)
        try:
            if stream:
                return [delta async for delta in model.stream(conversation, params or SamplingParams())]
            return await model.generate(conversation, params or SamplingParams())
        finally:
            await model.close()

    return asyncio.run(call())


def test_a_reply_comes_with_its_usage(server: Server):
    server.answers("A cat.")
    expected = Reply("A cat.", "stop", prompt_tokens=9, cached_tokens=4, completion_tokens=2)
    params = SamplingParams(max_new_tokens=7, temperature=0.5, top_p=0.9, stop=("\n",), seed=3)
    assert ask(server, QUESTION, params) == expected
    sent = server.requests[0]
    assert sent["messages"] == [{"role": "user", "content": "What is this?"}]
    assert {key: sent[key] for key in ("max_tokens", "temperature", "top_p", "stop", "seed")} == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["\n"],
        "seed": 3,
    }


def test_pictures_travel_as_data_urls_in_their_place(server: Server, tmp_path: Path):
    server.answers("A cat.")
    (tmp_path / "misnamed.jpg").write_bytes(PNG)
    ask(
        server,
        Conversation(()).then("user", ImagePart(tmp_path / "misnamed.jpg"), "and", ImagePart(PNG), ImagePart("https://a.test/b.png")),
    )
    picture, text, same, address = server.requests[0]["messages"][0]["content"]
    assert picture == same == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}}
    assert text == {"type": "text", "text": "and"}
    assert address["image_url"]["url"] == "https://a.test/b.png"


def test_a_picture_that_cannot_be_sent_is_refused_before_anything_is_sent(server: Server, tmp_path: Path):
    for source, reason in ((tmp_path / "missing.png", "missing"), (b"no picture", "format")):
        with pytest.raises(ImageError) as refused:
            ask(server, Conversation(()).then("user", ImagePart(source)))
        assert refused.value.reason == reason
    assert server.requests == []


def test_a_stream_ends_with_the_whole_reply(server: Server):
    server.streams(["A ", "cat."], finish_reason="length")
    deltas = ask(server, QUESTION, stream=True)
    assert deltas == [Delta("A "), Delta("cat."), Delta("", Reply("A cat.", "length", prompt_tokens=9, completion_tokens=2))]


def test_logprobs_are_asked_for_and_returned(server: Server):
    token = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [{"token": "B", "logprob": -1.0, "bytes": [66]}]}
    server.answers("A", logprobs={"content": [token], "refusal": None})
    reply = ask(server, QUESTION, SamplingParams(logprobs=1))
    assert isinstance(reply, Reply)
    assert reply.logprobs == (TokenLogprob("A", -0.5, (("B", -1.0),)),)
    assert server.requests[0]["top_logprobs"] == 1


def test_a_conversation_that_ends_in_an_assistant_message_is_to_be_continued(server: Server):
    server.answers(" cat.")
    ask(server, QUESTION.then("assistant", "A"))
    assert server.requests[0]["continue_final_message"] is True
    assert server.requests[0]["add_generation_prompt"] is False


def test_what_the_server_says_no_to_becomes_a_typed_error(server: Server):
    server.fails(429, {"message": "slow down", "code": "rate_limit"}, retry_after="7")
    with pytest.raises(RemoteError, match="slow down") as refused:
        ask(server, QUESTION)
    assert (refused.value.status, refused.value.retry_after) == (429, 7.0)
    server.fails(400, {"message": "too long", "code": "context_length_exceeded"})
    with pytest.raises(ContextLengthError, match="too long"):
        ask(server, QUESTION, stream=True)


def refusal(server: Server, **options: Any) -> RemoteError:
    with pytest.raises(RemoteError) as refused:
        ask(server, QUESTION, **options)
    return refused.value


def test_retry_after_is_read_as_seconds_and_as_a_date_by_the_servers_clock(server: Server):
    server.headers["date"] = "Tue, 01 Jan 2030 00:00:00 GMT"
    for given, seconds in {
        "1.5": 1.5,
        "Tue, 01 Jan 2030 00:00:30 GMT": 30.0,
        "Mon, 31 Dec 2029 23:00:00 GMT": 0.0,
        "1e9": 1e9,
        "-3": 0.0,
        "soon": None,
        "nan": None,
    }.items():
        server.fails(429, {"message": "slow down"}, retry_after=given)
        assert refusal(server).retry_after == seconds, given


def test_an_exhausted_quota_is_told_from_a_rate_limit_by_its_code(server: Server):
    server.fails(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"})
    assert refusal(server).code == "insufficient_quota"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Bad gateway</html>",
        b'{"choices": [{"message": {"content": "cut',
        b'{"choices": []}',
        b'{"choices": "none"}',
        b'{"choices": [{"message": "A cat.", "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": ["A cat."]}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "\xff"}, "finish_reason": "stop"}]}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "' + b"a" * (5 << 20) + b'"}, "finish_reason": "stop"}]}',
        b"",
    ],
    ids=["page", "half", "no choice", "text for choices", "text for message", "list for text", "no UTF-8", "deep", "5 MB", "empty"],
)
def test_an_answer_that_is_no_completion_is_an_error_that_keeps_its_beginning(server: Server, body: bytes):
    server.body = body
    error = refusal(server)
    assert error.status == 200
    assert error.body == body[:4096].decode("utf-8", "replace")
    assert len(str(error)) < 500


def test_a_page_for_an_error_is_cut_to_its_beginning(server: Server):
    server.status, server.headers, server.body = 502, {"content-type": "text/html"}, b"<html>" + b"Bad gateway. " * 500_000
    error = refusal(server)
    assert error.status == 502
    assert "Bad gateway" in str(error)
    assert len(str(error)) < 500


def test_usage_that_cannot_be_is_taken_as_unknown(server: Server):
    server.answers("A cat.")
    server.body = server.body.replace(b'"prompt_tokens": 9', b'"prompt_tokens": -9').replace(
        b'"completion_tokens": 2', b'"completion_tokens": NaN'
    )
    assert ask(server, QUESTION) == Reply("A cat.", "stop", prompt_tokens=0, cached_tokens=4, completion_tokens=0)


def test_a_refusal_in_its_own_field_is_the_reply(server: Server):
    server.answers("", message={"role": "assistant", "content": None, "refusal": "I cannot help with that."})
    reply = ask(server, QUESTION)
    assert isinstance(reply, Reply)
    assert reply.text == "I cannot help with that."


def test_a_stream_of_something_else_is_a_typed_error(server: Server):
    server.headers = {"content-type": "text/event-stream"}
    for body in (b"data: {broken\n\n", b'data: {"choices": "none"}\n\n', b'data: {"choices": [{"delta": {"content": 7}}]}\n\n'):
        server.body = body
        assert refusal(server, stream=True).status == 200


def test_what_was_never_connected_is_told_from_what_broke_off(server: Server):
    assert refusal(server_at("http://127.0.0.1:9/v1")).reached is False
    server.headers["content-length"] = "1000"
    assert refusal(server).reached is True


def test_the_key_is_hidden_in_all_that_a_server_echoes(server: Server):
    key = "sk-canary-0123456789"

    async def call(stream: bool) -> str:
        model = OpenAIChatModel("m", base_url=server.url, api_key=key + "\n")
        try:
            with pytest.raises(RemoteError) as refused:
                async for _ in model.stream(QUESTION) if stream else told(model):
                    pass
            error = refused.value
            return repr((model, vars(model)["_key"], error, error.body)) + "".join(traceback.format_exception(error))
        finally:
            await model.close()

    for status, body in ((401, f'{{"error": {{"message": "bad key {key}"}}}}'), (502, f"<p>{key}</p>"), (200, f"<p>{key}</p>")):
        server.status, server.body = status, body.encode()
        for stream in (False, True):
            if not (stream and status == 200):
                shown = asyncio.run(call(stream))
                assert key not in shown
                assert "***" in shown


def test_a_key_that_no_header_can_carry_and_an_address_with_a_password_are_refused_unseen():
    for options in ({"api_key": "sk-“canary”"}, {"api_key": "sk-\ncanary"}, {"base_url": "http://user:canary@127.0.0.1/v1"}):
        with pytest.raises(UsageError) as refused:
            OpenAIChatModel("m", **{"base_url": "http://127.0.0.1:9/v1", **options})
        assert "canary" not in "".join(traceback.format_exception(refused.value))


def test_a_reply_that_breaks_off_is_an_error_not_a_short_reply(server: Server):
    server.streams(["A "], finish_reason=None)
    with pytest.raises(RemoteError, match="broke off"):
        ask(server, QUESTION, stream=True)


def test_a_server_that_is_not_there_is_named():
    model = OpenAIChatModel("m", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        asyncio.run(model.generate(QUESTION))


def test_one_failed_draw_fails_the_sample_and_cancels_the_others():
    scripted = ScriptedChatModel(["fine", DataError("broken")], pause=0.01)
    with pytest.raises(DataError, match="broken"):
        asyncio.run(sample(scripted, QUESTION, SamplingParams(n=2)))
    assert scripted.num_active == 0
