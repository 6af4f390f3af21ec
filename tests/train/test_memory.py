"""What a layer keeps for its backward pass is what the plan says it keeps, counted to the byte."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.train.conftest import tiny_config
from torch import Tensor

from vistune.model.config import LoraConfig, ModelConfig
from vistune.model.inputs import IGNORE_INDEX, RaggedBatch
from vistune.model.llava import Llava
from vistune.train.config import DataConfig, ModelChoice, OptimConfig, Part, Precision, TrainConfig
from vistune.train.levers import apply
from vistune.train.memory import Forward, needed_memory
from vistune.train.parts import choose_parts, hold_in_precision
from vistune.train.shapes import model_shape

PARTS: tuple[tuple[Part, ...], ...] = (("projector",), ("projector", "language_model"), ("projector", "lora"))
VISUAL, SUPERVISED = 16, 24


def wide(layers: int) -> ModelConfig:
    text = {**tiny_config().text_config, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_hidden_layers": layers}
    return replace(tiny_config(), text_config=text)


def run_of(parts: tuple[Part, ...], precision: Precision, **changes: Any) -> TrainConfig:
    return TrainConfig(
        recipe="tiny",
        output="",
        model=ModelChoice(init_from="tiny"),
        trainable=parts,
        data=DataConfig(dataset=""),
        optim=OptimConfig(lr=1e-3),
        lora=LoraConfig(rank=8, alpha=16, dropout=0.0),
        precision=precision,
        **changes,
    )


def batch_of(lengths: tuple[int, ...]) -> RaggedBatch:
    total, starts = sum(lengths), [0, *itertools.accumulate(lengths)]
    labels, mask = torch.full((total,), IGNORE_INDEX), torch.zeros(total, dtype=torch.bool)
    for start, end in itertools.pairwise(starts):
        labels[end - SUPERVISED : end] = 5
        mask[start + 1 : start + 1 + VISUAL] = True
    return RaggedBatch(
        input_ids=torch.full((total,), 7),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        image_mask=mask,
        labels=labels,
        pixel_values=torch.randn(len(lengths), 3, 32, 32),
        views=(1,) * len(lengths),
        image_sizes=((32, 32),) * len(lengths),
    )


def kept_bytes(config: TrainConfig, layers: int, lengths: tuple[int, ...]) -> int:
    """What autograd holds at the end of a forward pass, weights and their copies in bf16 left out."""
    model = Llava(wide(layers))
    choose_parts(model, config.trainable, config.lora)
    hold_in_precision(model, config.precision)
    apply(model, config)
    weights = {parameter.shape for name, parameter in model.named_parameters() if parameter.dim() == 2}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # as long as these live, no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        is_copy = tensor.dim() == 2 and {tensor.shape, tensor.t().shape} & weights
        if storage.data_ptr() not in own and not is_copy:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        model.loss(batch_of(lengths))
    return sum(kept.values())


def planned(config: TrainConfig, layers: int, lengths: tuple[int, ...]) -> float:
    forward = Forward(lengths, SUPERVISED * len(lengths), VISUAL * len(lengths), len(lengths))
    return needed_memory(config, model_shape(wide(layers)), forward, rows=[], forwards=1, device="cpu").activations


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_layer_keeps_what_the_plan_says(parts: tuple[Part, ...], precision: Precision, dropout: float):
    if dropout and "lora" not in parts:
        pytest.skip("only adapters have a dropout")
    config = run_of(parts, precision)
    config = replace(config, lora=replace(config.lora, dropout=dropout))
    for lengths in ((300, 300), (1100, 100)):
        two, three = (kept_bytes(config, layers, lengths) for layers in (2, 3))
        expected = planned(config, 3, lengths) - planned(config, 2, lengths)
        assert three - two == pytest.approx(expected, rel=0.02), lengths


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_with_checkpointing_a_layer_keeps_its_input(parts: tuple[Part, ...]):
    config = run_of(parts, "bf16", activation_checkpointing=True)
    two, three = (kept_bytes(config, layers, (300, 300)) for layers in (2, 3))
    assert three - two == pytest.approx(planned(config, 3, (300, 300)) - planned(config, 2, (300, 300)), rel=0.02)
