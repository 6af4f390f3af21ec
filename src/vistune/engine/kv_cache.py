"""Keys and values of running sequences, so that a token's past is computed once.

Each sequence has one contiguous block per layer, which attention reads without gathering and which grows by steps, not by copying the
past at every token. A prefix can be forked: a second question about a picture prefills only its new words. Knows nothing of tokens or
requests; the engine decides which sequence gets what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistune.errors import OutOfMemory, UsageError
from vistune.model.decoder import Planes

# L layers · H key-value heads · C capacity in tokens · N new tokens · E head width

GROWTH_STEP = 64
"""Capacity is rounded up to a multiple of this many tokens."""


@dataclass(frozen=True)
class KVShape:
    """What one token's keys and values look like: they take 2 · layers · heads · head_dim numbers."""

    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, text_config: Any) -> KVShape:
        """From a language model's configuration: transformers' object (complete), or a dictionary that names these numbers."""
        settings: Mapping[str, Any] = text_config if isinstance(text_config, Mapping) else text_config.to_dict()
        attention_heads = int(settings["num_attention_heads"])
        return cls(
            layers=int(settings["num_hidden_layers"]),
            heads=int(settings.get("num_key_value_heads") or attention_heads),
            head_dim=int(settings.get("head_dim") or int(settings["hidden_size"]) // attention_heads),
        )


class KVSequence:
    """One sequence's keys and values. Made by `KVArena`; `length` tokens of it are valid."""

    def __init__(self) -> None:
        self.length = 0
        self.storage: Tensor | None = None  # [L, 2, H, C, E]

    @property
    def capacity(self) -> int:
        return 0 if self.storage is None else self.storage.shape[3]


class KVArena:
    """All sequences' keys and values under one byte limit.

    Args:
        shape: `KVShape.of(model.causal_lm.config)`.
        dtype: that of the model's activations.
        max_bytes: allocating beyond it raises OutOfMemory before anything changes; None for no limit.

    Example:
        arena = KVArena(KVShape.of(model.causal_lm.config), dtype=torch.bfloat16)
        sequence = arena.allocate(reserve=300)
        logits = model(batch, kv=arena.view([sequence]))
        arena.free(sequence)
    """

    def __init__(self, shape: KVShape, *, dtype: torch.dtype, device: torch.device | str = "cpu", max_bytes: int | None = None):
        self.shape, self.dtype, self.device, self.max_bytes = shape, dtype, torch.device(device), max_bytes
        self.bytes_per_token = 2 * shape.layers * shape.heads * shape.head_dim * dtype.itemsize
        self.bytes_used = 0
        self._sequences: set[KVSequence] = set()

    def __len__(self) -> int:
        return len(self._sequences)

    def allocate(self, *, reserve: int = 0) -> KVSequence:
        """An empty sequence with room for `reserve` tokens; reserving prompt and answer together means it never has to grow."""
        sequence = KVSequence()
        self._grow(sequence, reserve)
        self._sequences.add(sequence)
        return sequence

    def fork(self, source: KVSequence, length: int, *, reserve: int = 0) -> KVSequence:
        """A new sequence that begins with the first `length` tokens of `source`; both can then go on by themselves."""
        self._check(source)
        if not 0 <= length <= source.length:
            raise UsageError(f"Cannot fork {length} tokens from a sequence of {source.length}; choose 0 to {source.length}.")
        sequence = self.allocate(reserve=max(length, reserve))
        if length and sequence.storage is not None and source.storage is not None:
            sequence.storage[:, :, :, :length].copy_(source.storage[:, :, :, :length])
        sequence.length = length
        return sequence

    def truncate(self, sequence: KVSequence, length: int) -> None:
        """Forgets all but the first `length` tokens; the room stays reserved."""
        self._check(sequence)
        if not 0 <= length <= sequence.length:
            raise UsageError(f"Cannot keep {length} tokens of a sequence of {sequence.length}; choose 0 to {sequence.length}.")
        sequence.length = length

    def free(self, sequence: KVSequence) -> None:
        """Gives the sequence's memory back. It cannot be used again."""
        self._check(sequence)
        self._sequences.remove(sequence)
        self.bytes_used -= sequence.capacity * self.bytes_per_token
        sequence.storage, sequence.length = None, 0

    def view(self, sequences: Sequence[KVSequence]) -> KVView:
        """These sequences, in the order in which a ragged batch has their new tokens."""
        for sequence in sequences:
            self._check(sequence)
        if len(set(sequences)) != len(sequences):
            raise UsageError("A sequence is twice in one batch; put its new tokens next to each other as one.")
        return KVView(self, tuple(sequences))

    def make_room(self, wanted: Sequence[tuple[KVSequence, int]]) -> None:
        """Grows sequences to hold the given numbers of tokens; raises OutOfMemory before growing any if they do not fit together."""
        growing = [(sequence, tokens) for sequence, tokens in wanted if tokens > sequence.capacity]
        extra = sum(_capacity_for(sequence, tokens) - sequence.capacity for sequence, tokens in growing) * self.bytes_per_token
        if self.max_bytes is not None and self.bytes_used + extra > self.max_bytes:
            raise OutOfMemory(
                f"The key-value cache holds {self.bytes_used:,} bytes and {extra:,} more are needed, but its limit is {self.max_bytes:,}. "
                f"Wait for sequences to finish, ask for shorter ones, or raise the limit ({self.bytes_per_token:,} bytes a token)."
            )
        for sequence, tokens in growing:
            self._grow_to(sequence, _capacity_for(sequence, tokens))

    def _grow(self, sequence: KVSequence, tokens: int) -> None:
        self.make_room([(sequence, tokens)])

    def _grow_to(self, sequence: KVSequence, capacity: int) -> None:
        shape = self.shape
        with torch.inference_mode(False):  # storage outlives the block it was made in, and must stay writable outside of it
            larger = torch.empty(shape.layers, 2, shape.heads, capacity, shape.head_dim, dtype=self.dtype, device=self.device)
        if sequence.length and sequence.storage is not None:
            larger[:, :, :, : sequence.length].copy_(sequence.storage[:, :, :, : sequence.length])
        self.bytes_used += (capacity - sequence.capacity) * self.bytes_per_token
        sequence.storage = larger

    def _check(self, sequence: KVSequence) -> None:
        if sequence not in self._sequences:
            raise UsageError("This sequence is not in the arena: it was freed, or made by another arena.")


def _capacity_for(sequence: KVSequence, tokens: int) -> int:
    """The first allocation is exact up to rounding; after that at least half again, so that growing copies each token O(1) times."""
    wanted = max(tokens, sequence.capacity * 3 // 2)
    return -(-wanted // GROWTH_STEP) * GROWTH_STEP


@dataclass(frozen=True)
class KVView:
    """The sequences of one ragged batch: what the model is given as `kv`.

    A forward pass calls `prepare` once, `append` once per layer and sequence (or `planes` once), and `commit` at the end; if it fails
    in between, the sequences are as they were.
    """

    arena: KVArena
    sequences: tuple[KVSequence, ...]

    @property
    def lengths(self) -> list[int]:
        """Valid tokens of each sequence: where the new tokens' positions start."""
        return [sequence.length for sequence in self.sequences]

    def prepare(self, new_tokens: Sequence[int]) -> None:
        """Makes room for this many new tokens per sequence. Raises OutOfMemory."""
        if len(new_tokens) != len(self.sequences):
            raise UsageError(f"The batch has {len(new_tokens)} sequences but its key-value view {len(self.sequences)}; give one for each.")
        self.arena.make_room([(sequence, sequence.length + new) for sequence, new in zip(self.sequences, new_tokens, strict=True)])

    def append(self, layer: int, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values [H, N, E] of one sequence and returns all of its own, past and new: two [H, past + N, E] views."""
        sequence = self.sequences[index]
        assert sequence.storage is not None
        end = sequence.length + keys.shape[1]
        stored_keys, stored_values = sequence.storage[layer, 0], sequence.storage[layer, 1]
        stored_keys[:, sequence.length : end] = keys
        stored_values[:, sequence.length : end] = values
        return stored_keys[:, :end], stored_values[:, :end]

    def planes(self, new_tokens: Sequence[int]) -> list[Planes]:
        """After `prepare`: every sequence's place for its new tokens, and its keys and values with them, in every layer."""
        planes = []
        for sequence, new in zip(self.sequences, new_tokens, strict=True):
            storage, past = sequence.storage, sequence.length
            assert storage is not None
            planes.append(
                Planes(
                    past,
                    slots=storage[:, :, :, past : past + new].unbind(0),
                    keys=storage[:, 0:1, :, : past + new].unbind(0),
                    values=storage[:, 1:2, :, : past + new].unbind(0),
                )
            )
        return planes

    def commit(self, new_tokens: Sequence[int]) -> None:
        """Counts the new tokens as past, after all layers have stored them."""
        for sequence, new in zip(self.sequences, new_tokens, strict=True):
            sequence.length += new
