"""Replies as OpenAI's clients read them: one completion, or the chunks of a stream.

The order of a stream's chunks is what clients count on: for each choice one that names the role, those with text, one with why it
ended; then, if asked for, one without choices that carries the usage; then `[DONE]`.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from vistune.types import Reply, TokenLogprob


class Answer:
    """What all parts of one answer share: its id, its time, the model's name."""

    def __init__(self, model: str, *, with_usage: bool = False):
        self.id, self.created, self.model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model
        # Where a stream ends in a chunk with the usage, OpenAI gives all others a null in its place.
        self._no_usage = {"usage": None} if with_usage else {}
        self._num_told: dict[int, int] = {}
        """How many tokens of a choice were sent with their log-probabilities."""

    def completion(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": None if reply.logprobs is None else logprobs(reply.logprobs),
                "finish_reason": reply.finish_reason,
            }
            for index, reply in enumerate(replies)
        ]
        return self._envelope("chat.completion", choices) | {"usage": usage(replies)}

    def role_chunk(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def text_chunk(self, index: int, text: str, tokens: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        """A piece of a choice's text, and the log-probabilities of the tokens since the last one, if the model tells them as it goes."""
        self._num_told[index] = self._num_told.get(index, 0) + len(tokens)
        return self._chunk(index, {"content": text}, logprobs=logprobs(tokens) if tokens else None)

    def finish_chunk(self, index: int, reply: Reply) -> dict[str, Any]:
        """The last one of a choice. It carries the log-probabilities that no piece of text did."""
        rest = (reply.logprobs or ())[self._num_told.get(index, 0) :]
        return self._chunk(index, {}, logprobs=logprobs(rest) if rest else None, finish_reason=reply.finish_reason)

    def usage_chunk(self, replies: Sequence[Reply]) -> dict[str, Any]:
        return self._envelope("chat.completion.chunk", []) | {"usage": usage(replies)}

    def _chunk(self, index: int, delta: dict[str, Any], **ending: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | ending
        return self._envelope("chat.completion.chunk", [choice]) | self._no_usage

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens: the prompt once, however many choices were drawn from it, its pictures included."""
    prompt, completion = max(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(prompt, max(reply.cached_tokens for reply in replies))},
    }


def logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [_token(each.token, each.logprob) | {"top_logprobs": [_token(token, value) for token, value in each.top]} for each in tokens]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; -9999 is what OpenAI sends for it.
    value = logprob if math.isfinite(logprob) else -9999.0
    return {"token": token, "logprob": value, "bytes": list(token.encode("utf-8", "replace"))}


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "replace")
