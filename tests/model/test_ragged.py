"""Ragged attention against an explicit mask, and the modes that fix bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.engine.kv_cache import KVArena, KVShape
from vistune.errors import UsageError
from vistune.model.block_attention import attend_in_blocks
from vistune.model.ragged import attend_once, fixed_row_tiles, ragged_attention, steady_rows

HEADS, GROUPS, WIDTH = 4, 2, 8
LENGTHS = [5, 1, 9]


class Attention(nn.Module):
    layer_idx = 0


def states(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens)
    return tuple(torch.randn(1, heads, tokens, WIDTH, dtype=dtype) for heads in (HEADS, GROUPS, GROUPS))


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def by_explicit_mask(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    """All pairs at once: same sequence, not later, not further back than the window."""
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    back = place[:, None] - place[None]
    visible = (owner[:, None] == owner[None]) & (back >= 0) & (back < (window or 10**6))
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3, 20])
def test_no_token_sees_another_sequence_the_future_or_beyond_the_window(window):
    query, key, value = states(sum(LENGTHS))
    output, _ = ragged_attention(Attention(), query, key, value, scaling=0.3, sliding_window=window, cu_seqlens=boundaries(LENGTHS))
    torch.testing.assert_close(output, by_explicit_mask(query, key, value, LENGTHS, window))


@pytest.mark.parametrize("window", [None, 3])
def test_queries_at_some_rows_give_those_rows(window):
    query, key, value = states(sum(LENGTHS))
    rows = [0, 3, 5, 12, 14]
    options = {"scaling": 0.3, "sliding_window": window, "cu_seqlens": boundaries(LENGTHS)}
    full, _ = ragged_attention(Attention(), query, key, value, **options)
    some, _ = ragged_attention(Attention(), query[:, :, rows], key, value, rows=rows, **options)
    torch.testing.assert_close(some, full[:, rows])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_reading_in_chunks_against_an_arena_equals_reading_at_once(chunk, window):
    query, key, value = states(9)
    whole, _ = ragged_attention(Attention(), query, key, value, scaling=0.3, sliding_window=window, cu_seqlens=boundaries([9]))
    arena = KVArena(KVShape(layers=1, heads=GROUPS, head_dim=WIDTH), dtype=torch.float64)
    sequence = arena.allocate()
    pieces = []
    for part in (slice(start, min(start + chunk, 9)) for start in range(0, 9, chunk)):
        view, new = arena.view([sequence]), [part.stop - part.start]
        view.prepare(new)
        parts = (tensor[:, :, part] for tensor in (query, key, value))
        options = {"scaling": 0.3, "sliding_window": window, "cu_seqlens": boundaries(new), "kv": view}
        pieces.append(ragged_attention(Attention(), *parts, **options)[0])
        view.commit(new)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_gradients_equal_those_of_the_explicit_mask():
    tensors = [tensor.requires_grad_() for tensor in states(sum(LENGTHS))]
    output, _ = ragged_attention(Attention(), *tensors, scaling=0.3, sliding_window=3, cu_seqlens=boundaries(LENGTHS))
    weights = torch.randn_like(output)
    ours = torch.autograd.grad((output * weights).sum(), tensors)
    expected = torch.autograd.grad((by_explicit_mask(*tensors, LENGTHS, 3) * weights).sum(), tensors)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lengths", [[130, 1, 300, 128], [5], []])
def test_attention_in_blocks_has_the_values_and_gradients_of_the_explicit_mask(lengths):
    tensors = [tensor.requires_grad_() for tensor in states(sum(lengths))]
    output = attend_in_blocks(*tensors, boundaries(lengths).tolist(), 0.3)
    expected = by_explicit_mask(*tensors, lengths, None) if lengths else output
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(output)
    ours = torch.autograd.grad((output * weights).sum(), tensors, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), tensors)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_in_half_precision_blocks_are_as_near_to_exact_as_the_kernel_and_keep_only_their_inputs():
    lengths = [150, 20]
    exact = states(sum(lengths), torch.float32)
    reference = by_explicit_mask(*exact, lengths, None)
    half = [tensor.bfloat16().requires_grad_() for tensor in exact]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
        output, _ = ragged_attention(Attention(), *half, scaling=0.3, cu_seqlens=boundaries(lengths))
    assert sum(kept) == sum(tensor.nbytes for tensor in half)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), reference, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numbers", [1, 3 * 300 * 64, 1 << 20])  # a head, three heads and all heads at a time
def test_one_token_sees_its_past_as_exactly_as_by_the_kernel(dtype: torch.dtype, numbers: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vistune.model.ragged.ONCE_NUMBERS", numbers)
    torch.manual_seed(0)
    arena = torch.randn(2, 7, 320, 64).to(dtype)
    query, key, value = torch.randn(1, 7, 1, 64).to(dtype), arena[:1, :, :300], arena[1:, :, :300]
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=0.3)
    kernel = F.scaled_dot_product_attention(query, key, value, scale=0.3)
    ours = attend_once(query, key, value, 0.3)
    assert ours.dtype == dtype
    assert ours.shape == query.shape
    assert (ours - exact).abs().max() <= (kernel - exact).abs().max()


def test_under_autocast_attention_runs_in_the_type_of_its_products():
    """A trained language model's queries and keys are fp32: its embeddings are, and so the angles that they are rotated by."""
    query, key, value = states(9, torch.float32)
    half = [tensor.bfloat16() for tensor in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = ragged_attention(Attention(), query, key, value.bfloat16(), scaling=0.3, cu_seqlens=boundaries([4, 5]))
    expected, _ = ragged_attention(Attention(), *half, scaling=0.3, cu_seqlens=boundaries([4, 5]))
    assert torch.equal(output, expected)


def test_a_call_without_boundaries_is_refused_not_guessed():
    with pytest.raises(UsageError, match="where sequences end"):
        ragged_attention(Attention(), *states(4))


def test_dropout_inside_attention_is_refused():
    with pytest.raises(UsageError, match="no dropout"):
        ragged_attention(Attention(), *states(4), dropout=0.1, cu_seqlens=boundaries([4]))


@pytest.mark.parametrize("mode", [steady_rows, fixed_row_tiles])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_product_have_the_same_bits_in_any_number(mode, dtype):
    layer, rows = nn.Linear(576, 192, dtype=dtype), torch.randn(70, 576, dtype=dtype)
    with mode(), torch.inference_mode():
        whole = layer(rows)
        assert all(torch.equal(layer(rows[:count]), whole[:count]) for count in (1, 2, 3, 5, 7, 11, 16, 17, 31, 66))
    torch.testing.assert_close(whole, layer(rows), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "activation", [F.silu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), torch.sigmoid], ids=["silu", "gelu", "tanh", "sigmoid"]
)
def test_activations_have_the_same_bits_at_the_end_of_a_tensor_as_in_its_middle(activation):
    torch.manual_seed(0)
    values = torch.randn(50_003) * 3
    with steady_rows():
        whole = activation(values)
        assert all(torch.equal(activation(values[:count].clone()), whole[:count]) for count in (1, 7, 33, 1207, 40_001))
    torch.testing.assert_close(whole, activation(values), atol=1e-5, rtol=1e-4)


def test_row_tiles_need_a_row():
    with pytest.raises(UsageError, match="at least one row"), fixed_row_tiles(0):
        pass
