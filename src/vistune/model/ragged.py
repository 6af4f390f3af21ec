"""Attention over sequences laid end to end, the pruned last layer, and arithmetic whose bits do not depend on the batch.

A ragged batch is one row of tokens with boundaries (`cu_seqlens`); no token sees another sequence and nothing is padded. The function is
registered once with transformers as `vistune_ragged`, so every language model family runs through it: training, batched and chunked
prefill, and decoding against a key-value arena are the same call.

Which bits depend on what (CPU; measured by `benchmarks/ragged.py`, watched by `tests/parity`):

- What a neighbour *says* never changes a bit of another sequence: attention runs sequence by sequence, and a matrix product computes each
  row by itself.
- How *long* or how many the neighbours are changes the number of rows of a matrix product: the libraries give remainders to kernels that
  add in another order, and activations round differently at the end of a tensor. `steady_rows` (cheap; the default of inference in fp32)
  removes both where kernels treat all fours of rows alike, as on the CPUs we measured. `fixed_row_tiles` makes every product the same call
  whatever the batch, in any dtype: the deterministic mode, for a price.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from vistune.errors import UsageError
from vistune.model.block_attention import LONGEST_IN_BLOCKS, attend_in_blocks

# T tokens of all sequences · N new tokens of one · K its keys, past and new
# H query heads · G query heads per key-value head · E head width

ATTENTION_NAME = "vistune_ragged"


class KeyValues(Protocol):
    """What attention needs of a key-value arena's view (`engine/kv_cache.py`)."""

    def append(self, layer: int, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seqlens: Tensor | None = None,
    kv: KeyValues | None = None,
    rows: Sequence[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence (transformers' attention function interface).

    Args:
        query: [1, H, T, E], or [1, H, len(rows), E] if `rows` says at which rows of the batch the queries are.
        key, value: [1, H / G, T, E], of all rows.
        sliding_window: a token sees itself and the `sliding_window - 1` before it.
        cu_seqlens: [S + 1] int32 on the CPU; sequence s owns rows cu_seqlens[s] to cu_seqlens[s + 1].
        kv: earlier tokens of the same sequences; the new ones are stored there.
        rows: ascending.

    Returns [1, T or len(rows), H, E].
    """
    if cu_seqlens is None:
        raise UsageError("This language model is part of a Llava and needs to know where sequences end; call it through Llava.forward.")
    if dropout:
        raise UsageError(f"Ragged attention has no dropout, but the model asks for {dropout}; set attention_dropout to 0.")
    if torch.is_autocast_enabled(query.device.type):
        # Rotated by fp32 angles, queries and keys are fp32 where the embeddings are; the products would cast them all the same.
        query, key, value = (_as_autocast(tensor) for tensor in (query, key, value))
    bounds: list[int] = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if kv is None and rows is None:
        if _varlen_runs(query):
            return _varlen_attention(query, key, value, cu_seqlens, scaling=scaling, sliding_window=sliding_window), None
        if _quicker_in_blocks(query, max(lengths, default=0)) and (sliding_window is None or max(lengths, default=0) <= sliding_window):
            return attend_in_blocks(query, key, value, bounds, _scale(query, scaling)), None
    outputs = []
    at_rows = [range(len(rows))[slice(*_bounds(rows, start, end))] for start, end in pairwise(bounds)] if rows is not None else None
    # Split and not sliced: the backward pass then writes each gradient once, and not as many times as there are sequences.
    own_queries = query.split(lengths if at_rows is None else [len(each) for each in at_rows], dim=2)
    own = zip(bounds, own_queries, key.split(lengths, dim=2), value.split(lengths, dim=2), strict=False)
    for index, (start, queries, keys, values) in enumerate(own):
        if kv is not None:
            stored_keys, stored_values = kv.append(_layer_index(module), index, keys[0], values[0])
            keys, values = stored_keys[None], stored_values[None]
        past = keys.shape[2] - lengths[index]
        if rows is None or at_rows is None:
            positions = range(past, past + lengths[index])
        else:
            positions = [rows[at] - start + past for at in at_rows[index]]
        if positions:
            outputs.append(attend(queries, keys, values, positions, scaling=scaling, sliding_window=sliding_window))
    output = torch.cat(outputs, dim=2) if outputs else query
    return output.transpose(1, 2).contiguous(), None


def _as_autocast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if tensor.dtype == torch.float32 else tensor


ONCE_NUMBERS = 1 << 20
"""Keys that `attend_once` makes fp32 of at a time: 4 MB, which stay in a core's cache."""


def _quicker_in_blocks(query: Tensor, longest: int) -> bool:
    return longest <= LONGEST_IN_BLOCKS and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)


def _scale(query: Tensor, scaling: float | None) -> float:
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def _layer_index(module: nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index


def _bounds(rows: Sequence[int], start: int, end: int) -> tuple[int, int]:
    """Where in the ascending `rows` those of start <= row < end are."""
    return bisect_left(rows, start), bisect_left(rows, end)


def attend(
    query: Tensor, key: Tensor, value: Tensor, positions: Sequence[int], *, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """One sequence: queries [1, H, N, E] at ascending `positions` over keys [1, H / G, K, E] from position 0 on."""
    oldest = 0 if sliding_window is None else max(positions[0] - sliding_window + 1, 0)
    end = positions[-1] + 1
    if oldest or end < key.shape[2]:
        key, value = key[:, :, oldest:end], value[:, :, oldest:end]
    heads, groups = query.shape[1], key.shape[1]
    if len(positions) == 1:
        return attend_once(query.reshape(1, groups, heads // groups, -1), key, value, scaling).reshape(query.shape)
    fits_window = sliding_window is None or end - oldest <= sliding_window
    if len(positions) == key.shape[2] and fits_window:
        if _quicker_in_blocks(query, len(positions)):
            return attend_in_blocks(query, key, value, (0, len(positions)), _scale(query, scaling)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != groups)
    mask = _causal_mask(positions, range(oldest, end), sliding_window, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=heads != groups)


def attend_once(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """One token's queries [1, K, H / K, E] over all of its keys and values [1, K, N, E]: a decoding step of one sequence.

    The heads that share keys are rows of one query: enable_gqa on a single one is several times slower in bf16 on a CPU. Where no heads
    share keys, torch's kernel takes a row at a time through bf16 and needs 4 to 10 times as long as the same in fp32, a few heads at once.
    """
    if query.shape[2] > 1 or query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)
    heads, outputs = max(1, ONCE_NUMBERS // key[0, 0].numel()), []
    for queries, keys, values in zip(query[0].split(heads), key[0].split(heads), value[0].split(heads), strict=True):
        scores = torch.bmm(queries.float(), keys.float().transpose(1, 2)).mul_(_scale(query, scaling))
        outputs.append(torch.bmm(scores.softmax(-1), values.float()))
    return torch.cat(outputs)[None].to(query.dtype)


def _causal_mask(positions: Sequence[int], keys: range, sliding_window: int | None, device: torch.device) -> Tensor:
    """[N, K] bool: which keys each query sees."""
    query_positions = torch.tensor(list(positions), device=device)[:, None]
    key_positions = torch.arange(keys.start, keys.stop, device=device)[None]
    visible = key_positions <= query_positions
    return visible if sliding_window is None else visible & (key_positions > query_positions - sliding_window)


def _varlen_runs(query: Tensor) -> bool:
    """Whether torch's variable-length flash attention takes this: NVIDIA GPU, half precision, head widths of the flash kernels."""
    if not query.is_cuda or torch.version.hip is not None or query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] > 256:
        return False
    return _varlen_has_windows()


@cache
def _varlen_has_windows() -> bool:
    """Whether this torch's `varlen_attn` has the options we need (younger than the function itself)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, scaling: float | None, sliding_window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    boundaries = cu_seqlens.to(query.device, torch.int32)
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    groups = query.shape[1] // key.shape[1]
    queries, keys, values = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, heads, E]
    if groups > 1:  # repeated, not enable_gqa: that option is younger still
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    # Flash counts a window by the tokens to the left of the query, so the query itself is not among them.
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    output = varlen_attn(queries, keys, values, boundaries, boundaries, longest, longest, scale=scaling, window_size=window)
    assert isinstance(output, Tensor)
    return output[None]


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *_, **__: None)  # boundaries say it all: no mask is ever built


# --- The last layer, only where its output is used ---------------------------------------------------------------------------------------


def pruned_layer(
    layer: nn.Module,
    hidden: Tensor,
    select: Tensor,
    rows: Sequence[int],
    *,
    sequential_block: bool,
    position_embeddings: tuple[Tensor, Tensor],
    cu_seqlens: Tensor,
    kv: KeyValues | None,
) -> Tensor:
    """A decoder layer whose queries, output projection and MLP run on the selected rows only; keys and values on all.

    Exact for the last layer, where nothing reads the other rows. `select` and `rows` are the same ascending rows as a tensor and as
    numbers. [1, T, D] -> [1, len(rows), D]. Covers the families of LANGUAGE_MODELS; `tests/parity` holds each to the full layer.
    """
    attention: Any = layer.self_attn
    normed = layer.input_layernorm(hidden)  # type: ignore[operator]
    picked, residual = normed[:, select], hidden[:, select]

    def heads(projection: nn.Module, input: Tensor) -> Tensor:
        return projection(input).unflatten(-1, (-1, attention.head_dim))

    query, key = heads(attention.q_proj, picked), heads(attention.k_proj, normed)
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    elif getattr(attention, "qk_layernorm", False):  # Phi
        query, key = attention.q_layernorm(query), attention.k_layernorm(key)
    cos, sin = position_embeddings
    query = _rotate(query.transpose(1, 2), cos[:, select], sin[:, select])
    key = _rotate(key.transpose(1, 2), cos, sin)
    value = heads(attention.v_proj, normed).transpose(1, 2)
    window = attention.sliding_window if hasattr(attention, "sliding_window") else getattr(attention.config, "sliding_window", None)
    attended, _ = ragged_attention(
        attention, query, key, value, scaling=attention.scaling, sliding_window=window, cu_seqlens=cu_seqlens, kv=kv, rows=rows
    )
    output_projection = attention.o_proj if hasattr(attention, "o_proj") else attention.dense
    attended = output_projection(attended.flatten(2))
    if not sequential_block:
        return attended + layer.mlp(picked) + residual  # type: ignore[operator]
    residual = residual + attended
    return residual + layer.mlp(layer.post_attention_layernorm(residual))  # type: ignore[operator]


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [1, H, N, E] by angles [1, N, R]; what lies beyond the first R of E stays (Phi's partial rotation)."""
    turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


# --- Bits that do not depend on the batch ------------------------------------------------------------------------------------------------

STEADY_ROWS = 4
"""MKL's kernels take rows by fours; a remainder goes to another kernel that adds in another order (up to 4 · threads rows or so)."""

TILE_ROWS = 16
"""Rows of the deterministic mode's products: decoding one sequence wants few, prefill many."""


class _SteadyArithmetic(TorchFunctionMode):
    """Rewrites the operations whose bits depend on the batch's size: matrix products, and the activations.

    torch computes the last few elements of a SiLU or GELU (and of each thread's share) by a scalar formula and the others by a vector
    one, which round differently; `exp`, `erf` and `tanh` are the same for every element, so the activations are made of those.
    """

    def __init__(self, rows: int, *, tiled: bool):
        super().__init__()
        self.rows, self.tiled = rows, tiled

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        replacement = _STEADY_ACTIVATIONS.get(func)
        if replacement is not None:
            return replacement(*args, **kwargs)
        if func is F.conv2d and args[0].shape[0] > 1:
            # Split, not taken out one by one: those would not be known for channels-last, and go another way to other bits.
            return torch.cat([func(image, *args[1:], **kwargs) for image in args[0].split(1)])
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = input.reshape(-1, input.shape[-1])
        count = flat.shape[0]
        missing = -count % self.rows
        if missing:
            flat = F.pad(flat, (0, 0, 0, missing))
        tiles = flat.split(self.rows) if self.tiled else (flat,)
        outputs = [F.linear(tile, weight, bias) for tile in tiles]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output[:count].view(*input.shape[:-1], -1)


def _steady_sigmoid(input: Tensor) -> Tensor:
    return torch.exp(-_wide(input)).add_(1).reciprocal_().to(input.dtype)


def steady_silu(input: Tensor, inplace: bool = False) -> Tensor:
    """SiLU made of operations that are the same for every element, wherever it stands."""
    return (_wide(input) / torch.exp(-_wide(input)).add_(1)).to(input.dtype)


def _steady_gelu(input: Tensor, approximate: str = "none") -> Tensor:
    wide = _wide(input)
    if approximate == "tanh":
        inner = (wide + 0.044715 * wide * wide * wide) * (2 / math.pi) ** 0.5
        return (0.5 * wide * (torch.tanh(inner) + 1)).to(input.dtype)
    return (0.5 * wide * (torch.erf(wide * 0.5**0.5) + 1)).to(input.dtype)


def _wide(input: Tensor) -> Tensor:
    return input if input.dtype == torch.float64 else input.float()


_STEADY_ACTIVATIONS: dict[Any, Any] = {
    F.silu: steady_silu,
    F.gelu: _steady_gelu,
    torch.sigmoid: _steady_sigmoid,
    Tensor.sigmoid: _steady_sigmoid,
}


_mode_is_chosen: ContextVar[bool] = ContextVar("mode_is_chosen", default=False)


@contextmanager
def _chosen(mode: _SteadyArithmetic) -> Iterator[None]:
    token = _mode_is_chosen.set(True)
    try:
        with mode:
            yield
    finally:
        _mode_is_chosen.reset(token)


@contextmanager
def steady_rows() -> Iterator[None]:
    """Pads matrix products to whole fours of rows and computes activations and convolutions evenly.

    On the CPUs we measured, a sequence's bits then do not depend on what else runs in the batch, prefill or decode, fp32 or bf16. It rests
    on the libraries' kernels treating all fours of rows alike; `fixed_row_tiles` does not.
    """
    with _chosen(_SteadyArithmetic(STEADY_ROWS, tiled=False)):
        yield


@contextmanager
def fixed_row_tiles(rows: int = TILE_ROWS) -> Iterator[None]:
    """Deterministic mode: every matrix product runs on exactly `rows` rows and every convolution on one image, whatever the batch.

    Then a sequence's bits are the same alone and in any company, in any dtype. The smaller `rows`, the cheaper decoding few sequences
    and the dearer prefill; results with different `rows` are not comparable. How a prompt is cut into chunks still matters.
    """
    if rows < 1:
        raise UsageError(f"Row tiles must hold at least one row, not {rows}.")
    with _chosen(_SteadyArithmetic(rows, tiled=True)):
        yield


def default_arithmetic(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """`steady_rows` for fp32 inference on a CPU, unless a mode was chosen outside; nothing for training, other types and devices."""
    if torch.is_grad_enabled() or dtype != torch.float32 or device.type != "cpu" or _mode_is_chosen.get():
        return nullcontext()
    return steady_rows()
