"""Weights in few bits, for answering only: int8 with a scale for each row, int4 with a scale and a zero for every 32 weights of a row.

Only the linear layers inside the decoder layers: tower, projector, embeddings, norms and head stay as they are, and so do activations. What
is quantised cannot be trained or saved; the folder keeps the weights that it has.

The kernels are torch's own, those under torchao's CPU layouts. torchao itself is not used: not compiled, its int8 makes the whole weight
wide at every product (several times slower than bf16 for one row), its int4 for CPUs is a prototype over this very kernel, and merely
installed it is imported by transformers into every program. `benchmarks/low_bits.py` compares with it where it is there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.errors import UsageError
from vistune.model.llava import Llava

# N outputs · K inputs of a linear layer · M rows

Bits = Literal["int8", "int4"]

GROUP = 32
"""int4 weights of a row that share a scale and a zero. Fewer would be better and larger; 32 are 5 bits a weight in all."""

BLOCKS = (64, 32)
"""Rows that the int4 kernel keeps together, with AVX-512 and with AVX2. In another order it is the only one that can read them."""

AT_ONCE = 1 << 20
"""Weights that are made wide at once for many rows: few enough to stay in a cache."""


class LowBitWeight(nn.Module, ABC):
    """Stands in a linear layer where its weight [N, K] stood: F.linear(input, this, bias) is computed here.

    Few rows go through a kernel that reads the packed weights and adds up in fp32; its bits for a row are the same in any company. For many
    rows of a bf16 model it is quicker to make the weights wide again, a part at a time. Activations of other types are rounded to bf16 for
    the kernel, however many rows they are: a fp32 model is then the same in any company too, and no product of it was quicker in fp32.

    Its tensors are no buffers: they keep their types whatever the model is turned to, and are found in a third of the time.
    """

    few_rows: int

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.shape = torch.Size(shape)
        self._joined: tuple[Sequence[LowBitWeight], LowBitWeight] | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _linear(*args, **(kwargs or {})) if func is F.linear else NotImplemented

    @abstractmethod
    def times_few(self, rows: Tensor) -> Tensor:
        """bf16 [M, K] -> [M, N]."""

    @abstractmethod
    def times_many(self, rows: Tensor) -> Tensor:
        """bf16 [M, K] -> [M, N]."""

    @abstractmethod
    def wide(self) -> Tensor:
        """What the kernel multiplies by: [N, K] in fp32."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        return _linear(input, self, bias)

    @staticmethod
    def joined(weights: Sequence[LowBitWeight]) -> LowBitWeight | None:
        """One weight with the rows of all of them, whose tensors become parts of its own. None for orders that cannot be joined.

        Whoever asks again gets the same one: models over the same weights share it.
        """
        first = weights[0]
        if len(weights) == 1 or any(type(each) is not type(first) for each in weights):
            return first if len(weights) == 1 else None
        if first._joined is None or list(map(id, first._joined[0])) != list(map(id, weights)):
            whole = first._join(weights)
            if whole is None:
                return None
            first._joined = tuple(weights), whole
        return first._joined[1]

    @abstractmethod
    def _join(self, weights: Sequence[Any]) -> LowBitWeight | None:
        """One weight of all of them, to which they then belong; None where their order cannot be joined."""

    def _of_all(self, weights: Sequence[LowBitWeight]) -> Any:
        """A weight of this kind with as many rows as all of them, still without its tensors."""
        whole = type(self).__new__(type(self))
        LowBitWeight.__init__(whole, (sum(each.shape[0] for each in weights), self.shape[1]))
        return whole

    def train(self, mode: bool = True) -> LowBitWeight:
        if mode:
            raise UsageError("Weights in few bits cannot be trained; load the model with its own weights (--weights full).")
        super().train(False)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UsageError("Weights in few bits are not saved: the folder that they were loaded from has the model as it is.")


def _linear(input: Tensor, weight: LowBitWeight, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() and input.requires_grad:
        raise UsageError("Nothing can be learned through weights in few bits; load the model with its own weights (--weights full).")
    rows = input if input.dim() == 2 else input.flatten(0, -2)
    if input.dtype != torch.bfloat16:
        output = weight.times_few(rows.to(torch.bfloat16).contiguous()).to(input.dtype)
    elif len(rows) <= weight.few_rows:
        output = weight.times_few(rows.contiguous())
    else:
        output = weight.times_many(rows)
    if bias is not None:
        output += bias
    return output if input.dim() == 2 else output.unflatten(0, input.shape[:-1])


class Int8Weight(LowBitWeight):
    """-127 to 127, and a scale for each row."""

    few_rows = 32

    def __init__(self, weight: Tensor):
        super().__init__((weight.shape[0], weight.shape[1]))
        wide = weight.detach().float()
        # Rounded first, so that the weights are divided by what they will be multiplied with.
        scales = (wide.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
        self.scales = scales  # [N] bf16
        self.packed = (wide / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)  # [N, K]

    def _join(self, weights: Sequence[Int8Weight]) -> Int8Weight:
        whole = self._of_all(weights)
        whole.packed, whole.scales = torch.cat([each.packed for each in weights]), torch.cat([each.scales for each in weights])
        parts = [each.shape[0] for each in weights]
        for each, packed, scales in zip(weights, whole.packed.split(parts), whole.scales.split(parts), strict=True):
            each.packed, each.scales = packed, scales
        return whole

    def times_few(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(rows, self.packed, self.scales)

    def times_many(self, rows: Tensor) -> Tensor:
        output = rows.new_empty(len(rows), self.shape[0])
        for part in _parts(self.shape, step=1):
            # The integers are exact in bf16; the scale comes after the sum, as in the kernel.
            torch.mul(F.linear(rows, self.packed[part].to(rows.dtype)), self.scales[part], out=output[:, part])
        return output

    def wide(self) -> Tensor:
        return self.packed.float() * self.scales.float()[:, None]


class Int4Weight(LowBitWeight):
    """0 to 15, and for every GROUP weights of a row a scale and a zero: (number - 8) · scale + zero."""

    few_rows = 96

    def __init__(self, weight: Tensor):
        rows, columns = weight.shape
        super().__init__((rows, columns))
        groups = weight.detach().float().view(rows, -1, GROUP)
        low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
        scales = ((high - low) / 15).clamp_(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
        zeros = (low + 8 * scales.float()).to(torch.bfloat16)
        numbers = ((groups - zeros.float()) / scales.float() + 8).round_().clamp_(0, 15).to(torch.int32).view(rows, columns)
        # [N, K / 2] uint8, in the order that this processor's kernel likes
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        self.scales_and_zeros = torch.cat([scales, zeros], dim=2).transpose(0, 1).contiguous()  # [K / GROUP, N, 2]
        self._block = next((block for block in BLOCKS if rows % block == 0 and torch.equal(self._numbers(block) + 8, numbers)), None)

    def _join(self, weights: Sequence[Int4Weight]) -> Int4Weight | None:
        if self._block is None or any(each._block != self._block for each in weights):
            return None
        whole = self._of_all(weights)
        whole._block, whole.packed = self._block, torch.cat([each.packed for each in weights])
        whole.scales_and_zeros = torch.cat([each.scales_and_zeros for each in weights], dim=1)
        for each, packed in zip(weights, whole.packed.split([each.shape[0] for each in weights]), strict=True):
            each.packed = packed  # not its scales: the kernel wants them in one piece, and here others' lie between
        return whole

    def times_few(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales_and_zeros)

    def times_many(self, rows: Tensor) -> Tensor:
        block, columns = self._block, self.shape[1]
        if block is None:
            return self.times_few(rows)
        output = rows.new_empty(len(rows), self.shape[0])
        for part in _parts(self.shape, step=block):
            numbers = self._turned(block, part).view(-1, columns // GROUP, GROUP, block)
            scales, zeros = (
                each.view(columns // GROUP, -1, 1, block).transpose(0, 1).contiguous() for each in self.scales_and_zeros[:, part].unbind(2)
            )
            wide = torch.addcmul(zeros, numbers.to(rows.dtype), scales)  # [blocks, K / GROUP, GROUP, block]
            output[:, part] = rows @ wide.view(-1, columns, block).transpose(0, 1).reshape(columns, -1)
        return output

    def wide(self) -> Tensor:
        # The order of `packed` is the kernel's own affair, so the kernel is asked: rows of the identity give the columns, exactly.
        return self.times_few(torch.eye(self.shape[1], dtype=torch.bfloat16)).float().t()

    def _numbers(self, block: int) -> Tensor:
        """[N, K], -8 to 7, if the rows lie in blocks of `block`."""
        return self._turned(block, slice(None)).transpose(1, 2).reshape(self.shape)

    def _turned(self, block: int, rows: slice) -> Tensor:
        """-8 to 7 of these rows, column after column: [blocks, K, block] int8. A byte has numbers of two rows half a block apart."""
        start, stop, _ = rows.indices(self.shape[0])
        blocks = self.packed.view(-1, self.shape[1], block // 2)[start // block : stop // block]
        signed = (blocks ^ 0x88).view(torch.int8)  # both halves as two's complement, so that shifting right keeps the sign
        return torch.cat([(signed << 4) >> 4, signed >> 4], dim=2)


def _parts(shape: torch.Size, *, step: int) -> Iterator[slice]:
    """The N rows of a weight in parts of at most AT_ONCE weights, whole multiples of `step` rows."""
    rows = max(AT_ONCE // (shape[1] * step), 1) * step
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


_KINDS: dict[Bits, type[Int8Weight] | type[Int4Weight]] = {"int8": Int8Weight, "int4": Int4Weight}


def quantise_weights(models: Sequence[Llava], bits: Bits) -> None:
    """Puts the weights of the decoder layers' linear layers into few bits. Models over the same tensors go on sharing them.

    Raises UsageError for a GPU, adapters of PEFT on a model, and widths that the kernel does not take; all models are then as they were.
    """
    for model in models:
        _check(model, bits)
    sharing: dict[tuple[int, ...], list[nn.Linear]] = defaultdict(list)
    for model in models:
        for _, linear in _linear_layers(model):
            sharing[linear.weight.data_ptr(), *linear.weight.shape].append(linear)
    for layers in sharing.values():
        packed = _KINDS[bits](layers[0].weight)
        for linear in layers:  # the wide weight is let go of before the next one is packed
            del linear.weight
            linear.weight = cast(Tensor, packed)


def bits_of(model: Llava) -> Bits | None:
    """The bits that a model's weights are in; None for weights as they are in its folder."""
    found = {type(linear.weight) for _, linear in _linear_layers(model)}
    return next((bits for bits, kind in _KINDS.items() if kind in found), None)


def _check(model: Llava, bits: Bits) -> None:
    if hasattr(model.language_model, "peft_config"):
        raise UsageError("This model has adapters that are being trained; save it and load what was saved, where they are merged.")
    if model.device.type != "cpu":
        raise UsageError(f"Weights in {bits} are multiplied by kernels for CPUs, and this model is on {model.device}. Use --weights full.")
    for name, linear in _linear_layers(model):
        if isinstance(linear.weight, LowBitWeight):
            raise UsageError("The model's weights are in few bits already; load it anew.")
        rows, columns = linear.weight.shape
        if bits == "int4" and (rows % 16 or columns % GROUP):
            raise UsageError(
                f"{name} is {rows} x {columns}, and the int4 kernel takes multiples of 16 x {GROUP}. Use --weights int8, which takes any."
            )


def _linear_layers(model: Llava) -> Iterator[tuple[str, nn.Linear]]:
    layers = cast(nn.Module, model.causal_lm.model.layers)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module
