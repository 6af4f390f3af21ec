"""What a client may ask: a request's body, from bytes to a conversation and sampling parameters.

    bytes ─parse_json─► object ─Body─► checked fields ─messages.py─► Conversation
                                          └─► SamplingParams, stream, usage

Everything untrusted is read here and in `messages.py`, limits before work. Numbers are strict and finite; fields that are not known are
ignored, as OpenAI's clients send many, but one that would change the reply and cannot be honoured is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vistune.media import DEFAULT_LIMITS, ImageLimits
from vistune.serve.failures import ApiError, bad_request
from vistune.serve.messages import PictureSources, conversation_of, writable
from vistune.types import ANY_OBJECT, Conversation, SamplingParams


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for at most."""

    body_bytes: int = 32 << 20
    messages: int = 256
    characters: int = 500_000
    """Of all texts together; checked before anything is tokenised, which is what finds out about the model's context."""
    images: int = 16
    max_tokens: int = 4096
    default_tokens: int = 1024
    """Longest reply where the request names no limit."""
    choices: int = 8
    schema_bytes: int = 65_536
    image: ImageLimits = DEFAULT_LIMITS
    sources: PictureSources = field(default_factory=PictureSources)
    """Where pictures may come from that are not in the request."""


@dataclass(frozen=True)
class ChatRequest:
    """A request that was understood. `model` is empty where the client named none."""

    model: str
    conversation: Conversation
    params: SamplingParams
    stream: bool
    include_usage: bool


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool | None = None


class _NamedSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(BaseModel):
    """`schema` beside `json_object` is llama.cpp's and others' way of giving one."""

    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _NamedSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_StopString = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """The fields that are honoured. What depends on the server's limits is checked after."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, max_length=256)
    messages: list[Any] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: _StopString | Annotated[list[_StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    continue_final_message: bool | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[_TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    response_format: _ResponseFormat | None = None
    cache_salt: str | None = Field(None, max_length=256)


_NOT_HONOURED: Mapping[str, Sequence[Any]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "repetition_penalty": (None, 1),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "use_beam_search": (None, False),
    "web_search_options": (None,),
}
"""Fields that would change the reply, each with the values that ask for nothing."""


def read_request(body: bytes, limits: RequestLimits) -> ChatRequest:
    """A request from its body. Reads and checks the headers of its pictures, so it belongs in a thread.

    Raises:
        ApiError: 400 for whatever is wrong with it; `param` names the field.
    """
    fields = parse_json(body)
    if not isinstance(fields, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
    for name, neutral in _NOT_HONOURED.items():
        if name in fields and fields[name] not in neutral:
            raise bad_request("This server does not support this parameter; leave it out.", param=name, code="unsupported_parameter")
    checked = _checked(fields)
    return ChatRequest(
        model=writable(checked.model or "", "model"),
        params=_params(checked, limits),
        conversation=conversation_of(
            checked.messages,
            max_messages=limits.messages,
            max_characters=limits.characters,
            max_images=limits.images,
            image_limits=limits.image,
            continued=bool(checked.continue_final_message),
            sources=limits.sources,
        ),
        stream=bool(checked.stream),
        include_usage=bool(checked.stream_options and checked.stream_options.include_usage),
    )


def parse_json(body: bytes) -> Any:
    """The body's JSON: UTF-8, finite numbers, no key twice.

    Raises:
        ApiError: 400 with the code `invalid_json`.
    """
    try:
        return json.loads(
            body.decode("utf-8"), parse_int=_whole_number, parse_constant=_not_a_number, object_pairs_hook=_without_duplicates
        )
    except UnicodeDecodeError:
        raise bad_request("The body is not valid UTF-8.", code="invalid_json") from None
    except (ValueError, RecursionError):  # too many digits and too many brackets come as these as well
        raise bad_request("The body is not valid JSON.", code="invalid_json") from None


def _whole_number(digits: str) -> int:
    if len(digits) > 100:  # no field's; reading many long ones takes a third of a second, in which nobody else is served
        raise ValueError("a number has too many digits")
    return int(digits)


def _not_a_number(_word: str) -> None:
    raise ValueError("JSON has no NaN and no Infinity")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):  # two parsers would take two different values
        raise ValueError("a key stands twice")
    return fields


def _checked(fields: dict[str, Any]) -> Body:
    try:
        return Body.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=True, include_input=False)[0]
        raise bad_request(_explained(first), param=str(first["loc"][0]), code=_code(first)) from None


def _code(problem: Mapping[str, Any]) -> str:
    return "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"


def _explained(problem: Mapping[str, Any]) -> str:
    """A fixed text for what pydantic found: its own words would quote what was sent."""
    bounds = problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            return "This field is required."
        case "greater_than_equal":
            return f"The number is too small; at least {bounds['ge']} is allowed."
        case "less_than_equal":
            return f"The number is too large; at most {bounds['le']} is allowed."
        case "less_than" | "finite_number":
            return "The number is out of range."
        case "too_short" | "string_too_short":
            return "This must not be empty."
        case "too_long" | "string_too_long":
            return f"This is too long; at most {bounds['max_length']} are allowed."
        case "literal_error" | "string_pattern_mismatch":
            return "The value is none of those that are known."
    return "The value has the wrong type."


def _params(body: Body, limits: RequestLimits) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if (body.n or 1) > limits.choices:
        raise bad_request(f"At most {limits.choices} choices are drawn at once.", param="n")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_new_tokens=_max_new_tokens(body, limits),
        # OpenAI's defaults, which clients count on when they leave a field out.
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=tuple(writable(text, "stop") for text in stop),
        seed=body.seed,
        n=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        response_schema=_response_schema(body, limits),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        cache_salt=writable(body.cache_salt or "", "cache_salt"),
    )


def _response_schema(body: Body, limits: RequestLimits) -> str | None:
    """The schema that the reply is held to, as text; whether it is one, the model says."""
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if body.continue_final_message:
        raise bad_request("A reply with a response_format cannot continue a message.", param="response_format")
    if asked.type == "json_schema" and asked.json_schema is None:
        text = 'Expected {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.'
        raise bad_request(text, param="response_format")
    schema = asked.json_schema.schema_ if asked.json_schema else asked.schema_
    if schema is None:
        return ANY_OBJECT
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):  # 1e999 is infinite
        raise bad_request("The schema holds a number out of range, or is nested too deeply.", param="response_format") from None
    if len(writable(text, "response_format").encode()) > limits.schema_bytes:
        raise bad_request(f"The schema is too long; at most {limits.schema_bytes:,} bytes are read.", param="response_format")
    return text


def _max_new_tokens(body: Body, limits: RequestLimits) -> int:
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked is None:
        return min(limits.default_tokens, limits.max_tokens)
    if asked > limits.max_tokens:
        raise bad_request(f"At most {limits.max_tokens} tokens are written in one reply.", param=name)
    return asked


def too_large(limits: RequestLimits) -> ApiError:
    return ApiError(413, "request_too_large", f"The body is too large; at most {limits.body_bytes:,} bytes are read.")
