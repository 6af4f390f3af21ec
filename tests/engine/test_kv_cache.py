"""The key-value arena: growth, forks, limits, and sequences that stay whole when a forward pass fails."""

from __future__ import annotations

import pytest
import torch
import transformers

from vistune.engine.kv_cache import GROWTH_STEP, KVArena, KVSequence, KVShape
from vistune.errors import OutOfMemory, UsageError

SHAPE = KVShape(layers=2, heads=3, head_dim=4)
STEP_BYTES = GROWTH_STEP * 2 * 2 * 3 * 4 * 4  # tokens · keys and values · layers · heads · width · fp32


def arena_of(steps: int | None = None) -> KVArena:
    return KVArena(SHAPE, dtype=torch.float32, max_bytes=None if steps is None else steps * STEP_BYTES)


def write(arena: KVArena, sequence: KVSequence, tokens: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Appends random tokens to all layers, as a forward pass does; returns what the last append of each layer gave back."""
    generator = torch.Generator().manual_seed(seed)
    view = arena.view([sequence])
    view.prepare([tokens])
    seen = []
    for layer in range(SHAPE.layers):
        keys, values = torch.randn(2, SHAPE.heads, tokens, SHAPE.head_dim, generator=generator)
        seen.append(view.append(layer, 0, keys, values))
    view.commit([tokens])
    return seen


def test_keys_and_values_come_back_in_order_across_growth():
    arena = arena_of()
    sequence = arena.allocate()
    first = [keys.clone() for keys, _ in write(arena, sequence, GROWTH_STEP, seed=1)]
    later = write(arena, sequence, 5, seed=2)
    assert sequence.length == GROWTH_STEP + 5
    for old, (keys, values) in zip(first, later, strict=True):
        assert keys.shape == values.shape == (3, GROWTH_STEP + 5, 4)
        assert torch.equal(keys[:, :GROWTH_STEP], old)


def test_one_token_at_a_time_does_not_copy_the_past_each_time():
    arena = arena_of()
    sequence = arena.allocate()
    storages = set()
    for _ in range(10 * GROWTH_STEP):
        write(arena, sequence, 1)
        storages.add(sequence.storage.data_ptr())
    assert len(storages) < 10


def test_reserved_room_is_not_grown():
    arena = arena_of()
    sequence = arena.allocate(reserve=200)
    storage = sequence.storage
    write(arena, sequence, 200)
    assert sequence.storage is storage


def test_a_fork_begins_with_the_prefix_and_goes_its_own_way():
    arena = arena_of()
    source = arena.allocate()
    write(arena, source, 10, seed=1)
    fork = arena.fork(source, 6)
    forked = write(arena, fork, 2, seed=2)
    original = write(arena, source, 2, seed=3)
    for (keys, _), (source_keys, _) in zip(forked, original, strict=True):
        assert torch.equal(keys[:, :6], source_keys[:, :6])
        assert not torch.equal(keys[:, 6:8], source_keys[:, 6:8])
    assert (fork.length, source.length) == (8, 12)


def test_truncating_forgets_the_end():
    arena = arena_of()
    sequence = arena.allocate()
    before = [keys.clone() for keys, _ in write(arena, sequence, 10)]
    arena.truncate(sequence, 4)
    after = write(arena, sequence, 1, seed=5)
    for old, (keys, _) in zip(before, after, strict=True):
        assert keys.shape[1] == 5
        assert torch.equal(keys[:, :4], old[:, :4])


def test_over_the_limit_nothing_changes_and_the_message_says_what_to_do():
    arena = arena_of(steps=3)
    first, second = arena.allocate(reserve=GROWTH_STEP), arena.allocate(reserve=GROWTH_STEP)
    view = arena.view([first, second])
    with pytest.raises(OutOfMemory, match="raise the limit"):
        view.prepare([GROWTH_STEP + 1, GROWTH_STEP + 1])  # either would fit alone, both do not
    assert arena.bytes_used == 2 * STEP_BYTES
    assert (first.capacity, second.capacity) == (GROWTH_STEP, GROWTH_STEP)


def test_a_refused_allocation_leaves_no_sequence_behind():
    arena = arena_of(steps=1)
    with pytest.raises(OutOfMemory):
        arena.allocate(reserve=2 * GROWTH_STEP)
    assert (len(arena), arena.bytes_used) == (0, 0)


def test_freed_memory_can_be_used_again():
    arena = arena_of(steps=1)
    arena.free(arena.allocate(reserve=GROWTH_STEP))
    assert arena.bytes_used == 0
    arena.allocate(reserve=GROWTH_STEP)


def test_a_pass_that_fails_halfway_leaves_the_sequence_as_it_was():
    arena = arena_of()
    sequence = arena.allocate()
    expected = [keys.clone() for keys, _ in write(arena, sequence, 4, seed=1)]
    view = arena.view([sequence])
    view.prepare([3])
    view.append(0, 0, torch.full((3, 3, 4), 9.0), torch.full((3, 3, 4), 9.0))  # ... and no commit
    again = write(arena, sequence, 1, seed=2)
    assert sequence.length == 5
    for old, (keys, _) in zip(expected, again, strict=True):
        assert torch.equal(keys[:, :4], old)
        assert not (keys == 9.0).any()


def test_storage_made_in_inference_mode_is_writable_outside_of_it():
    arena = arena_of()
    with torch.inference_mode():
        sequence = arena.allocate(reserve=10)
    write(arena, sequence, 5)
    assert sequence.length == 5


def test_misuse_is_named():
    arena = arena_of()
    sequence = arena.allocate()
    with pytest.raises(UsageError, match="twice"):
        arena.view([sequence, sequence])
    with pytest.raises(UsageError, match="choose 0 to 0"):
        arena.fork(sequence, 1)
    with pytest.raises(UsageError, match="one for each"):
        arena.view([sequence]).prepare([1, 1])
    arena.free(sequence)
    with pytest.raises(UsageError, match="not in the arena"):
        arena.view([sequence])


def test_the_shape_is_read_from_a_configuration_with_or_without_its_own_head_width():
    plain = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    assert KVShape.of(plain) == KVShape(layers=2, heads=4, head_dim=8)
    assert KVShape.of(transformers.LlamaConfig(**plain)) == KVShape(layers=2, heads=4, head_dim=8)
    assert KVShape.of({**plain, "num_key_value_heads": 2, "head_dim": 16}) == KVShape(layers=2, heads=2, head_dim=16)
