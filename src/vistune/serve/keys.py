"""Who may ask: bearer keys, kept as hashes and compared in constant time.

A file holds one key a line (`#` begins a comment), an environment variable holds some with commas between. `metrics:KEY` is a key that
opens `/metrics` and nothing else, for whoever watches the server; every other key opens every route. Nothing that was read is kept but the
hashes, so that no log, traceback or memory dump of this process shows a key that it did not just receive.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from vistune.errors import UsageError
from vistune.http_client import usable_key
from vistune.serve.failures import ApiError

KEY_VARIABLE = "VISTUNE_API_KEY"
_SHORTEST = 16
_LONGEST = 512
_METRICS_ONLY = "metrics:"

Route = Literal["api", "metrics"]
"""What a key may open."""


class ApiKeys:
    """The keys that are let in; without any, everybody is.

    Raises UsageError for a key that is too short to be safe, too long, or that no header can carry, and where no key opens the API.
    """

    def __init__(self, keys: Iterable[str] = ()):
        written = {key.strip() for key in keys}
        watching = {key for key in written if key.startswith(_METRICS_ONLY)}
        if watching and watching == written:
            raise UsageError(f"All keys are for /metrics only, so nobody could ask the model; add one without {_METRICS_ONLY!r} before it.")
        self._hashes = tuple({_hash(_usable(key)) for key in written - watching})
        self._metrics_hashes = tuple({_hash(_usable(key.removeprefix(_METRICS_ONLY))) for key in watching})

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._hashes)})"

    def check(self, headers: Sequence[tuple[bytes, bytes]], route: Route = "api") -> None:
        """Lets a request in by its headers.

        Raises:
            ApiError: 401 without exactly one `Authorization: Bearer KEY` whose key is known.
        """
        if not self._hashes:
            return
        sent = [value for name, value in headers if name.lower() == b"authorization"]
        scheme, _, key = (sent[0] if len(sent) == 1 else b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise ApiError(401, "missing_api_key", "This server wants a key, in one header: Authorization: Bearer KEY.")
        found = hashlib.sha256(key[: _LONGEST + 1]).digest()
        # All are compared, whichever fits, so that the time tells nothing of how many there are or which one is near.
        opening = self._hashes + (self._metrics_hashes if route == "metrics" else ())
        if not sum([hmac.compare_digest(found, known) for known in opening]):
            raise ApiError(401, "invalid_api_key", "This key is not known here.")


def read_keys(file: Path | None, variable: str | None) -> ApiKeys:
    """The keys of a file and of an environment variable's value.

    Raises:
        UsageError: the file cannot be read, names no key, or holds one that cannot be used.
    """
    keys = [key for key in (variable or "").split(",") if key.strip()]
    if file is not None:
        in_file = _lines(file)
        if not in_file:
            raise UsageError(f"{file} holds no key; write one a line, or leave --api-key-file out.")
        keys += in_file
    return ApiKeys(keys)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The keys in {file} cannot be read ({type(error).__name__}); it is a text file with one key a line.") from None
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _usable(key: str) -> str:
    key = usable_key(key).reveal()
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise UsageError(
            f"An API key has {len(key)} characters, and between {_SHORTEST} and {_LONGEST} are needed; make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key


def _hash(key: str) -> bytes:
    # A fast hash is enough: keys of this length are drawn by a machine, not thought of by a person.
    return hashlib.sha256(key.encode()).digest()
