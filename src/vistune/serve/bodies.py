"""A request's body, from the wire to bytes: what is wrong with its headers, its size, its pace or its make-up is said before it is parsed.

headers ─► 415, 413 ─► a place in the house ─► bytes as they come ─► 408, 413, 429, 400 ─► schemas.py
"""

from __future__ import annotations

import asyncio

from vistune.serve.edge import Receive, Scope
from vistune.serve.failures import ApiError, bad_request
from vistune.serve.gate import Place
from vistune.serve.replies import ClientGone
from vistune.serve.schemas import RequestLimits, too_large

_COMMAS_BESIDES_TEXT = 16_384
"""JSON with a million values takes half a second to parse, in which nobody else is served: it is C code, and no other thread gets a turn.
Each value but the first of its list or object has a comma before it, so commas tell. A body may hold this many, and as many again as a
quarter of the characters that its texts may have: in tables of figures every fifth is one."""


def check_headers(scope: Scope, limits: RequestLimits) -> int:
    """The size that the headers announce, in bytes; 0 where they announce none.

    Raises:
        ApiError: 415 for what is not plain JSON, 413 for too much of it.
    """
    headers = {name.lower(): value for name, value in scope["headers"]}
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        # Also what keeps other sites' pages out: a browser sends them JSON only after it asked, and is not told yes.
        raise ApiError(415, "unsupported_media_type", "The body must be JSON, with the header Content-Type: application/json.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(415, "unsupported_media_type", "The body must not be compressed.")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18 or int(length) > limits.body_bytes:
        raise too_large(limits)
    return int(length)


async def read_body(receive: Receive, place: Place, limits: RequestLimits, seconds: float) -> bytes:
    """The whole body.

    Args:
        seconds: how long the client may take to send it.

    Raises:
        ApiError: 408 too slow, 413 too large, 429 too much with all others', 400 more values than any request has.
        ClientGone: the client left before the end.
    """
    body, commas = bytearray(), limits.characters // 4 + _COMMAS_BESIDES_TEXT
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                place.hold(len(chunk))
                body += chunk
                commas -= chunk.count(b",")
                if len(body) > limits.body_bytes:
                    raise too_large(limits)
                if commas < 0:
                    raise bad_request("The body holds more values than any request needs.", code="invalid_json")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, "request_timeout", "The request took too long to arrive.") from None
