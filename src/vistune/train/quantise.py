"""QLoRA: a frozen language model's linear layers in 4 or 8 bits, by bitsandbytes' kernels.

Only linear layers inside the decoder layers: head, embeddings, projector and vision tower stay as they are, and so do adapters. Weights are
made wide again at each use, for the forward and for the input's gradient; no product runs in few bits. Before a model is saved, the layers
get their own weights back (`put_back`): an adapter is merged into what its base really is, never into the rounded copy of it.

bitsandbytes' own `Linear4bit` is not used: on CPUs with AVX512-BF16 it repacks its weights at the first evaluation, coarser, and from then
on passes no gradient (seen in 0.50.2). Its `Linear8bitLt` answers by other arithmetic than it trains with.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vistune.errors import UsageError, optional_import
from vistune.model.llava import Llava
from vistune.train.config import Quantisation

# N outputs · K inputs of a linear layer

BLOCK = 64
"""Weights that share a scale in nf4, as in the official recipe."""


class QuantisedLinear(nn.Module):
    """A frozen linear layer whose weight [N, K] is kept in few bits, and its bias as it was. Computes in `dtype`.

    `nf4`: four bits in blocks of 64, the blocks' scales in eight bits again (double quantisation). `int8`: a scale for each row.
    """

    def __init__(self, linear: nn.Linear, kind: Quantisation, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.kind, self.dtype = linear.in_features, linear.out_features, kind, dtype
        self.bias = linear.bias
        weight = linear.weight.detach().contiguous()
        if kind == "nf4":
            packed, state = _kernels().quantize_4bit(weight.float(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
            tensors = {"scales": state.absmax, "code": state.code, "mean_scale": state.offset}
            tensors |= {"scales_of_scales": state.state2.absmax, "code_of_scales": state.state2.code}
            self._blocks_of_scales: int = state.state2.blocksize
        else:
            packed, scales, _ = _kernels().int8_vectorwise_quant(weight.half())
            tensors = {"scales": scales}
        for name, tensor in {"packed": packed, **tensors}.items():
            self.register_buffer(name, tensor)

    def wide_weight(self) -> Tensor:
        """The weight as the layer uses it: [N, K] in `dtype`."""
        packed, scales = cast(Tensor, self.packed), cast(Tensor, self.scales)
        if self.kind == "int8":
            return (packed.float() * (scales.float() / 127)[:, None]).to(self.dtype)
        state_of = _kernels().QuantState
        nested = state_of(absmax=self.scales_of_scales, code=self.code_of_scales, blocksize=self._blocks_of_scales, dtype=torch.float32)
        state = state_of(
            absmax=scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.mean_scale,
            state2=nested,
        )
        return _kernels().dequantize_4bit(packed, state)

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N] in `dtype`."""
        with torch.autocast(input.device.type, enabled=False):
            output = cast(Tensor, _WideProduct.apply(input.to(self.dtype), self))
            return output if self.bias is None else output + self.bias.to(self.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, kind={self.kind}"


class _WideProduct(torch.autograd.Function):
    """input @ weight.T. The wide weight is not kept for the backward pass but made again: it is what quantising saves the memory of."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(input, layer.wide_weight())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = grad_outputs
        return gradient @ ctx.layer.wide_weight(), None


def _kernels() -> Any:
    return optional_import("bitsandbytes.functional", extra="qlora")


def quantise(model: Llava, kind: Quantisation, dtype: torch.dtype) -> None:
    """Quantises the linear layers of the decoder layers, below adapters too, and holds the RMS norms before them in fp32.

    fp32 norms are the official code's. Queries' and keys' own norms and the final norm keep their type, since what they give meets values
    and the head in that type; so does LayerNorm (Phi), whose kernels want one type.

    Raises UsageError for weights of these layers that are to be trained, and MissingDependency without bitsandbytes.
    """
    layers = _decoder_layers(model)
    for name, linear in list(layers.named_modules()):
        if not isinstance(linear, nn.Linear) or ".lora_" in name:
            continue
        if linear.weight.requires_grad:
            raise UsageError(
                f"{name} is to be trained, and a quantised layer cannot be; train adapters (lora) on it, or set quantise=none."
            )
        layers.set_submodule(name, QuantisedLinear(linear, kind, dtype))
    for norm in norms_of_quantised(model):
        norm.data = norm.data.float()


def norms_of_quantised(model: Llava) -> list[nn.Parameter]:
    """The weights of the RMS norms that `quantise` holds in fp32: none in a model that is not quantised."""
    return [
        parameter
        for layer in _decoder_layers(model).children()
        if any(isinstance(each, QuantisedLinear) for each in layer.modules())
        for child in layer.children()
        if type(child).__name__.endswith("RMSNorm")
        for parameter in child.parameters()
    ]


@torch.no_grad()
def put_back(model: Llava, original: Llava) -> None:
    """Gives a quantised model the weights of its decoder layers back, taken out of `original` (no longer to be used), in the model's type.

    Adapters stay on them as they are.
    """
    layers, own = _decoder_layers(model), _decoder_layers(original)
    for name, quantised in list(layers.named_modules()):
        if isinstance(quantised, QuantisedLinear):
            linear = own.get_submodule(name.removesuffix(".base_layer"))
            layers.set_submodule(name, linear.to(quantised.packed.device, model.dtype).requires_grad_(False))  # type: ignore[arg-type]
    rest = dict(own.named_parameters())
    for name, parameter in layers.named_parameters():
        if name in rest and not parameter.requires_grad:
            parameter.data = rest[name].to(parameter.device, model.dtype)


def _decoder_layers(model: Llava) -> nn.Module:
    return cast(nn.Module, model.causal_lm.model.layers)
