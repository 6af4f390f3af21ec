"""What talking to a server over HTTP needs besides the client: a key that stays hidden, answers with an end, and what Retry-After means.

Used by the client for OpenAI-compatible servers in `chat_model.py`. Nothing here knows what a chat is.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from vistune.errors import UsageError

MAX_BODY = 4 << 20
"""The longest answer that is read, in bytes: 100 times what the longest replies need; a server that never ends must not fill the memory."""
MAX_EVENT = 1 << 20
"""The longest single event of a stream, in bytes."""
MAX_STREAM = 64 << 20
"""The longest stream, in bytes: some 4,000 tokens with their twenty alternatives each take a sixth of it."""


class Secret:
    """A key that does not show itself: neither printed, nor in a traceback, nor in what a server echoes."""

    def __init__(self, value: str):
        self._value = value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def reveal(self) -> str:
        return self._value

    def hidden_in(self, text: str) -> str:
        """The text with `***` wherever the secret stands in it."""
        return text.replace(self._value, "***") if self._value else text

    def hidden_in_bytes(self, content: bytes) -> bytes:
        """The same for text that may not be text."""
        return content.replace(self._value.encode(), b"***") if self._value else content


def usable_key(key: str) -> Secret:
    """The key without the newline that files end in. What no header can carry is refused here: the HTTP client's error would show it."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("The API key holds characters that no key has, such as curly quotes or line breaks; copy it again.")
    return Secret(key)


def bounded_client() -> Any:
    """The client's own HTTP client, except that it reads no answer much longer than `MAX_BODY` and goes nowhere but to its own address.

    A server that redirects would have words and pictures sent to a place that nobody chose, also one inside a network of ours.
    """
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            response = await super().send(request, stream=True, **options)
            if stream and response.is_success:  # a redirect too is read here, where what breaks off is told as the client tells it
                response.aiter_bytes = _with_an_end(response.aiter_bytes())
                return response
            body = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY:
                        break
            finally:
                await response.aclose()
            of_the_transfer = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in of_the_transfer]
            return type(response)(response.status_code, headers=headers, content=bytes(body), request=response.request)

    return BoundedClient(follow_redirects=False)


def _with_an_end(chunks: AsyncIterator[bytes]) -> Any:
    """The chunks of a stream, or a ValueError for one that is too long, or whose event does not end: the client gathers those whole."""

    async def bounded() -> AsyncIterator[bytes]:
        total = of_event = 0
        tail = b""
        async for chunk in chunks:
            total += len(chunk)
            seen = tail + chunk
            end = max(seen.rfind(blank) for blank in (b"\n\n", b"\r\n\r\n", b"\r\r"))
            of_event = len(seen) - end if end >= 0 else of_event + len(chunk)
            tail = seen[-3:]
            if total > MAX_STREAM or of_event > MAX_EVENT:
                raise ValueError(f"it is longer than {MAX_STREAM:,} bytes, or one event of it than {MAX_EVENT:,}")
            yield chunk

    return bounded


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, from either form of Retry-After; None where it says nothing that can be read."""
    asked = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        seconds = float(asked)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError):
        until = email.utils.parsedate_to_datetime(asked)
        # Against the server's own clock where it shows one: ours may be wrong.
        now = email.utils.parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.datetime.now(datetime.UTC)
        return max((until.astimezone(datetime.UTC) - now.astimezone(datetime.UTC)).total_seconds(), 0.0)
    return None


def excerpt(text: str, length: int = 300) -> str:
    """The beginning of what a server said, on one line."""
    words = " ".join(text[: 4 * length].split())
    return words if len(words) <= length else words[: length - 1] + "…"
