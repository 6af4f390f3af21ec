"""Everything that talks is a `ChatModel`: the teacher, the judge, our own weights, a remote server, the test double.

One conversation a call; concurrency is the batch. A conversation that ends in an assistant message is continued, not answered anew. Here
are the protocol, the client for any OpenAI-compatible server, the scripted double for tests, and a synchronous wrapper for scripts.
Weights become a `ChatModel` in `engine/`; retries, money and caching are added around any of them in `calls.py`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import os
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vistune.errors import ContextLengthError, ImageError, RemoteError, ResponseSchemaError, UsageError, VistuneError
from vistune.http_client import MAX_BODY, bounded_client, excerpt, retry_after, usable_key
from vistune.types import ANY_OBJECT, Conversation, Delta, FinishReason, ImagePart, Message, Reply, SamplingParams, TextPart, TokenLogprob

if TYPE_CHECKING:
    import openai

GREEDY = SamplingParams()


@runtime_checkable
class ChatModel(Protocol):
    """What datagen, eval, board and serve talk to. All failures are children of `VistuneError`."""

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        """The whole reply."""
        ...

    def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        """The reply piece by piece; the last delta carries the `Reply`. Closing the generator (`aclose`) cancels the work."""
        ...


@runtime_checkable
class ScoringChatModel(ChatModel, Protocol):
    """A `ChatModel` that also tells how likely given continuations are (multiple choice by likelihood)."""

    async def logprobs(self, conversation: Conversation, continuations: Sequence[str]) -> tuple[tuple[TokenLogprob, ...], ...]:
        """For each continuation of the conversation, its tokens with their natural-log probabilities."""
        ...


async def sample(model: ChatModel, conversation: Conversation, params: SamplingParams) -> tuple[Reply, ...]:
    """`params.n` replies to one conversation, drawn at once. A seed makes them repeatable and still different from each other."""
    if params.n < 1:
        raise UsageError(f"n is {params.n}; at least one reply can be drawn.")
    each = [dataclasses.replace(params, n=1, seed=None if params.seed is None else params.seed + draw) for draw in range(params.n)]
    tasks = [asyncio.ensure_future(model.generate(conversation, one)) for one in each]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:  # when one fails, or the caller is cancelled, nobody waits for the others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def require_single(params: SamplingParams) -> None:
    """Raises UsageError where more than one reply is asked of a call that gives one."""
    if params.n != 1:
        raise UsageError(f"generate and stream give one reply, not n={params.n}; use vistune.chat_model.sample.")


async def last_reply(deltas: AsyncGenerator[Delta, None]) -> Reply:
    """Reads a stream to its end and returns the reply that its last delta carries."""
    reply: Reply | None = None
    async with aclosing(deltas):
        async for delta in deltas:
            reply = delta.reply or reply
    if reply is None:
        raise RemoteError("The reply broke off before its end; ask again.")
    return reply


class SynchronousChatModel:
    """A `ChatModel` for scripts without an event loop of their own. Not for use inside a coroutine; use it in a `with` block.

    >>> with SynchronousChatModel(engine) as model:
    ...     print(model.generate(conversation).text)
    """

    def __init__(self, model: ChatModel):
        self._model = model
        # One loop for all calls: HTTP clients keep their connections, and those belong to a loop.
        self._runner = asyncio.Runner()

    def __enter__(self) -> SynchronousChatModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        return self._runner.run(self._model.generate(conversation, params))

    def sample(self, conversation: Conversation, params: SamplingParams) -> tuple[Reply, ...]:
        """`params.n` replies, drawn at once."""
        return self._runner.run(sample(self._model, conversation, params))

    def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Iterator[Delta]:
        """The reply piece by piece; leaving the loop early (or `close()` on the iterator) cancels the work."""
        deltas = self._model.stream(conversation, params)

        async def next_delta() -> Delta | None:
            return await anext(deltas, None)

        async def cancel() -> None:
            await deltas.aclose()

        try:
            while (delta := self._runner.run(next_delta())) is not None:
                yield delta
        finally:
            self._runner.run(cancel())

    def close(self) -> None:
        self._runner.close()


# --- the test double ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BrokenReply:
    """A scripted reply that fails with `error` after `text` was streamed."""

    text: str
    error: Exception


ScriptedReply = str | Reply | BrokenReply | Exception


class ScriptedChatModel:
    """Says what it was told to, for tests: no weights, no network.

    The script is a sequence, one item a call in order, or a function of the call. An exception is raised, a `BrokenReply` fails midway.
    Text is streamed in pieces of `piece_size` characters, each counted as one token, `pause` seconds apart. Stop strings and
    `max_new_tokens` are honoured as a real model would.
    """

    def __init__(
        self,
        script: Sequence[ScriptedReply] | Callable[[Conversation, SamplingParams], ScriptedReply],
        *,
        piece_size: int = 4,
        pause: float = 0.0,
    ):
        self._script = script if callable(script) else iter(tuple(script))
        self._piece_size, self._pause = piece_size, pause
        self.calls: list[tuple[Conversation, SamplingParams]] = []
        """Every call so far, in order."""
        self.num_cancelled = 0
        """Streams that were closed before their end."""
        self.num_active = 0
        self.max_active = 0
        """The most calls that were under way at once."""

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        return await last_reply(self.stream(conversation, params))

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        require_single(params)
        self.calls.append((conversation, params))
        self.num_active += 1
        self.max_active = max(self.max_active, self.num_active)
        try:
            async for delta in self._play(self._next_reply(conversation, params), params):
                yield delta
        except (GeneratorExit, asyncio.CancelledError):
            self.num_cancelled += 1
            raise
        finally:
            self.num_active -= 1

    def _next_reply(self, conversation: Conversation, params: SamplingParams) -> ScriptedReply:
        if callable(self._script):
            return self._script(conversation, params)
        try:
            return next(self._script)
        except StopIteration:
            raise UsageError(f"The script has ended; this is call {len(self.calls)}.") from None

    async def _play(self, scripted: ScriptedReply, params: SamplingParams) -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(self._pause)
        if isinstance(scripted, Exception):
            raise scripted
        text = scripted if isinstance(scripted, str) else scripted.text
        cut = min((place for stop in params.stop if (place := text.find(stop)) >= 0), default=len(text))
        pieces = [text[start : min(start + self._piece_size, cut)] for start in range(0, cut, self._piece_size)]
        for piece in pieces[: params.max_new_tokens]:
            yield Delta(piece)
            await asyncio.sleep(self._pause)
        if isinstance(scripted, BrokenReply):
            raise scripted.error
        if isinstance(scripted, Reply):
            yield Delta("", scripted)
            return
        finish_reason: FinishReason = "length" if len(pieces) > params.max_new_tokens else "stop"
        pieces = pieces[: params.max_new_tokens]
        yield Delta("", Reply("".join(pieces), finish_reason, completion_tokens=len(pieces)))


# --- any /v1 server -----------------------------------------------------------------------------------------------------------------------


class OpenAIChatModel:
    """A model behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, Ollama, or vistune's own.

    Images are sent as data URLs, so the server needs no access to our files; a web address is handed on as it is, for the server to fetch.
    `base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY. A request is sent once: `Calls` repeats those that fail and
    has to see each; `max_retries` is for use without it.

    Raises RemoteError for what the server refused or failed at, ContextLengthError when it says that the prompt is too long. No error
    shows the key, not even one that quotes a server which echoes it.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | openai.Timeout = 600.0,
        max_retries: int = 0,
    ):
        import openai

        # A server of one's own mostly wants no key, but the client insists on one. OpenAI's key goes to no other server by itself.
        self._key = usable_key(api_key or ("" if base_url else os.environ.get("OPENAI_API_KEY", "")))
        try:
            self._client = openai.AsyncOpenAI(
                api_key=self._key.reveal() or ("none" if base_url else None),
                base_url=base_url,
                timeout=timeout,
                max_retries=max_retries,
                http_client=bounded_client(),
            )
        except openai.OpenAIError as error:
            raise UsageError(f"The OpenAI client cannot be set up: {error}") from error
        self.model, self.max_retries = model, max_retries
        address = urllib.parse.urlsplit(str(self._client.base_url))
        if address.username or address.password or address.query:
            raise UsageError("The server's address holds a password or a query, and addresses end up in logs; give the key as api_key.")
        self.address = address.geturl()
        # OpenAI's newer models refuse the old name of the length limit; servers of one's own may not know the new one.
        self._length_parameter = "max_completion_tokens" if address.hostname == "api.openai.com" else "max_tokens"

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        import openai

        request = await self._request(conversation, params)
        try:
            # The client builds its records unchecked, so the body is read here.
            response = await self._client.chat.completions.with_raw_response.create(**request)
        except openai.OpenAIError as error:
            failure = self._explained(error)
        else:
            return self._read(self._key.hidden_in_bytes(response.content))
        raise failure  # not from the client's error, nor in its context: that quotes the server, which may quote the key

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        import openai

        request = await self._request(conversation, params)
        pieces: list[str] = []
        length, told, finish_reason, usage = 0, 0, None, None
        logprobs: list[Any] = []
        failure: VistuneError | None = None
        try:
            chunks = await self._client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
            async with chunks:  # leaving it, also by aclose(), closes the connection, which is how a server learns of a cancellation
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    for choice in chunk.choices or ():
                        finish_reason = choice.finish_reason or finish_reason
                        if choice.logprobs and choice.logprobs.content:
                            logprobs += [token.model_dump() for token in choice.logprobs.content]
                        if choice.delta and choice.delta.content:
                            length += len(choice.delta.content)
                            pieces.append(choice.delta.content)
                            if length > MAX_BODY:
                                raise ValueError(f"it is longer than {MAX_BODY:,} characters")
                            new, told = tuple(_token_logprob(token) for token in logprobs[told:]), len(logprobs)
                            yield Delta(choice.delta.content, logprobs=new)
            reply = _reply(self.model, "".join(pieces), finish_reason, usage.model_dump() if usage else {}, logprobs or None)
        except openai.OpenAIError as error:
            failure = self._explained(error)
        except _NOT_A_COMPLETION as error:
            failure = _unusable(self.model, error, self._key.hidden_in("".join(pieces)))
        else:
            yield Delta("", reply)
        if failure is not None:
            raise failure

    async def close(self) -> None:
        await self._client.close()

    async def _request(self, conversation: Conversation, params: SamplingParams) -> dict[str, Any]:
        request = await asyncio.to_thread(chat_request, self.model, conversation, params, length_parameter=self._length_parameter)
        # Words of vLLM's, SGLang's and llama.cpp's. A server that does not know them must refuse: its reply would be a wrong one.
        extra: dict[str, Any] = {name: getattr(params, name) for name in ("top_k", "min_p", "cache_salt") if getattr(params, name)}
        if conversation.messages[-1].role == "assistant":
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        if extra:
            request["extra_body"] = extra
        return request

    def _read(self, body: bytes) -> Reply:
        """The reply in the body of an answer with status 200, which may hold anything: a proxy's page, half a document, another schema."""
        try:
            if len(body) > MAX_BODY:
                raise ValueError(f"it is longer than {MAX_BODY:,} bytes")
            completion = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as problem:
            raise _unusable(self.model, problem, body.decode("utf-8", "replace")) from None
        return reply_of(completion, self.model)

    def _explained(self, error: openai.OpenAIError) -> RemoteError | ContextLengthError:
        import openai

        said = self._key.hidden_in(str(error))
        if not isinstance(error, openai.APIStatusError):
            cause = type(error.__cause__).__name__
            reached = cause not in _NOT_CONNECTED
            what = "broke off" if reached else "cannot be reached"
            detail = excerpt(f"{said} {cause}: {self._key.hidden_in(str(error.__cause__))}" if error.__cause__ else said)
            return RemoteError(f"{self.model} at {self.address} {what}: {detail} Check the address and the network.", reached=reached)
        code = error.code if isinstance(error.code, str) else None
        body = error.body if isinstance(error.body, str) else json.dumps(error.body, ensure_ascii=False)
        body = self._key.hidden_in(body)[:_KEPT]
        detail = f": {excerpt(body)}" if isinstance(error.body, str) else ""  # the client's own message leaves a page out
        message = f"{self.model} at {self.address} answered {error.status_code}: {excerpt(said)}{detail}"
        if code == "context_length_exceeded":
            return ContextLengthError(message)
        return RemoteError(message, status=error.status_code, code=code, retry_after=retry_after(error.response.headers), body=body)


# By name, because the client is built on httpx before version 3 and on httpx2 since.
_NOT_CONNECTED = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"}
_NOT_A_COMPLETION = (ValueError, LookupError, TypeError, AttributeError)
_KEPT = 4096
"""How much of an answer that cannot be used its error carries, in characters."""


def chat_request(
    model: str, conversation: Conversation, params: SamplingParams, *, length_parameter: str = "max_completion_tokens"
) -> dict[str, Any]:
    """The body of a `/v1/chat/completions` request. Reads the files of the conversation's images.

    Args:
        length_parameter: what the server calls the length limit; servers of one's own may know only `max_tokens`.
    """
    require_single(params)
    request: dict[str, Any] = {
        "model": model,
        "messages": _openai_messages(conversation),
        "temperature": params.temperature,
        "top_p": params.top_p,
        length_parameter: params.max_new_tokens,
    }
    if params.stop:
        request["stop"] = list(params.stop)
    if params.seed is not None:
        request["seed"] = params.seed
    if params.logprobs is not None:
        request |= {"logprobs": True, "top_logprobs": params.logprobs}
    if params.frequency_penalty:
        request["frequency_penalty"] = params.frequency_penalty
    if params.presence_penalty:
        request["presence_penalty"] = params.presence_penalty
    if params.logit_bias:
        request["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    if params.response_schema is not None:
        request["response_format"] = _response_format(params.response_schema)
    return request


def _response_format(schema: str) -> dict[str, Any]:
    """Strict: a server that cannot keep its reply to the schema must say so, for whoever asked counts on it."""
    if schema == ANY_OBJECT:
        return {"type": "json_object"}
    try:
        return {"type": "json_schema", "json_schema": {"name": "reply", "schema": json.loads(schema), "strict": True}}
    except (ValueError, RecursionError):
        raise ResponseSchemaError("The reply's schema is no JSON.") from None


def reply_of(completion: Any, model: str) -> Reply:
    """The reply in a server's completion, as parsed from JSON and not yet checked.

    Raises RemoteError with status 200 for what is no completion, or one that was withheld or broken off.
    """
    try:
        choice = completion["choices"][0]
        message, logprobs = choice["message"], choice.get("logprobs") or {}
        text = message.get("content") or message.get("refusal") or ""  # a refusal is a reply; whoever reads it decides
        return _reply(model, text, choice.get("finish_reason"), completion.get("usage") or {}, logprobs.get("content"))
    except _NOT_A_COMPLETION as problem:
        raise _unusable(model, problem, json.dumps(completion, ensure_ascii=False)) from None


def _reply(model: str, text: Any, finish_reason: Any, usage: Mapping[str, Any], logprobs: Sequence[Any] | None) -> Reply:
    if not isinstance(text, str):
        raise TypeError(f"its content is {type(text).__name__}, not text")
    if finish_reason == "content_filter":
        raise RemoteError(f"{model} withheld its reply (content filter).", status=200, code="content_filter")
    if finish_reason is None:
        raise RemoteError(f"{model} broke off its reply after {len(text)} characters; ask again.", status=200, body=text[:_KEPT])
    return Reply(
        text,
        "length" if finish_reason == "length" else "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count(usage.get("prompt_tokens_details") or {}, "cached_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        logprobs=tuple(_token_logprob(token) for token in logprobs) if logprobs is not None else None,
    )


def _unusable(model: str, problem: Exception, received: str) -> RemoteError:
    found = f"{type(problem).__name__}: {excerpt(str(problem), 100)}"
    return RemoteError(
        f"{model} answered with what is no chat completion ({found}); it begins {excerpt(received, 100)!r}. "
        "Check that the address is that of an OpenAI-compatible server.",
        status=200,
        body=received[:_KEPT],
    )


def _count(usage: Mapping[str, Any], name: str) -> int:
    """A number of tokens; 0, which is to say unknown, for what can be none."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def _token_logprob(token: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((str(each["token"]), _logprob(each["logprob"])) for each in token.get("top_logprobs") or ())
    return TokenLogprob(str(token["token"]), _logprob(token["logprob"]), top)


def _logprob(value: Any) -> float:
    """A finite number: servers write minus infinity as -inf, null or -9999, and JSON knows only the last."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -9999.0


def _openai_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as the API's messages; reads the image files."""
    if not conversation.messages:
        raise UsageError("The conversation has no messages; there is nothing to answer.")
    return [{"role": message.role, "content": _content(message)} for message in conversation.messages]


def _content(message: Message) -> str | list[dict[str, Any]]:
    if all(isinstance(part, TextPart) for part in message.parts):
        return message.text
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            content.append({"type": "image_url", "image_url": {"url": image_url(part)}})
        else:
            raise UsageError("The chat completions API takes no videos; send some of its frames as images.")
    return content


def image_url(image: ImagePart) -> str:
    """An address that carries the image: a data URL of the file's bytes, or the address that it already is.

    Raises ImageError when the file cannot be read or is none of the formats that such servers know.
    """
    if isinstance(image.source, str):
        return image.source
    try:
        data = image.source.read_bytes() if isinstance(image.source, Path) else image.source
    except OSError as error:
        raise ImageError("missing", f"{image.source} cannot be read ({error.strerror}); check the path.") from error
    kind = _media_type(data)
    if kind is None:
        name = image.source if isinstance(image.source, Path) else "The image"
        raise ImageError("format", f"{name} is no JPEG, PNG, WebP or GIF file; convert it to one of these.")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _media_type(data: bytes) -> str | None:
    """The type by the file's first bytes: a name may lie, and servers compare."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None
