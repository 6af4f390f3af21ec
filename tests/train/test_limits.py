"""The formulas of the physical limits: against counted models, against published arithmetic, against a counter of operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.train.conftest import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from vistune.model.config import LoraConfig, ModelConfig
from vistune.model.inputs import RaggedBatch
from vistune.model.llava import Llava
from vistune.train import limits
from vistune.train.limits import Attainable, SampleSize
from vistune.train.parts import add_adapters
from vistune.train.shapes import PUBLISHED_LANGUAGE_MODELS, ModelShape, model_shape, published_config

VICUNA, CLIP = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"
SMOL, SIGLIP = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/siglip-base-patch16-224"


def shape_of(language_model: str, vision_tower: str) -> ModelShape:
    config = published_config(language_model, vision_tower, "mlp2x_gelu")
    assert config is not None
    return model_shape(config)


def test_published_shapes_have_the_published_numbers_of_parameters():
    known = {"lmsys/vicuna-7b-v1.5": 6_738_415_616, "lmsys/vicuna-13b-v1.5": 13_015_864_320, SMOL: 134_515_008}
    assert {name: model_shape_of_text(name) for name in known} == known
    clip, siglip = shape_of(VICUNA, CLIP).tower, shape_of(SMOL, SIGLIP).tower
    assert clip.parameters == pytest.approx(303_507_456, rel=1e-3)
    assert (clip.tokens, siglip.tokens) == (576, 196)


def model_shape_of_text(name: str) -> int:
    config = published_config(name, CLIP, "linear")
    assert config is not None
    return model_shape(config).language_model.parameters


@pytest.mark.parametrize(
    "changes",
    [{}, {"projector": "linear"}, {"vision_tower": "efficientnet_lite0", "vision_config": {}, "projector": "grid_mlp"}],
    ids=["mlp", "linear", "efficientnet"],
)
def test_a_shape_counts_the_parameters_that_the_model_has(changes: dict[str, Any]):
    config = tiny_config(**changes)
    if changes.get("vision_tower"):
        config = replace(config, image=replace(config.image, size=64))
    with torch.device("meta"):
        model = Llava(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model_shape(config).parameters == pytest.approx(counted, rel=0.01)


def test_the_forward_formula_agrees_with_a_counter_of_operations():
    config = wide_config()
    shape = model_shape(config)
    model = Llava(config)
    length, supervised = 96, 12  # by fours: inference in fp32 rounds rows up to that
    ids = torch.full((length,), 7)
    batch = RaggedBatch(
        input_ids=ids,
        labels=None,
        position_ids=torch.arange(length),
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        image_mask=torch.zeros(length, dtype=torch.bool),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch, select=torch.arange(length - supervised, length))
        model.vision_tower(torch.zeros(1, 3, 32, 32))
    once = limits.forward_flops(shape, SampleSize(length, supervised, views=1))
    # The counter does not know the CPU's attention kernel, so the tower's is left out here too.
    tower_attention = 4 * shape.tower.layers * shape.tower.sequence**2 * shape.tower.width
    assert once.linear + once.head + once.tower - tower_attention == pytest.approx(counter.get_total_flops(), rel=1e-9)


def wide_config() -> ModelConfig:
    config = tiny_config()
    return replace(config, text_config={**config.text_config, "hidden_size": 64, "intermediate_size": 160})


def test_limits_are_those_of_the_worked_examples():
    stage1 = SampleSize(tokens=593, supervised=17, visual=576, views=1)
    stage2 = SampleSize(tokens=838, supervised=144, visual=541, views=1)
    vicuna, smol = shape_of(VICUNA, CLIP), shape_of(SMOL, CLIP)
    assert limits.step_flops(vicuna, [stage1], ("projector",)).total == pytest.approx(15.4e12, rel=0.03)
    assert limits.step_flops(vicuna, [stage2], ("projector", "language_model")).total == pytest.approx(32.6e12, rel=0.06)
    assert limits.step_flops(smol, [stage1], ("projector",), cached=1.0).total == pytest.approx(0.290e12, rel=0.03)


def test_a_row_that_is_all_supervised_saves_nothing_and_none_saves_most():
    language = shape_of(SMOL, SIGLIP).language_model
    assert limits.pruned_flops(language, 100, 100) == (0.0, 0.0)
    linear, attention = limits.pruned_flops(language, 100, 0)
    assert 0 < linear < limits.linear_flops(language, 100) / language.layers
    assert attention == limits.attention_flops(language, 100) / language.layers


def test_recomputation_is_work_but_never_useful_work():
    smol, sizes = shape_of(SMOL, SIGLIP), [SampleSize(300, 40, 196, 1)]
    useful = limits.step_flops(smol, sizes, ("language_model",)).total
    assert limits.recomputed_flops(smol, sizes) == pytest.approx(useful / 3, rel=0.25)


def test_adapters_learn_at_the_price_of_a_frozen_model_and_a_little():
    smol, sizes = shape_of(SMOL, SIGLIP), [SampleSize(300, 40, 196, 1)]
    lora = limits.step_flops(smol, sizes, ("projector", "lora"), lora_rank=16)
    stage1 = limits.step_flops(smol, sizes, ("projector",))
    full = limits.step_flops(smol, sizes, ("projector", "language_model"))
    assert stage1.total < lora.total < full.total
    assert lora.total - stage1.total == lora.adapters


def test_a_step_takes_the_longer_of_products_and_traffic_and_then_the_optimizer():
    device = Attainable(flops_per_second=10.0, bytes_per_second=5.0)
    assert limits.floor_seconds(100, 20, 10, device) == 12
    assert limits.floor_seconds(10, 20, 10, device) == 6


def test_lora_parameters_are_those_that_peft_makes():
    config = tiny_config()
    model = Llava(config)
    add_adapters(model, LoraConfig(rank=4))
    made = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    assert model_shape(config).language_model.lora_parameters(4) == made


def test_every_published_language_model_is_of_a_family_that_runs():
    from vistune.model.backbones import check_language_model

    for config in PUBLISHED_LANGUAGE_MODELS.values():
        check_language_model(config)


def test_the_attainable_rates_of_this_machine_are_measured():
    rates = limits.measure_attainable(model_shape(tiny_config()).language_model, "fp32", tokens=16, megabytes=1, repeats=1)
    assert rates.flops_per_second > 0
    assert rates.bytes_per_second > 0
