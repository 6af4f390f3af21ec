"""Which parts of the model learn, and in which number format each part is held."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vistune.errors import UsageError
from vistune.model.config import LoraConfig
from vistune.model.llava import Llava, apply_lora, set_trainable
from vistune.train.config import Part, Precision
from vistune.train.optim import is_projector


def choose_parts(model: Llava, parts: Sequence[Part], lora: LoraConfig) -> None:
    """Lets exactly the named parts require gradients. `lora` puts fresh adapters on the language model, unless it came with some."""
    if "lora" in parts and "language_model" in parts:
        raise UsageError(
            "`trainable` names both language_model and lora; adapters are for a language model that stays as it is. Choose one."
        )
    if "lora" in parts and not any(".lora_" in name for name, _ in model.named_parameters()):
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 by a name that is going away; nobody who trains can do anything about it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            apply_lora(model, lora)
    # The learned line break of AnyRes pictures goes with the projector: both turn pictures into the language model's tokens.
    newline = ["image_newline"] if "projector" in parts and model.image_newline is not None else []
    set_trainable(model, [*parts, *newline])


def part_of(name: str) -> Part:
    """The part of the model to which a parameter or buffer belongs, by its name."""
    if is_projector(name):
        return "projector"
    if name.startswith("vision_tower."):
        return "vision_tower"
    return "lora" if ".lora_" in name else "language_model"


def hold_in_precision(model: Llava, precision: Precision) -> None:
    """Trained parameters are fp32 masters, always. Frozen ones are cast to the forward's format once, not at every use.

    The projector stays fp32: it is small, and its statistics are measurements. So do batch norms, for the same reason. The model also runs
    without autocast as it is held, for those who sample from it meanwhile.
    """
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    measured = {id(each) for module in model.modules() if isinstance(module, nn.BatchNorm2d) for each in module.parameters()}
    for name, parameter in model.named_parameters():
        keep = parameter.requires_grad or part_of(name) == "projector" or id(parameter) in measured
        parameter.data = parameter.data.to(torch.float32 if keep else frozen)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and part_of(name) in ("projector", "vision_tower"):
            buffer.data = buffer.data.float()


def trained_tensors(model: Llava, parts: Sequence[Part]) -> Iterator[tuple[str, Tensor]]:
    """All that training sets: parameters that require gradients, and the buffers of trained parts (the projector's statistics)."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    for name, buffer in model.named_buffers():
        if part_of(name) == "projector" and "projector" in parts:
            yield name, buffer
