"""The language model's layers laid out for inference: the same arithmetic as `Llava.hidden_states` in a third of the calls.

A small model's decoding step spends more time between its matrix products than in them, and in half precision on a CPU more in laying
weights out for a product than in multiplying. So, once per model: the products that read the same input become one, bf16 weights are
stored as oneDNN wants to read them (a row then takes half to a third of the time), and angles are kept in a table; keys and values go
from the product straight into the arena. Nothing here learns. `tests/parity` holds every family to transformers' own modules.

Whatever stands in a layer's place as a module of its own (a quantised or adapted layer) is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.model.ragged import STEADY_ROWS, TILE_ROWS, attend, attend_once, fixed_row_tiles, steady_silu

# T rows of all sequences, filled up with empty ones to T' · N rows of one sequence · D width · V vocabulary
# H query heads · K key-value heads · E head width · R of it that is rotated

Arithmetic = Literal["plain", "steady", "tiles"]
"""`model/ragged.py`'s: as the libraries like it, `steady_rows`, or `fixed_row_tiles`."""
_ROWS: dict[Arithmetic, int] = {"plain": 1, "steady": STEADY_ROWS, "tiles": TILE_ROWS}


@dataclass(frozen=True)
class Planes:
    """One sequence in every layer: where the N new keys and values go [2, K, N, E], and all of them, past and new, [1, K, past + N, E].

    A view in each layer, all made at once: thirty layers would otherwise cut them out one by one.
    """

    past: int
    slots: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class KeyValuePlanes(Protocol):
    """What the layers need of `engine.kv_cache.KVView`."""

    def prepare(self, new_tokens: Sequence[int]) -> None: ...

    def planes(self, new_tokens: Sequence[int]) -> list[Planes]: ...

    def commit(self, new_tokens: Sequence[int]) -> None: ...


# --- products ----------------------------------------------------------------------------------------------------------------------------


class _Packed:
    """Weights that read the same input, one above the other, as oneDNN reads them fastest. Models over the same tensors share it."""

    def __init__(self, weights: Sequence[Tensor]):
        self.sources = tuple(weights)  # held, so that no other tensor can come to lie at their addresses
        joined = torch.cat(self.sources) if len(weights) > 1 else weights[0]
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined.detach(), TILE_ROWS)

    def __call__(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, bias, "none", [], "")


_packed: WeakValueDictionary[tuple[object, ...], _Packed] = WeakValueDictionary()


def _packed_once(weights: Sequence[Tensor]) -> _Packed:
    key = tuple((weight.data_ptr(), *weight.shape, 0 if weight.is_inference() else weight._version) for weight in weights)
    packed = _packed.get(key)
    if packed is None:
        packed = _packed[key] = _Packed(weights)
    return packed


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has oneDNN's packed products in bf16. They are no public part of torch, so they are tried, not assumed."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        weight, rows = torch.randn(32, 64).to(dtype), torch.randn(3, 64).to(dtype)
        try:
            return torch.allclose(_Packed([weight])(rows, None), F.linear(rows, weight), rtol=0.02, atol=0.1)
        except (AttributeError, RuntimeError):
            return False


class _Product:
    """Linear layers on the same input as one: rows [T', inputs] -> [T', sum of the outputs]."""

    def __init__(self, layers: Sequence[nn.Module], arithmetic: Arithmetic, *, pack: bool):
        bare = [_unwrapped(layer) for layer in layers]
        linear = [layer for layer in bare if type(layer) is nn.Linear]
        wide = all(type(layer.weight) in (nn.Parameter, Tensor) for layer in linear)
        low_bit = all(hasattr(layer.weight, "joined") for layer in linear)  # `model/low_bits.py`
        self._tiled = arithmetic == "tiles"
        self._layers, self._packed, self._bias = list(layers), None, None
        self._adapted: list[tuple[int, int, nn.Module]] = []
        if ((pack and wide) or low_bit) and len(linear) == len(layers):
            weights: list[Any] = [layer.weight for layer in linear]
            biases: list[Tensor] = [layer.bias for layer in linear if layer.bias is not None]
            if len(biases) in (0, len(linear)):
                self._packed = weights[0].joined(weights) if low_bit else _packed_once(weights)
                self._bias = torch.cat(biases).detach() if biases else None
                ends = list(accumulate(each.out_features for each in linear))
                self._adapted = [
                    (end - each.out_features, end, step)
                    for layer, each, end in zip(layers, linear, ends, strict=True)
                    for step in _adapters(layer)
                ]

    def __call__(self, rows: Tensor) -> Tensor:
        if not self._tiled or len(rows) == TILE_ROWS:
            return self._once(rows)
        return torch.cat([self._once(tile) for tile in rows.split(TILE_ROWS)])

    def _once(self, rows: Tensor) -> Tensor:
        if self._packed is None:
            return torch.cat([layer(rows) for layer in self._layers], dim=-1) if len(self._layers) > 1 else self._layers[0](rows)
        output = self._packed(rows, self._bias)
        for start, end, adapter in self._adapted:
            output[:, start:end] += F.linear(F.linear(rows, adapter.down), adapter.up)  # type: ignore[arg-type]
        return output


def _adapters(layer: nn.Module) -> list[nn.Module]:
    """The adapters beside a linear layer, innermost first: modules with `base_layer`, `down` and `up` (`checkpoint/adapters.py`)."""
    found = []
    while all(hasattr(layer, name) for name in ("base_layer", "down", "up")):
        found.insert(0, layer)
        layer = layer.base_layer  # type: ignore[assignment]
    return found


def _unwrapped(layer: nn.Module) -> nn.Module:
    around = _adapters(layer)
    return around[0].base_layer if around else layer  # type: ignore[return-value]


# --- the layers --------------------------------------------------------------------------------------------------------------------------


class DecoderLayers:
    """All decoder layers, the final norm and the head of a causal language model.

    Args:
        causal_lm: transformers' model; its weights are read where they are, except for packed copies of bf16 weights on a CPU. These do not
            hear of later changes: make new layers after training.
        arithmetic: which promise about bits the products keep.
        pack: False saves the memory of the packed copies, as much again as the weights.
    """

    def __init__(self, causal_lm: Any, *, sequential_block: bool, arithmetic: Arithmetic, pack: bool = True):
        self.arithmetic: Arithmetic = arithmetic
        self._decoder = causal_lm.model
        self._sequential = sequential_block
        pack = pack and can_pack(causal_lm.dtype, causal_lm.device)

        def product(*layers: nn.Module) -> _Product:
            return _Product(layers, arithmetic, pack=pack)

        self._layers = [_Layer(layer, product, arithmetic) for layer in self._decoder.layers]
        self._final_norm = _norm(self._decoder.norm if hasattr(self._decoder, "norm") else self._decoder.final_layernorm)  # Phi
        self._head = product(causal_lm.lm_head)
        self._angles: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def hidden_states(self, embeddings: Tensor, positions: Tensor, lengths: Sequence[int], kv: KeyValuePlanes, select: Tensor) -> Tensor:
        """States after the final norm at the ascending rows `select`: [len(select), D].

        Args:
            embeddings: [T, D].
            positions: [T] int64, each row's place in its own sequence.
            lengths: rows of each sequence, in the order of `kv`; they are stored behind its past.
        """
        hidden = self._filled_up(embeddings)
        cos, sin = self._angles_at(positions, hidden)
        kv.prepare(lengths)
        planes = kv.planes(lengths)
        ends = list(accumulate(lengths))
        every = [(end - length, range(plane.past, plane.past + length)) for end, length, plane in zip(ends, lengths, planes, strict=True)]
        for layer in self._layers[:-1]:
            hidden = self._block(layer, hidden, hidden, every, None, lengths, planes, cos, sin)
        rows = None if len(select) == len(embeddings) else select
        queries = every if rows is None else _queries_at(rows.tolist(), ends, lengths, planes)
        kept = hidden if rows is None else self._filled_up(hidden[rows])
        hidden = self._block(self._layers[-1], hidden, kept, queries, rows, lengths, planes, cos, sin)
        kv.commit(lengths)
        return self._final_norm(hidden)[: len(select)]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] -> [n, V], in fp32 (fp64 for an fp64 model)."""
        logits = self._head(self._filled_up(hidden))[: len(hidden)]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _block(
        self,
        layer: _Layer,
        hidden: Tensor,
        kept: Tensor,
        queries: Sequence[tuple[int, Sequence[int]]],
        rows: Tensor | None,
        lengths: Sequence[int],
        planes: Sequence[Planes],
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """One layer. Keys and values of all rows `hidden`, the rest for the rows `kept` of them, which `rows` selects. [len(kept), D]."""
        normed = layer.input_norm(hidden)
        states = layer.qkv(normed)[: len(cos)]
        layer.rotate(states, cos, sin)
        layer.store(states, lengths, planes)
        attended = self._filled_up(layer.attend(states if rows is None else states[rows], queries, planes))
        output = layer.output(attended)
        if self._sequential:
            output += kept
            return layer.mlp(layer.post_norm(output)).add_(output)
        picked = normed if rows is None else self._filled_up(normed[rows])
        return output.add_(layer.mlp(picked)).add_(kept)

    def _filled_up(self, rows: Tensor) -> Tensor:
        """[T, D] -> [T', D], as many rows as the products are the same for in any company."""
        missing = -len(rows) % _ROWS[self.arithmetic]
        return F.pad(rows, (0, 0, 0, missing)) if missing else rows

    def _angles_at(self, positions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of each row, [T, 1, R]."""
        needed = int(positions.max()) + 1 if len(positions) else 1
        if self._angles is None or len(self._angles[0]) < needed:
            count = max(1024, 1 << (needed - 1).bit_length())
            every = torch.arange(count, device=hidden.device)[None]
            cos, sin = (angles[0] for angles in self._decoder.rotary_emb(hidden, position_ids=every))
            half = sin.shape[-1] // 2
            # rotate_half negates one half of the states; here the sine has the sign.
            self._angles = cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
        cos, sin = self._angles
        return cos[positions][:, None], sin[positions][:, None]


def _queries_at(
    rows: Sequence[int], ends: Sequence[int], lengths: Sequence[int], planes: Sequence[Planes]
) -> list[tuple[int, Sequence[int]]]:
    """For each sequence: where its queries begin among the selected ascending rows, and their positions."""
    queries, at = [], 0
    for end, length, plane in zip(ends, lengths, planes, strict=True):
        first = at
        while at < len(rows) and rows[at] < end:
            at += 1
        queries.append((first, [row - (end - length) + plane.past for row in rows[first:at]]))
    return queries


class _Layer:
    """One decoder layer's parts under the names that all families share."""

    def __init__(self, layer: Any, product: Callable[..., _Product], arithmetic: Arithmetic):
        attention, mlp = layer.self_attn, layer.mlp
        self._index, self._width, self._scale = int(attention.layer_idx), int(attention.head_dim), float(attention.scaling)
        config = attention.config
        self._heads = int(config.num_attention_heads)
        self._groups = int(getattr(config, "num_key_value_heads", None) or self._heads)
        window = attention.sliding_window if hasattr(attention, "sliding_window") else getattr(config, "sliding_window", None)
        self._window: int | None = window
        self._query_norm, self._key_norm = _query_and_key_norm(attention)
        self.qkv = product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = product(attention.o_proj if hasattr(attention, "o_proj") else attention.dense)  # Phi
        self.input_norm = _norm(layer.input_layernorm)
        self.post_norm = _norm(layer.post_attention_layernorm) if hasattr(layer, "post_attention_layernorm") else self.input_norm
        self._gated = hasattr(mlp, "gate_proj")
        self._up = product(mlp.gate_proj, mlp.up_proj) if self._gated else product(mlp.fc1)
        self._down = product(mlp.down_proj if self._gated else mlp.fc2)
        self._activation = _activation(mlp.act_fn if self._gated else mlp.activation_fn, str(config.hidden_act), arithmetic)

    def mlp(self, rows: Tensor) -> Tensor:
        up = self._up(rows)
        if not self._gated:
            return self._down(self._activation(up))
        gate, up = up.chunk(2, dim=-1)
        return self._down(self._activation(gate).mul_(up))

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turns the queries and keys in `states` [T, (H + 2K) · E] by their positions' angles, in place."""
        heads = states[:, : (self._heads + self._groups) * self._width].view(len(states), -1, self._width)
        if self._query_norm is not None and self._key_norm is not None:
            queries, keys = heads[:, : self._heads], heads[:, self._heads :]
            queries.copy_(self._query_norm(queries))
            keys.copy_(self._key_norm(keys))
        turned = cos.shape[-1]
        if turned < self._width:  # Phi turns a part of each head
            heads = heads[..., :turned]
        across = heads.roll(turned // 2, -1)
        heads.mul_(cos).add_(across.mul_(sin))

    def store(self, states: Tensor, lengths: Sequence[int], planes: Sequence[Planes]) -> None:
        new = states[:, self._heads * self._width :].view(len(states), 2, self._groups, self._width).permute(1, 2, 0, 3)
        for plane, own in zip(planes, new.split(list(lengths), dim=2) if len(planes) > 1 else (new,), strict=True):
            plane.slots[self._index].copy_(own)

    def attend(self, states: Tensor, queries: Sequence[tuple[int, Sequence[int]]], planes: Sequence[Planes]) -> Tensor:
        """Each sequence's queries over its own keys. [rows, (H + 2K) · E] -> [rows, H · E]."""
        heads = states[:, : self._heads * self._width].view(len(states), self._groups, -1, self._width)
        outputs = []
        for (first, positions), plane in zip(queries, planes, strict=True):
            if not positions:
                continue
            keys, values = plane.keys[self._index], plane.values[self._index]
            if len(positions) == 1 and positions[0] + 1 == keys.shape[2] and (self._window is None or positions[0] < self._window):
                outputs.append(attend_once(heads[first : first + 1], keys, values, self._scale).reshape(1, -1))
                continue
            own = heads[first : first + len(positions)].flatten(1, 2).transpose(0, 1)[None]
            attended = attend(own, keys, values, positions, scaling=self._scale, sliding_window=self._window)
            outputs.append(attended[0].transpose(0, 1).flatten(1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _query_and_key_norm(attention: Any) -> tuple[Any, Any]:
    if hasattr(attention, "q_norm"):  # Qwen3
        return attention.q_norm, attention.k_norm
    if getattr(attention, "qk_layernorm", False):  # Phi
        return attention.q_layernorm, attention.k_layernorm
    return None, None


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None:
        return module
    return lambda rows: F.rms_norm(rows, (rows.shape[-1],), module.weight, epsilon)


def _activation(module: Callable[[Tensor], Tensor], name: str, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    """The MLP's activation, a new tensor; in the same bits wherever in a tensor a number stands, unless the arithmetic is plain."""
    if name == "silu":
        return F.silu if arithmetic == "plain" else steady_silu
    if arithmetic == "plain":
        return module

    def even(rows: Tensor) -> Tensor:
        with fixed_row_tiles():
            return module(rows)

    return even
