"""The language model head and its cross entropy in one, a chunk of positions at a time.

The whole [positions, vocabulary] matrix of logits is never held: each chunk's logits are made, turned into a loss and, if something
trains, into gradients on the spot. A frozen head gets no weight gradient and costs none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# N supervised positions · D width · V vocabulary


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
        weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        bias_grad = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs_bias else None
        for start in range(0, hidden.shape[0], chunk_size):
            part, expected = hidden[start : start + chunk_size].to(dtype), targets[start : start + chunk_size, None]
            logits = F.linear(part, cast_weight, cast_bias).to(wide)
            log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_normaliser - logits.gather(1, expected)).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # d loss / d logits = softmax - one hot, made in place of the logits
            logits_grad = logits.sub_(log_normaliser).exp_()
            logits_grad.scatter_add_(1, expected, torch.full_like(expected, -1, dtype=wide))
            if bias_grad is not None:
                bias_grad += logits_grad.sum(dim=0)
            narrow = logits_grad.to(dtype)
            if hidden_grad is not None:
                torch.mm(narrow, cast_weight, out=hidden_grad[start : start + chunk_size])
            if weight_grad is not None:
                weight_grad += narrow.t() @ part
        ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,) = grad_outputs
        gradients = [
            None if gradient is None else (gradient * scale).to(dtype) for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None)
