"""A linear layer and its LoRA adapter as one function: the same numbers as PEFT's layers, in fewer passes over memory.

PEFT casts a layer's input to the adapter's fp32 and lets autocast cast it back, scales what the adapter gives and adds it, each a pass over
all tokens; autograd keeps an input of its own for every layer. Here the adapter's product is added inside its matrix product, and layers
that read the same input keep it once. Weights, names and files stay PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vistune.model.llava import Llava
from vistune.train.quantise import QuantisedLinear

# T tokens · K inputs, N outputs of a layer · R rank of its adapter


def lean_adapters(model: Llava) -> None:
    """Lets the adapters of `model` run this way wherever gradients are recorded; elsewhere PEFT's own code runs."""
    from peft.tuners.lora import LoraLayer

    for layer in list(model.causal_lm.modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, nn.Linear | QuantisedLinear):
            module = cast(Any, layer)
            module.forward = _leanly(module, module.forward)


def _leanly(layer: Any, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(plain)
    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active, base = layer.active_adapters, layer.base_layer
        usual = len(active) == 1 and active[0] in layer.lora_A and not (layer.merged or layer.disable_adapters or layer.lora_variant)
        learns = isinstance(base, nn.Linear) and base.weight.requires_grad
        if not usual or learns or args or kwargs or not torch.is_grad_enabled():
            return plain(input, *args, **kwargs)
        (name,) = active
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        dropout = layer.lora_dropout[name]
        share = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        with torch.autocast(device, enabled=False):
            return cast(Tensor, _AdaptedLinear.apply(input.to(dtype), down, up, base, layer.scaling[name], share))

    return run


class _AdaptedLinear(torch.autograd.Function):
    """input @ W.T + bias + dropout(input) @ down.T @ up.T · scaling, where W [N, K] is frozen, down [R, K] and up [N, R] learn."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, down: Tensor, up: Tensor, base: nn.Linear | QuantisedLinear, scaling: float, dropout: float
    ) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])  # [T, K]
        kept = torch.empty(rows.shape, dtype=torch.bool, device=rows.device).bernoulli_(1 - dropout) if dropout else None
        scale = scaling / (1 - dropout)
        output = F.linear(rows, _weight_of(base, input.dtype), None if base.bias is None else base.bias.to(input.dtype))
        low = F.linear(rows if kept is None else rows * kept, down.to(input.dtype)).mul_(scale)  # [T, R]
        output.addmm_(low, up.to(input.dtype).t())
        ctx.save_for_backward(rows, kept, low, down, up)
        ctx.base, ctx.scale, ctx.shape = base, scale, input.shape
        return output.view(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, kept, low, down, up = ctx.saved_tensors
        gradient = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])  # [T, N]
        low_grad = (gradient @ up.to(rows.dtype)).mul_(ctx.scale)  # [T, R]
        up_grad = (gradient.t() @ low).to(up.dtype)
        down_grad = (low_grad.t() @ (rows if kept is None else rows * kept)).to(down.dtype)
        input_grad = None
        if ctx.needs_input_grad[0]:
            input_grad = gradient @ _weight_of(ctx.base, rows.dtype)
            if kept is None:
                input_grad.addmm_(low_grad, down.to(rows.dtype))
            else:
                input_grad.addcmul_(low_grad @ down.to(rows.dtype), kept.to(rows.dtype))
            input_grad = input_grad.view(ctx.shape)
        return input_grad, down_grad, up_grad, None, None, None


def _weight_of(base: nn.Linear | QuantisedLinear, dtype: torch.dtype) -> Tensor:
    return (base.wide_weight() if isinstance(base, QuantisedLinear) else base.weight).to(dtype)
