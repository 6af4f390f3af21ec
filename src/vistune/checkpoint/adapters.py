"""LoRA adapters in PEFT's format: read strictly, merged as PEFT merges or put beside the weights, written so that PEFT reads them.

An adapter is merged into the base weights when a model is loaded: one set of weights answers faster than two, and the base is one
`load_model` away. Only where several models share one set of weights in memory (`shared.py`) does it stay beside them. Training goes on
from an adapter by loading the base and the run's own state, not from a merged model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.checkpoint import names
from vistune.checkpoint.files import Fields, contained_file, has_file, read_json
from vistune.checkpoint.tensors import LazyTensor, TensorSource, listed, read_header, refuse_pickled, write_file
from vistune.errors import CheckpointError, TensorError
from vistune.model.llava import Llava
from vistune.model.threads import one_thread

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(A|B)\.weight")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk. `pairs` maps a weight's name in the model to its (A, B); `replaced` are modules saved whole."""

    base: str | None
    scale: Callable[[str, int], float]
    pairs: Mapping[str, tuple[TensorSource, TensorSource]]
    replaced: Mapping[str, TensorSource]

    def merged_into(self, weights: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """The weights with the adapter added: W + B·A·scale, computed in fp32 when a weight is read. Raises TensorError for a target
        that does not exist or does not fit."""
        result = dict(weights)
        for name, (a, b) in self.pairs.items():
            base = result.get(name)
            if base is None:
                raise _stranger(name)
            _check_fit(name, a, b, base.shape)
            scale = self.scale(name, a.shape[0])
            result[name] = LazyTensor(base.dtype, base.shape, lambda base=base, a=a, b=b, scale=scale: _merge(base, a, b, scale))
        unknown = self.replaced.keys() - result.keys()
        if unknown:
            raise TensorError(f"The adapter folder holds {listed(unknown)}, which the base model does not have.")
        return {**result, **self.replaced}

    def put_on(self, model: Llava) -> None:
        """Puts the adapter beside the linear layers that it changes: x·Wᵀ + x·(B·A·scale)ᵀ, with W as it is, for whoever else uses it.

        Of the modules saved whole it does nothing: they are other weights. Raises TensorError as `merged_into`.
        """
        for name, (a, b) in self.pairs.items():
            parent, _, leaf = name.removesuffix(".weight").rpartition(".")
            try:
                holder = model.get_submodule(parent)
                layer = holder.get_submodule(leaf)
            except AttributeError:
                raise _stranger(name) from None
            if not isinstance(layer, nn.Linear | AdaptedLinear):
                raise TensorError(f"The adapter changes {name}, which is no linear layer; merge it with PEFT and load the result.")
            _check_fit(name, a, b, (layer.out_features, layer.in_features))
            with one_thread():
                up = b.read().float() * self.scale(name, a.shape[0])
                setattr(holder, leaf, AdaptedLinear(layer, a.read().to(model.device, model.dtype), up.to(model.device, model.dtype)))


class AdaptedLinear(nn.Module):
    """A linear layer that other models may use too, and beside it an adapter: down [R, K], up [N, R] with its scale in it."""

    def __init__(self, base_layer: nn.Linear | AdaptedLinear, down: Tensor, up: Tensor):
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base_layer, base_layer.in_features, base_layer.out_features
        self.down, self.up = nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        # Two plain products: a fused one would escape the arithmetic whose bits do not depend on the batch (model/ragged.py).
        return self.base_layer(input) + F.linear(F.linear(input, self.down), self.up)


def _stranger(name: str) -> TensorError:
    return TensorError(f"The adapter changes {name}, which the base model does not have; it belongs to another model.")


def _check_fit(name: str, a: TensorSource, b: TensorSource, shape: tuple[int, ...]) -> None:
    if (b.shape[0], a.shape[1]) != tuple(shape) or a.shape[0] != b.shape[1]:
        raise TensorError(f"The adapter's {list(b.shape)} x {list(a.shape)} does not fit {name} of {list(shape)}.")


_WORTH_THREADS = 1 << 30
"""Multiplications of a product that several threads make faster even where other programs hold the cores: some 20 ms of one."""


def _merge(base: TensorSource, a: TensorSource, b: TensorSource, scale: float) -> Tensor:
    low, high = a.read(), b.read()
    weight = base.read()
    large = weight.numel() * low.shape[0] > _WORTH_THREADS
    with nullcontext() if large else one_thread():
        # As PEFT on a CPU: the product in fp32, rounded to the adapter's dtype, added in the base's.
        weight += (high.float() @ low.float() * scale).to(high.dtype)
    return weight


def is_adapter(folder: Path) -> bool:
    return has_file(folder, CONFIG_NAME)


def read_adapter(folder: Path) -> Adapter:
    """A PEFT LoRA folder. Raises CheckpointError for another kind of adapter and for pickled weights (by name of the command)."""
    where = str(folder / CONFIG_NAME)
    values = read_json(folder, CONFIG_NAME)
    fields = Fields(values, where)
    if fields.text("peft_type") != "LORA":
        raise CheckpointError(f"{where} is a {values['peft_type']} adapter; vistune reads LORA.")
    for option in ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "target_parameters", "alora_invocation_tokens"):
        if values.get(option):
            raise CheckpointError(f"{where} sets {option}; vistune merges plain LoRA only. Merge it with PEFT and load the result.")
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{where} trained biases (bias={values['bias']!r}); merge it with PEFT and load the result.")
    if not has_file(folder, WEIGHTS_NAME):
        refuse_pickled(folder)
    stored = read_header(contained_file(folder, WEIGHTS_NAME))
    pairs, replaced = _sorted_tensors(stored, where)
    base = values.get("base_model_name_or_path")
    return Adapter(base if isinstance(base, str) and base else None, _scale(fields, where), pairs, replaced)


def _sorted_tensors(
    stored: Mapping[str, TensorSource], where: str
) -> tuple[dict[str, tuple[TensorSource, TensorSource]], dict[str, TensorSource]]:
    halves: dict[str, dict[str, TensorSource]] = {}
    replaced: dict[str, TensorSource] = {}
    for name, source in stored.items():
        if match := _LORA.fullmatch(name):
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = source
        elif ".lora_" in name or ".modules_to_save." in name:
            raise CheckpointError(f"{where}: {name} is no tensor of a plain LoRA adapter.")
        else:
            replaced[name] = source
    alone = [f"{name} (only lora_{''.join(half)})" for name, half in halves.items() if len(half) != 2]
    if alone:
        raise TensorError(f"{where}: half of the adapter is missing for {listed(alone)}.")
    pairs = {name: (half["A"], half["B"]) for name, half in halves.items()}
    return names.renamed(pairs, _target), names.renamed(replaced, _target)


def _target(name: str) -> str:
    """The model's name for a weight that PEFT wrapped: inside the language model alone, or inside a whole LLaVA of any generation."""
    inner = names.from_hub(name.removeprefix(_PREFIX))
    if inner.startswith((names.LANGUAGE_MODEL, names.TOWER, names.PROJECTOR)) or inner == names.NEWLINE:
        return inner
    return names.from_original(inner)


def _scale(fields: Fields, where: str) -> Callable[[str, int], float]:
    """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA; patterns set alpha for layers whose name ends with (or matches) a key."""
    alpha, stabilised = fields.number("lora_alpha"), fields.boolean("use_rslora", False)
    patterns = fields.object("alpha_pattern", {})
    if any(re.escape(key).replace(r"\.", ".") != key for key in patterns):
        raise CheckpointError(f"{where}: alpha_pattern uses regular expressions; vistune reads plain layer names. Merge it with PEFT.")

    def scale(name: str, rank: int) -> float:
        layer = name.removesuffix(".weight")
        chosen = next((float(value) for key, value in patterns.items() if layer == key or layer.endswith(f".{key}")), alpha)
        return chosen / rank**0.5 if stabilised else chosen / rank

    return scale


def write_adapter(model: Llava, folder: Path, *, base: str, dtype: torch.dtype | None = None) -> None:
    """Writes the LoRA adapters of a model's language model as a PEFT adapter on the language model `base`, its tensors in `dtype`."""
    peft_config: Any = getattr(model.language_model, "peft_config", None)
    if peft_config is None:
        raise CheckpointError("This model has no LoRA adapters to write; save it whole with save_model.")
    adapter = next(iter(peft_config))
    if peft_config.keys() != {adapter}:
        raise CheckpointError(f"The model carries the adapters {', '.join(peft_config)}; merge or remove all but one.")
    tensors = {
        _PREFIX + name.replace(f".{adapter}.", "."): parameter.detach().to(dtype or parameter.dtype)
        for name, parameter in model.causal_lm.named_parameters()
        if ".lora_" in name
    }
    write_file(folder / WEIGHTS_NAME, tensors)
    previous = peft_config[adapter].base_model_name_or_path
    peft_config[adapter].base_model_name_or_path = base
    try:
        peft_config[adapter].save_pretrained(str(folder))
    finally:
        peft_config[adapter].base_model_name_or_path = previous
