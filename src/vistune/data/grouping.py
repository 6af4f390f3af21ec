"""The official trainer's order of an epoch: like lengths together, and text-only rows apart from rows with pictures. No torch here.

For comparison only. It was made to save padding, of which ragged batches have none, and it costs some of the mixing: a step's rows are
alike in length. What the official code draws from the process's global generator is drawn here from (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Sequence

from vistune.data.sampler import shuffled
from vistune.types import Conversation


def official_length(conversation: Conversation) -> int:
    """Length as the official trainer estimates it: words between white space, one for each `<image>`; negative without a picture."""
    words = sum(len(message.text.split()) + len(message.images) for message in conversation.messages)
    return words if conversation.images else -words


def length_grouped(lengths: Sequence[int], batch: int, key: str) -> list[int]:
    """All places in a random order in which each run of `batch` places is sorted by length, longest first.

    The official code also divides each run among its devices; which device gets which row of a step is the planner's to say here.
    """
    mixed = _permutation(len(lengths), key)
    runs = (mixed[start : start + batch] for start in range(0, len(mixed), batch))
    return [place for run in runs for place in sorted(run, key=lambda place: -lengths[place])]


def modality_grouped(lengths: Sequence[int], batch: int, key: str) -> list[int]:
    """All places in an order whose steps of `batch` rows have all a picture or none has, except for the last one or two of the epoch.

    Args:
        lengths: of `official_length`: above zero with a picture, below zero without, never zero.
        batch: rows of an optimizer step.
        key: what the order is drawn from; names the seed and the epoch.
    """
    kinds = [[place for place, length in enumerate(lengths) if (length > 0) == pictures] for pictures in (True, False)]
    if not all(kinds):
        return length_grouped([abs(length) for length in lengths], batch, f"{key}:all")
    runs: list[list[int]] = []
    left_over: list[int] = []
    for name, places in zip(("pictures", "text"), kinds, strict=True):
        order = [places[each] for each in length_grouped([abs(lengths[place]) for place in places], batch, f"{key}:{name}")]
        *full, last = [order[start : start + batch] for start in range(0, len(order), batch)]
        runs += full
        left_over += last
    return [place for run in _permutation(len(runs), f"{key}:runs") for place in runs[run]] + sorted(left_over)


def _permutation(size: int, key: str) -> list[int]:
    return [shuffled(place, size, key) for place in range(size)]
