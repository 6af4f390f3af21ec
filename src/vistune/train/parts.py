"""Which parts of the model learn, and in which number format each part is held."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from vistune.errors import UnknownName, UsageError
from vistune.model.config import LoraConfig
from vistune.model.llava import Llava
from vistune.train.config import Part, Precision
from vistune.train.optim import is_projector
from vistune.train.quantise import norms_of_quantised


def choose_parts(model: Llava, parts: Sequence[Part], lora: LoraConfig) -> None:
    """Lets exactly the named parts require gradients. `lora` puts fresh adapters on the language model, unless it came with some.

    Raises UnknownName for a part that no model has, and UsageError for a language model that should both stay as it is and not.
    """
    for part in parts:
        if part not in get_args(Part):
            raise UnknownName("trainable part", part, known=get_args(Part))
    if "lora" in parts and "language_model" in parts:
        raise UsageError(
            "`trainable` names both language_model and lora; adapters are for a language model that stays as it is. Choose one."
        )
    if "lora" in parts and not any(".lora_" in name for name, _ in model.named_parameters()):
        add_adapters(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def add_adapters(model: Llava, config: LoraConfig) -> None:
    """Puts LoRA adapters on every linear layer of the language model but its head, as the original recipe does.

    The adapters are PEFT's and are kept in fp32 over a half-precision base.
    """
    import peft

    layers = cast(nn.Module, model.causal_lm.model.layers)
    targets = {name.rsplit(".", 1)[-1] for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    adapters = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(targets), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a property by its old name; nobody who trains can do anything about it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model.language_model = peft.get_peft_model(model.causal_lm, adapters)


def part_of(name: str) -> Part:
    """The part of the model to which a parameter or buffer belongs, by its name.

    The learned line break of AnyRes pictures goes with the projector: both turn pictures into the language model's tokens.
    """
    if is_projector(name):
        return "projector"
    if name.startswith("vision_tower."):
        return "vision_tower"
    return "lora" if ".lora_" in name else "language_model"


def hold_in_precision(model: Llava, precision: Precision, *, but: Collection[nn.Parameter] = ()) -> None:
    """Trained parameters are fp32 masters, always. Frozen ones are cast to the forward's format once, not at every use.

    The projector stays fp32: it is small, and its statistics are measurements. So do batch norms, for the same reason, and the norms of
    quantised layers. The model also runs without autocast as it is held, for those who sample from it meanwhile.

    Args:
        but: parameters whose masters are made later; if they are frozen they are cast as all are.
    """
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    wide = {id(each) for module in model.modules() if isinstance(module, nn.BatchNorm2d) for each in module.parameters()}
    wide |= {id(each) for each in norms_of_quantised(model)}
    for name, parameter in model.named_parameters():
        if parameter in but and parameter.requires_grad:
            continue
        keep = parameter.requires_grad or part_of(name) == "projector" or id(parameter) in wide
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
