"""Conversations as tensors → one ragged batch, and how many of its tokens are answers to learn.

Laying end to end itself lives in `model/inputs.py`, where the engine uses it too.
"""

from __future__ import annotations

from collections.abc import Sequence

from vistune.errors import EmptyMaskError
from vistune.model.inputs import IGNORE_INDEX, ModelInputs, RaggedBatch, lay_end_to_end


def supervised_tokens(inputs: ModelInputs) -> int:
    """How many tokens the loss of this conversation sums over. The first token is never predicted, whatever its label."""
    return 0 if inputs.labels is None else int((inputs.labels[1:] != IGNORE_INDEX).sum())


def collate(inputs: Sequence[ModelInputs]) -> RaggedBatch:
    """Lays training conversations end to end. Raises EmptyMaskError when there would be nothing to learn from the batch."""
    if not any(supervised_tokens(each) for each in inputs):
        raise EmptyMaskError(
            f"None of these {len(inputs)} conversations has a token to learn. Does the template mark the answers of this data (see "
            "`data.mask`)?"
        )
    return lay_end_to_end(inputs)
