"""The language model head and its cross entropy in one, a chunk of positions at a time.

The whole [positions, vocabulary] matrix of logits is never held: each chunk's logits are made, turned into a loss and, if something
trains, into gradients on the spot. A frozen head gets no weight gradient and costs none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# N supervised positions · D width · V vocabulary

NUMBERS_IN_CACHE = 2**20
"""How many logits a CPU turns into gradients at a time: few enough (4 MB) to stay in its cache from one pass over them to the next."""


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk_size: int) -> Tensor:
    """Sum over positions of the cross entropy of softmax(hidden @ weight.T + bias) against `targets`.

    Products run in the autocast type where autocast is on, else in the tensors' own; softmax, loss and the weight's gradient accumulate
    in fp32 (fp64 for fp64 inputs).

    Args:
        hidden: [N, D]. N may be 0: the loss is then 0, still connected to the graph.
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64, all of them supervised.
        chunk_size: positions whose logits are held at once.

    Returns a scalar in fp32 (fp64 for fp64 inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, chunk_size, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass: a chunk's logits are at hand then, and the loss is a scalar that only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_size: int, dtype: torch.dtype
    ) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        hidden_grad = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if needs_hidden else None
        weight_grad: Tensor | None = None
        bias_grad = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs_bias else None
        learns = needs_hidden or needs_weight or needs_bias
        held = torch.empty(min(chunk_size, len(hidden)), len(weight), dtype=dtype, device=hidden.device)  # the same memory for all chunks
        for start in range(0, hidden.shape[0], chunk_size):
            part, expected = hidden[start : start + chunk_size].to(dtype), targets[start : start + chunk_size, None]
            logits = held[: len(part)]
            if cast_bias is None:
                torch.mm(part, cast_weight.t(), out=logits)
            else:
                torch.addmm(cast_bias, part, cast_weight.t(), out=logits)
            block_size = len(part) if hidden.device.type != "cpu" else max(1, NUMBERS_IN_CACHE // len(weight))
            for narrow_block, labels in zip(logits.split(block_size), expected.split(block_size), strict=True):
                loss += _loss_and_gradient(narrow_block, labels, wide, bias_grad, learns=learns)
            if hidden_grad is not None:
                torch.mm(logits, cast_weight, out=hidden_grad[start : start + chunk_size])
            if needs_weight:
                product = logits.t() @ part
                weight_grad = product.to(wide) if weight_grad is None else weight_grad.add_(product)
        if needs_weight and weight_grad is None:
            weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,) = grad_outputs
        # Scaled in place: a head's gradient is the largest tensor of a step, and there is no second backward pass.
        gradients = [
            None if gradient is None else gradient.mul_(scale).to(dtype) for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*gradients, None, None, None)


def _loss_and_gradient(logits: Tensor, labels: Tensor, wide: torch.dtype, bias_grad: Tensor | None, *, learns: bool) -> Tensor:
    """The summed loss of some positions; leaves d loss / d logits, softmax - one hot, in place of their logits if something learns."""
    block = logits.to(wide)
    top = block.amax(dim=-1, keepdim=True)
    right = block.gather(1, labels) - top
    total = block.sub_(top).exp_().sum(dim=-1, keepdim=True)
    if learns:
        block.div_(total).scatter_add_(1, labels, torch.full_like(labels, -1, dtype=wide))
        if bias_grad is not None:
            bias_grad += block.sum(dim=0)
        logits.copy_(block)
    return (total.log() - right).sum()
