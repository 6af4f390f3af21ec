"""What an engine has done so far and holds now, as numbers for whoever watches it. No torch: a server's metrics import it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the engine was made, and at the moment: requests, bytes and prefixes that it holds.

    `prompt_tokens` counts those of admitted requests, `cached_tokens` how many of them were found read already.
    """

    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    steps: int
    kv_bytes_used: int
    kv_bytes_limit: int | None
    kept_prefixes: int
    images_encoded: int
