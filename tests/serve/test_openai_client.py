"""OpenAI's own client, unchanged, against a live server: what it reads, streams, is refused and closes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.serve.live import Live, data_address, live, png, until

from vistune.chat_model import BrokenReply, OpenAIChatModel, ScriptedChatModel
from vistune.errors import RemoteError
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.types import Conversation, ImagePart, Reply, SamplingParams, TextPart, TokenLogprob

KEY = "sk-test-0123456789abcdef"


def echo(conversation: Conversation, params: SamplingParams) -> str:
    last = conversation.messages[-1]
    return f"{len(conversation.images)} pictures, {len(conversation.messages)} messages, you said {last.text.strip()!r}"


@pytest.fixture(scope="module")
def model() -> ScriptedChatModel:
    return ScriptedChatModel(echo)


@pytest.fixture(scope="module")
def server(model: ScriptedChatModel) -> Iterator[Live]:
    with live(model, Settings(keys=ApiKeys([KEY]))) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0, timeout=20) as made:
        yield made


def user(*content: Any) -> list[Any]:
    return [{"role": "user", "content": list(content) if len(content) > 1 else content[0]}]


def test_two_turns_about_a_picture(client: openai.OpenAI, model: ScriptedChatModel):
    messages = user({"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": data_address(), "detail": "high"}})
    first = client.chat.completions.create(model="scripted", messages=messages)
    assert first.choices[0].message.content == "1 pictures, 1 messages, you said 'What?'"
    assert first.choices[0].finish_reason == "stop"
    assert first.id.startswith("chatcmpl-")
    assert first.model == "scripted"
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *user("And now?")]
    second = client.chat.completions.create(model="scripted", messages=messages)
    assert second.choices[0].message.content == "1 pictures, 3 messages, you said 'And now?'"
    picture = model.calls[-1][0].messages[0].parts[0]
    assert picture == ImagePart(png())


def test_a_stream_has_role_text_finish_and_usage_in_this_order(client: openai.OpenAI):
    chunks = list(
        client.chat.completions.create(model="scripted", messages=user("Hi"), stream=True, stream_options={"include_usage": True})
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *middle, finish, usage = chunks[1:]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == "0 pictures, 1 messages, you said 'Hi'"
    assert {chunk.choices[0].finish_reason for chunk in middle} == {None}
    assert finish.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(middle)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_is_sent_as_it_is_written():
    with live(ScriptedChatModel(["one two three four"], pause=0.1)) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=20)
        times = [time.monotonic() for _ in client.chat.completions.create(model="scripted", messages=user("Hi"), stream=True)]
        gaps = [after - before for before, after in itertools.pairwise(times[1:])]
        assert max(gaps) > 0.05
        assert times[-1] - times[0] > 0.3


def test_the_asynchronous_client_asks_many_at_once(server: Live):
    async def main() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
            asked = [client.chat.completions.create(model="scripted", messages=user(f"number {each}")) for each in range(20)]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    replies = asyncio.run(main())
    assert [f"'number {each}'" in (reply or "") for each, reply in enumerate(replies)] == [True] * 20


def test_parameters_reach_the_model(client: openai.OpenAI, model: ScriptedChatModel):
    client.chat.completions.create(
        model="scripted", messages=user("Hi"), temperature=0.5, top_p=0.25, max_tokens=7, stop=["x", "y"], seed=-3, logprobs=True,
        top_logprobs=4,
    )  # fmt: skip
    assert model.calls[-1][1] == SamplingParams(7, 0.5, 0.25, ("x", "y"), -3, logprobs=4)
    client.chat.completions.create(model="scripted", messages=user("Hi"), max_completion_tokens=9, stop="z")
    assert model.calls[-1][1] == SamplingParams(9, 1.0, 1.0, ("z",))


def test_a_reply_that_was_cut_off_says_so(client: openai.OpenAI):
    reply = client.chat.completions.create(model="scripted", messages=user("Hi"), max_tokens=2)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.completion_tokens == 2


def test_choices_are_drawn_with_seeds_of_their_own(client: openai.OpenAI, model: ScriptedChatModel):
    before = len(model.calls)
    reply = client.chat.completions.create(model="scripted", messages=user("Hi"), n=3, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert sorted(params.seed or 0 for _, params in model.calls[before:]) == [5, 6, 7]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="scripted", messages=user("Hi"), n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in reply.choices]


def test_log_probabilities_arrive_whole_or_with_the_end_of_a_stream():
    tokens = (TokenLogprob("Hé", -0.5, (("Hé", -0.5), ("Ho", float("-inf")))),)
    with live(ScriptedChatModel([Reply("Hé", "stop", 5, 2, 1, tokens)] * 2)) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=20)
        reply = client.chat.completions.create(model="scripted", messages=user("Hi"), logprobs=True, top_logprobs=2)
        assert reply.choices[0].logprobs is not None
        (token,) = reply.choices[0].logprobs.content or ()
        assert (token.token, token.logprob, token.bytes) == ("Hé", -0.5, list("Hé".encode()))
        assert [other.logprob for other in token.top_logprobs] == [-0.5, -9999.0]
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        assert (reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens) == (5, 2)
        *_, finish = client.chat.completions.create(model="scripted", messages=user("Hi"), logprobs=True, stream=True)
        assert finish.choices[0].logprobs is not None


def test_models_are_listed_and_found_also_with_a_slash_in_the_name():
    with live({"one": ScriptedChatModel(["1"]), "owner/two": ScriptedChatModel(["2"])}) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=20)
        assert [model.id for model in client.models.list()] == ["one", "owner/two"]
        assert client.models.retrieve("owner/two").object == "model"
        assert client.chat.completions.create(model="owner/two", messages=user("Hi")).choices[0].message.content == "2"
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="three", messages=user("Hi"))
        assert refused.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("three")


def test_the_client_knows_our_refusals_by_their_types(server: Live, client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="scripted", messages=user("Hi"), max_tokens=10**9)
    assert refused.value.param == "max_tokens"
    assert refused.value.request_id
    stranger = openai.OpenAI(base_url=f"{server.address}/v1", api_key="sk-someone-else-000000", max_retries=0, timeout=20)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_model_that_fails_midway_ends_the_stream_with_an_error_event():
    with live(ScriptedChatModel([BrokenReply("half a", RemoteError("secret detail"))])) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=20, max_retries=0)
        chunks = client.chat.completions.create(model="scripted", messages=user("Hi"), stream=True)
        texts: list[str | None] = []
        with pytest.raises(openai.APIError, match="broke off") as failed:
            texts.extend(chunk.choices[0].delta.content for chunk in chunks)
        assert "".join(text or "" for text in texts) == "half a"
        assert "secret" not in str(failed.value)


def test_closing_a_stream_stops_the_model():
    model = ScriptedChatModel(["word " * 1000] * 2, pause=0.01)
    with live(model) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=20)
        with client.chat.completions.create(model="scripted", messages=user("Hi"), stream=True) as stream:
            next(iter(stream))
        until(lambda: model.num_active == 0, seconds=2)
        assert model.num_cancelled == 1
        until(lambda: server.gate.num_admitted == 0, seconds=2)


def test_a_client_that_gives_up_waiting_stops_the_model():
    model = ScriptedChatModel(["word " * 1000], pause=0.01)
    with live(model) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=0.5, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="scripted", messages=user("Hi"))
        until(lambda: model.num_active == 0 and server.gate.num_admitted == 0, seconds=2)
        assert model.num_cancelled == 1


def test_our_own_client_continues_a_reply_at_our_own_server():
    model = ScriptedChatModel([" two"])
    begun = Conversation(()).then("user", "Count").then("assistant", "One")
    with live(model) as server:

        async def main() -> Reply:
            remote = OpenAIChatModel("scripted", base_url=f"{server.address}/v1")
            try:
                return await remote.generate(begun, SamplingParams(temperature=0.0))
            finally:
                await remote.close()

        assert asyncio.run(main()).text == " two"
    assert model.calls[0][0] == begun
    assert model.calls[0][0].messages[-1].parts == (TextPart("One"),)
