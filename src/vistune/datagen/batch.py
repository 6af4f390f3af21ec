"""OpenAI's batch files: the same requests at half the price, answered within a day.

`write_batch` writes the requests, to be uploaded by whoever holds the account; `BatchReplies` answers from the files that came back. It is
a `ChatModel`, so a run that reads its replies is the same run as one that asks a server.

A request's `custom_id` is the digest of its body: files need not be kept in order or together, a request that was changed since has no
answer, and the same question is asked once however many pictures share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.chat_model import GREEDY, chat_request, reply_of
from vistune.errors import ContextLengthError, DataError, RemoteError, SaveError
from vistune.journal import atomic_write
from vistune.types import Conversation, Delta, Reply, SamplingParams

MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000
"""What one file may hold; OpenAI takes 50,000 requests and 200 MB, and counts bytes in its own way."""

_ENDPOINT = "/v1/chat/completions"
NO_BATCH_ANSWER = "no_batch_answer"
"""The code of the RemoteError for a request that the files do not answer: it says nothing about any other."""

_UNPROCESSABLE = 422  # a status that nobody repeats: reading the file again changes nothing


@dataclass(frozen=True)
class BatchRequests:
    """What `write_batch` wrote: its files, and how many different requests stand in them."""

    files: tuple[Path, ...]
    requests: int


def write_batch(requests: Iterable[tuple[Conversation, SamplingParams]], path: Path, *, model: str) -> BatchRequests:
    """Writes requests as JSON Lines: `path`, and `path`-2, `path`-3, ... where one file cannot hold them all. Streams its input.

    Raises:
        SaveError: a file is there already, or cannot be written.
        DataError: there are no requests.
    """
    files: list[Path] = []
    seen: set[bytes] = set()
    lines: list[bytes] = []
    size = 0

    def finish_file() -> None:
        nonlocal size
        file = path if not files else path.with_stem(f"{path.stem}-{len(files) + 1}")
        if file.exists():
            raise SaveError(f"{file} exists already; choose another name, requests that may have been paid for are not overwritten.")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, b"".join(lines))
        files.append(file)
        lines.clear()
        size = 0

    for conversation, params in requests:
        body = chat_request(model, conversation, params)
        name = request_id(body)
        if bytes.fromhex(name) in seen:
            continue
        seen.add(bytes.fromhex(name))
        line = json.dumps({"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}, ensure_ascii=False).encode() + b"\n"
        if lines and (len(lines) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            finish_file()
        lines.append(line)
        size += len(line)
    if not seen:
        raise DataError("There is nothing to ask: the source has no usable image.")
    finish_file()
    return BatchRequests(tuple(files), len(seen))


def request_id(body: dict[str, Any]) -> str:
    """The `custom_id` of a request: 40 hexadecimal digits of the sha256 of its body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:40]


class BatchReplies:
    """A `ChatModel` that answers from the result and error files of a batch, and from nothing else.

    Only the places of the answers are held in memory. Where a request was answered more than once, the first success counts.

    Raises DataError, on opening, for a file that is no batch result.
    """

    def __init__(self, files: Sequence[Path], *, model: str):
        self.model = model
        self._places: dict[bytes, tuple[Path, int, bool]] = {}  # request → file, byte, whether it succeeded
        for path in files:
            self._index(path)

    def __len__(self) -> int:
        """How many different requests have an answer, be it an error."""
        return len(self._places)

    def answers(self, conversation: Conversation, params: SamplingParams) -> bool:
        """Whether there is a reply to this request, and not only an error."""
        place = self._places.get(bytes.fromhex(request_id(chat_request(self.model, conversation, params))))
        return place is not None and place[2]

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        name = request_id(chat_request(self.model, conversation, params))
        place = self._places.get(bytes.fromhex(name))
        if place is None:
            raise RemoteError(
                f"The batch files have no answer to request {name}. Give all of them, with the options of the run that wrote the requests.",
                status=_UNPROCESSABLE,
                code=NO_BATCH_ANSWER,
            )
        path, offset, _ = place
        with path.open("rb") as file:
            file.seek(offset)
            return self._reply(json.loads(file.readline()), name)

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        reply = await self.generate(conversation, params)
        yield Delta(reply.text, reply)

    def _index(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"There is no batch file {path}. Download the batch's output file, and its error file if there is one.")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    name, succeeded = _outcome(line, f"{path}, line {number}")
                    known = self._places.get(name)
                    if known is None or (succeeded and not known[2]):
                        self._places[name] = path, offset, succeeded
                offset += len(line)

    def _reply(self, row: dict[str, Any], name: str) -> Reply:
        response = row.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return reply_of(body, self.model)
        error = (body.get("error") if isinstance(body, dict) else None) or row.get("error") or {}
        code, said = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, str(error))
        message = f"Request {name} of the batch was not answered ({status or 'no status'}): {said or code or 'no reason given'}"
        if code == "context_length_exceeded":
            raise ContextLengthError(message)
        raise RemoteError(message, status=_UNPROCESSABLE, code=NO_BATCH_ANSWER)


def _outcome(line: bytes, where: str) -> tuple[bytes, bool]:
    """(request, whether it succeeded) of a line of a result or error file."""
    try:
        row = json.loads(line)
        name = bytes.fromhex(row["custom_id"])
        response = row["response"]
        return name, response is not None and response["status_code"] == 200
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{where} is no line of a batch result ({type(error).__name__}: {error}). Expected JSON Lines with custom_id and response; "
            "was the file downloaded completely, and is it the output and not the input?"
        ) from error
