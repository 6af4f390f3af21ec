"""What makes a step fit or run faster and leaves its result alone: checkpointing, compiled parts, lean adapters, a quantised base.

The other levers are always on, because nothing speaks against them: ragged batches, the chunked head, the pruned last layer, frozen parts
without weight gradients. For each of all these a test shows that off gives what on gives (`tests/train/test_levers.py` has the list).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistune.errors import MissingDependency, UsageError
from vistune.model.llava import Llava
from vistune.train.adapted import lean_adapters
from vistune.train.config import TrainConfig
from vistune.train.quantise import quantise


def check_levers(config: TrainConfig) -> None:
    """Raises UsageError for levers that do not go together, before anything is loaded."""
    if config.model.quantise == "none":
        return
    if "language_model" in config.trainable:
        raise UsageError(
            f"model.quantise={config.model.quantise} keeps the language model in few bits, and `trainable` names language_model: what is "
            "quantised cannot learn. Train adapters on it (trainable=projector,lora), or set model.quantise=none."
        )
    if config.parallel.shard == "all":
        raise UsageError(
            f"model.quantise={config.model.quantise} and parallel.shard=all (frozen weights divided among processes) are not tested "
            "together, and so refused. Set parallel.shard=trained: each process then holds the quantised language model whole."
        )


def apply(model: Llava, config: TrainConfig) -> None:
    """Pulls the levers that `config` names; once, after its parts were chosen and its adapters added.

    Raises UsageError as `check_levers`, and MissingDependency for bitsandbytes or a compiler that is not there.
    """
    check_levers(config)
    if config.model.quantise != "none":
        quantise(model, config.model.quantise, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    if config.compile:
        compile_parts(model)
    elif "lora" in config.trainable:
        lean_adapters(model)
    if config.activation_checkpointing:
        checkpoint_layers(model)


def checkpoint_layers(model: Llava) -> None:
    """Keeps only the input of each decoder layer for the backward pass, which runs the layer a second time.

    A last layer that is pruned to some rows is not among them: its backward pass comes first, so it would be run twice in a row, and what
    it keeps is less than any other layer needs when its turn comes.
    """
    for layer in _decoder_layers(model):
        layer.forward = _checkpointed(layer.forward)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(forward)
    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(hidden, *args, **kwargs)
        return cast(Tensor, checkpoint(forward, hidden, *args, use_reentrant=False, **kwargs))

    return run


def compile_parts(model: Llava) -> None:
    """Compiles the norms and the MLP of each decoder layer: what lies between the large products is many small passes over memory.

    Regional: layers of one shape share their code, so it is compiled once however many there are, and attention, which loops over the
    sequences of a batch, stays as it is. Batches of any length run through the same code.

    Raises MissingDependency on a CPU without a C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise MissingDependency(
            f"compile=true needs a C++ compiler on a CPU, and {compiler} is not there. Install one (Debian: apt install g++), name another "
            "in the environment variable CXX, or set compile=false."
        )
    for layer in _decoder_layers(model):
        for part in layer.children():
            if part is not layer.self_attn:
                part.forward = torch.compile(part.forward, dynamic=True)


def _decoder_layers(model: Llava) -> nn.ModuleList:
    return cast(nn.ModuleList, model.causal_lm.model.layers)
