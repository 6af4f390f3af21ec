"""What OpenAI's own client asks of a reply's form, and gets from a model of pure chance."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from tests.engine.conftest import byte_tokenizer, tiny_config, tiny_model
from tests.serve.live import Live, live, png

from vistune.chat_model import OpenAIChatModel, ScriptedChatModel, chat_request
from vistune.engine.engine import Engine
from vistune.errors import RemoteError
from vistune.model.processor import Processor
from vistune.types import ANY_OBJECT, Conversation, SamplingParams

pytest.importorskip("llguidance")

TOKENIZER: Any = byte_tokenizer()
USER: list[Any] = [{"role": "user", "content": "Describe it."}]
Short = Annotated[str, Field(max_length=6)]


class Cat(BaseModel, extra="forbid"):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel, extra="forbid"):
    kind: Literal["dog"]
    name: Short


class Scene(BaseModel, extra="forbid"):
    """What pydantic makes of it has references, a discriminated union, an enumeration, and text that may be null."""

    title: Short
    pets: Annotated[list[Annotated[Cat | Dog, Field(discriminator="kind")]], Field(max_length=2)]
    light: Literal["day", "night", "dämmrig"]
    note: Short | None


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    processor = Processor(TOKENIZER, tiny_config(TOKENIZER))
    with Engine(tiny_model(processor), processor) as engine, live({"tiny": engine, "assistant": engine}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_pydantic_model_comes_back_from_each_choice(client: openai.OpenAI):
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "response_format": Scene, "max_tokens": 300}
    completion = client.chat.completions.parse(**asked, n=4, seed=1, temperature=1.7)
    scenes = [choice.message.parsed for choice in completion.choices]
    assert all(isinstance(scene, Scene) for scene in scenes)
    assert len({str(scene) for scene in scenes}) == 4
    again = client.chat.completions.parse(**asked, seed=2, temperature=1.7)
    assert again.choices[0].message.parsed == scenes[1]
    greedy = client.chat.completions.parse(**asked, temperature=0)
    assert isinstance(greedy.choices[0].message.parsed, Scene)


def test_a_stream_keeps_to_the_schema_too(client: openai.OpenAI):
    with client.chat.completions.stream(
        model="tiny", messages=USER, response_format=Scene, max_tokens=300, temperature=1.7, seed=3
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 20
    assert isinstance(final.choices[0].message.parsed, Scene)
    assert "".join(pieces) == final.choices[0].message.content


def test_any_object_will_do(client: openai.OpenAI):
    closing = {str(TOKENIZER("}").input_ids[0]): 12, str(TOKENIZER('"').input_ids[0]): 12}
    reply = client.chat.completions.create(
        model="tiny", messages=USER, response_format={"type": "json_object"}, logit_bias=closing, max_tokens=300, seed=0
    )
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


def test_a_reply_that_is_cut_off_says_so_as_openai_does(client: openai.OpenAI):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=USER, response_format=Scene, max_tokens=5)


@pytest.mark.parametrize("schema", [{"type": "secret-word"}, {"$ref": "#"}, {"type": "string", "pattern": "(?=secret-word)"}], ids=str)
def test_a_schema_that_cannot_be_kept_to_is_refused_by_name_without_being_quoted(client: openai.OpenAI, schema: dict[str, Any]):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny", messages=USER, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        )
    assert (refused.value.param, refused.value.code) == ("response_format", "unsupported_schema")
    assert "secret-word" not in refused.value.message


def test_a_server_without_the_package_says_so(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=USER, response_format={"type": "json_object"})
    assert (refused.value.param, refused.value.code) == ("response_format", "unsupported_parameter")


def test_a_message_is_not_continued_in_another_form(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=[*USER, {"role": "assistant", "content": "It is"}],
            response_format={"type": "json_object"},
            extra_body={"continue_final_message": True},
        )
    assert refused.value.param == "response_format"


def test_a_bias_decides_and_must_be_on_a_token_that_there_is(client: openai.OpenAI):
    letter = TOKENIZER("z").input_ids[0]
    reply = client.chat.completions.create(model="tiny", messages=USER, logit_bias={str(letter): 100}, temperature=0, max_tokens=5)
    assert reply.choices[0].message.content == "zzzzz"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=USER, logit_bias={"99999": 1})


def test_penalties_and_the_likeliest_tokens_reach_the_model(client: openai.OpenAI):
    letters = {str(TOKENIZER(letter).input_ids[0]): bias for letter, bias in (("x", 100), ("y", 90))}
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 12, "logit_bias": letters}
    plain = client.chat.completions.create(**asked, temperature=0).choices[0].message.content or ""
    varied = (
        client.chat.completions.create(**asked, temperature=0, frequency_penalty=2, presence_penalty=2).choices[0].message.content or ""
    )
    assert set(plain) == {"x"}
    assert set(varied) == {"x", "y"}
    one = client.chat.completions.create(**asked, temperature=2, extra_body={"top_k": 1}).choices[0].message.content
    other = client.chat.completions.create(**asked, temperature=2, extra_body={"min_p": 1.0}).choices[0].message.content
    assert one == other == plain


def test_log_probabilities_come_with_their_piece_of_the_stream(client: openai.OpenAI):
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "logprobs": True, "top_logprobs": 2, "temperature": 1.5, "seed": 4}
    whole = client.chat.completions.create(**asked, max_tokens=12, n=2)
    sent: list[list[Any]] = [[], []]
    for chunk in client.chat.completions.create(**asked, max_tokens=12, n=2, stream=True):
        choice = chunk.choices[0]
        tokens = choice.logprobs.content if choice.logprobs else None
        assert bool(tokens) == bool(choice.delta.content)  # every piece has its own, and the last chunk has nothing left to tell
        sent[choice.index] += tokens or []
    for choice, tokens in zip(whole.choices, sent, strict=True):
        assert choice.logprobs is not None
        assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content or ()]
        assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_the_program_on_the_page_prints_what_it_asked_for(server: Live, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pydantic" in text]
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "photo.jpg").write_bytes(png())
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.address}/v1", "OPENAI_API_KEY": "none"}
    finished = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.stdout.startswith("animals=["), finished.stderr


# --- our own client ---


def test_our_client_asks_for_a_schema_and_hears_log_probabilities_as_they_come(server: Live):
    schema = json.dumps(Scene.model_json_schema())

    async def main() -> tuple[str, int, int, int]:
        model = OpenAIChatModel("tiny", base_url=f"{server.address}/v1", timeout=60)
        params = SamplingParams(300, 1.7, seed=5, response_schema=schema, logprobs=1, top_k=40, min_p=0.01, logit_bias=((5, -1.0),))
        deltas = [delta async for delta in model.stream(Conversation(()).then("user", "Describe it."), params)]
        await model.close()
        reply = deltas[-1].reply
        assert reply is not None
        early = sum(len(delta.logprobs) for delta in deltas[: len(deltas) // 2])
        return reply.text, len(reply.logprobs or ()), sum(len(delta.logprobs) for delta in deltas), early

    text, total, told, early = asyncio.run(main())
    Scene.model_validate_json(text)
    assert total == told > early > 0


def test_our_client_says_what_other_servers_understand():
    conversation = Conversation(()).then("user", "Hi")
    plain = chat_request("m", conversation, SamplingParams())
    assert not plain.keys() & {"response_format", "frequency_penalty", "presence_penalty", "logit_bias"}
    asked = chat_request(
        "m", conversation, SamplingParams(response_schema='{"type":"string"}', frequency_penalty=1, logit_bias=((7, -1.0),))
    )
    assert asked["response_format"]["json_schema"] == {"name": "reply", "schema": {"type": "string"}, "strict": True}
    assert (asked["frequency_penalty"], asked["logit_bias"]) == (1, {"7": -1.0})
    assert chat_request("m", conversation, SamplingParams(response_schema=ANY_OBJECT))["response_format"] == {"type": "json_object"}


def test_a_server_that_refuses_the_schema_is_heard():
    model = ScriptedChatModel([RemoteError("refused", status=400)])
    with live(model) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="scripted", messages=USER, response_format={"type": "json_object"})
    assert model.calls[0][1].response_schema == ANY_OBJECT
