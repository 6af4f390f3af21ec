"""Which parameters learn, how fast, and when: parameter groups, schedule, clipping.

Groups as in the official trainers: (decay, no decay) × (projector, vision tower, the rest). Everything trained is fp32; fused AdamW
updates it in one pass, also where each process holds a shard of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vistune.train.config import OptimConfig

PROJECTOR_PARTS = ("multi_modal_projector.", "image_newline")
"""The projector's parameters by the beginning of their names; the learned newline of AnyRes pictures is one of them."""


def is_projector(name: str) -> bool:
    return name.startswith(PROJECTOR_PARTS)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient. Each group remembers its own peak learning rate as `peak_lr`."""
    no_decay = _names_without_decay(model)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_peak_lr(name, config), name in no_decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak_lr": peak_lr, "weight_decay": 0.0 if undecayed else config.weight_decay}
            for (peak_lr, undecayed), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def _peak_lr(name: str, config: OptimConfig) -> float:
    own = {"projector": config.projector_lr, "vision_tower": config.tower_lr}.get("projector" if is_projector(name) else name.split(".")[0])
    return config.lr if own is None else own


def _names_without_decay(model: nn.Module) -> set[str]:
    """Biases, and everything inside a normalisation layer, as in the official trainer."""
    names = set()
    for module_name, module in model.named_modules():
        normalises = isinstance(module, nn.LayerNorm | nn.modules.batchnorm._NormBase) or type(module).__name__.endswith("RMSNorm")
        for name, _ in module.named_parameters(recurse=False):
            if normalises or "bias" in name:
                names.add(f"{module_name}.{name}" if module_name else name)
    return names


def schedule_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """What part of its peak the learning rate has at `step` (0 to total_steps - 1).

    Linear warm-up over ceil(ratio × total) steps, then half a cosine down to zero. The official trainer's warm-up begins at exactly zero,
    so that its first step changes nothing; here it begins one notch higher, the rest is the same.
    """
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` of its peak and returns the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scales all gradients down so that their common norm is at most `max_norm`; returns what it was, over all processes' shards."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
