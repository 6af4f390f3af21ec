"""Every answer that is no reply: one record, one shape, one table of what the rooms below may raise.

    bad request ─► ApiError ─────────────────────────┐
    VistuneError of the model ─explained─► ApiError ─┴─► {"error": {"message", "type", "param", "code"}}, as OpenAI's clients expect

The texts are fixed. Nothing that a client sent, no path and no class name is quoted in one; what happened is in the log, under the id that
the client was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistune.errors import (
    ContextLengthError,
    DataError,
    ImageCountError,
    ImageError,
    MissingDependency,
    OutOfMemory,
    RemoteError,
    ResponseSchemaError,
    UsageError,
    VistuneError,
)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client is told instead of a reply.

    Attributes:
        param: the field of the request that is at fault, such as `messages.0.content`.
        retry_after: seconds after which asking again is worth it.
    """

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, message, param=param)


IMAGE_TEXTS: Mapping[str, str] = {
    "url": "This server fetches no addresses. Send the picture itself, as data:image/png;base64,... (or jpeg, webp, gif).",
    "data_url": "This is no readable data: address. Expected data:image/png;base64, (or jpeg, webp, gif) and the image file in base64.",
    "empty": "The picture is empty.",
    "bytes": "The picture's file is too large; save it smaller.",
    "format": "The picture is none of PNG, JPEG, WebP and GIF.",
    "truncated": "The picture's file is incomplete.",
    "parts": "The picture's file has more parts than are read; save it again with an image editor.",
    "memory": "The picture is too large to be decoded now; scale it down.",
    "time": "The picture takes too long to decode; save it again with an image editor.",
    "pixels": "The picture has too many pixels; scale it down.",
    "side": "The picture is too wide or too high; scale it down.",
    "min_side": "The picture is too small; each side needs two pixels at least.",
    "aspect": "The picture is too long for its width; crop it.",
    "padded": "The picture is too long for its width; crop it or scale it down.",
}


def image_failure(error: ImageError, param: str | None = None) -> ApiError:
    """The answer to a picture that was refused, by the error's reason."""
    text = IMAGE_TEXTS.get(error.reason, "The picture's file is damaged; save it again with an image editor.")
    return bad_request(text, param=param, code="unsupported_image_url" if error.reason == "url" else "invalid_image")


def explained(error: VistuneError) -> ApiError:
    """What a client is told of an error that the model raised."""
    match error:
        case ImageError():
            return image_failure(error, "messages")
        case ContextLengthError():
            text = "The conversation is longer than the model's context. Shorten it, drop early turns, or send fewer pictures."
            return bad_request(text, param="messages", code="context_length_exceeded")
        case ImageCountError():
            return bad_request("The model does not take this number of pictures, or takes none here.", param="messages")
        case DataError():
            text = "The model cannot read these messages. After at most one system message, user and assistant take turns."
            return bad_request(text, param="messages")
        case ResponseSchemaError():
            text = (
                "Replies cannot be held to this schema: it is invalid, cannot be fulfilled, is too costly, or uses what is not supported."
            )
            return bad_request(text, param="response_format", code="unsupported_schema")
        case MissingDependency():
            text = "This server is installed without what holds replies to a format; leave it out."
            return bad_request(text, param="response_format", code="unsupported_parameter")
        case UsageError():
            return bad_request("The model does not take these parameters.")
        case OutOfMemory():
            return ApiError(503, "overloaded", "The server is short of memory; ask again later, or ask for less.", retry_after=5)
        case RemoteError():
            return _of_a_server_behind(error)
    return internal_error()


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "The server failed at this request. Its log says why, under this answer's x-request-id.")


def _of_a_server_behind(error: RemoteError) -> ApiError:
    if error.status == 429:
        wait = 5 if error.retry_after is None else min(max(round(error.retry_after), 1), 3600)
        return ApiError(429, "rate_limit_exceeded", "The model is busy; ask again later.", retry_after=wait)
    if error.status in (400, 413, 422):
        return bad_request("The model's server refused this request.")
    if error.status in (401, 403, 404):  # our key, or our name for the model; not the client's
        text = "The server behind this model does not answer us; whoever runs this one has to mend that."
        return ApiError(502, "model_unavailable", text, retry_after=60)
    wait = 5 if error.retry_after is None else min(max(round(error.retry_after), 1), 3600)
    if error.status == 503 or not error.reached:
        return ApiError(503, "model_unavailable", "The model cannot be reached at the moment; ask again later.", retry_after=wait)
    return ApiError(502, "model_unavailable", "The model broke off or cannot be reached; ask again later.", retry_after=wait)
