"""Every LLaVA recipe is the official script of its name, number by number."""

from __future__ import annotations

import pytest

from vistune.data.datasets import DATASETS
from vistune.errors import UnknownName
from vistune.model.templates import TEMPLATES
from vistune.train.config import flat, override
from vistune.train.plan import DEVICES, make_plan
from vistune.train.recipes import RECIPES, recipe

FULL, LORA, STAGE1 = ("projector", "language_model"), ("projector", "lora"), ("projector",)
EVERYTHING = ("projector", "language_model", "vision_tower")

# As in the scripts: rows · trained · lr · projector's lr · epochs · global batch · longest · template · how a picture is seen
OFFICIAL = {
    "llava_v1_pretrain": ("llava_cc3m_595k", STAGE1, 2e-3, None, 1, 128, 2048, "plain", "square"),
    "llava_v1_13b_pretrain": ("llava_cc3m_595k", STAGE1, 2e-3, None, 1, 128, 2048, "plain", "square"),
    "llava_v1_finetune": ("llava_instruct_158k", FULL, 2e-5, None, 3, 128, 2048, "vicuna_v1", "square"),
    "llava_v1_finetune_lora": ("llava_instruct_80k", LORA, 2e-5, None, 1, 128, 2048, "vicuna_v1", "square"),
    "llava_v1_finetune_qlora": ("llava_instruct_80k", LORA, 2e-5, None, 1, 128, 2048, "vicuna_v1", "square"),
    "llava_v1_finetune_sqa": ("scienceqa_qcm_lea", FULL, 2e-5, None, 12, 128, 2048, "vicuna_v1", "square"),
    "llava_v1_5_7b_pretrain": ("llava_pretrain_558k", STAGE1, 1e-3, None, 1, 256, 2048, "plain", "square"),
    "llava_v1_5_7b_finetune": ("llava_v1_5_mix665k", FULL, 2e-5, None, 1, 128, 2048, "vicuna_v1", "pad"),
    "llava_v1_5_7b_finetune_lora": ("llava_v1_5_mix665k", LORA, 2e-4, 2e-5, 1, 128, 2048, "vicuna_v1", "pad"),
    "llava_v1_5_7b_finetune_qlora": ("llava_v1_5_mix665k", LORA, 2e-4, 2e-5, 1, 128, 2048, "vicuna_v1", "pad"),
    "llava_v1_5_7b_finetune_task": ("task.json", FULL, 2e-5, None, 1, 128, 2048, "vicuna_v1", "pad"),
    "llava_v1_5_7b_finetune_task_lora": ("task.json", LORA, 2e-4, 2e-5, 1, 128, 2048, "vicuna_v1", "pad"),
    "llava_next_pretrain": ("llava_pretrain_558k", STAGE1, 1e-3, None, 1, 128, 8192, "plain", "square"),
    "llava_next_finetune": ("llava_next_779k", EVERYTHING, 1e-5, None, 1, 128, 32768, "qwen_1_5", "anyres"),
}
OFFICIAL |= {name.replace("_7b_", "_13b_"): row for name, row in OFFICIAL.items() if "_7b_" in name}


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_a_recipe_has_the_numbers_of_its_script(name: str):
    config = recipe(name)
    optim = config.optim
    found = (config.data.dataset, config.trainable, optim.lr, optim.projector_lr, config.epochs, config.batch.conversations)
    assert (*found, config.model.max_length, config.model.template, config.model.image_mode) == OFFICIAL[name]
    shared = (optim.schedule, optim.warmup_ratio, optim.weight_decay, optim.max_grad_norm, optim.betas, optim.epsilon, config.seed)
    assert shared == ("cosine", 0.03, 0.0, 1.0, (0.9, 0.999), 1e-8, 42)
    assert config.precision == "bf16"
    assert config.data.mask == "official"


def test_every_recipe_of_llava_is_held_to_its_script():
    assert {name for name in RECIPES if name.startswith("llava")} == set(OFFICIAL)


def test_adapters_have_the_ranks_of_the_scripts():
    v1, v1_5 = recipe("llava_v1_finetune_lora").lora, recipe("llava_v1_5_13b_finetune_task_lora").lora
    assert (v1.rank, v1.alpha, v1.dropout) == (64, 16, 0.05)
    assert (v1_5.rank, v1_5.alpha, v1_5.dropout) == (128, 256, 0.05)
    assert {name for name in RECIPES if recipe(name).model.quantise != "none"} == {name for name in RECIPES if "qlora" in name}


def test_the_tower_of_next_learns_at_its_own_rate():
    config = recipe("llava_next_finetune")
    assert (config.optim.lr, config.optim.tower_lr) == (1e-5, 2e-6)
    assert [name for name in RECIPES if "vision_tower" in recipe(name).trainable] == ["llava_next_finetune"]


def test_v1_sees_with_the_small_clip_and_a_linear_projector_and_v1_5_with_the_large_one_and_an_mlp():
    v1, v1_5 = recipe("llava_v1_finetune").model, recipe("llava_v1_5_13b_finetune").model
    assert (v1.vision_tower, v1.projector) == ("openai/clip-vit-large-patch14", "linear")
    assert (v1_5.vision_tower, v1_5.projector) == ("openai/clip-vit-large-patch14-336", "mlp2x_gelu")
    assert v1_5.language_model == "lmsys/vicuna-13b-v1.5"


def test_a_stage_begins_where_the_stage_before_it_ends():
    outputs = {f"{recipe(name).output}/model" for name in RECIPES}
    published = {"llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"}
    assert {recipe(name).model.init_from for name in RECIPES} - {""} <= outputs | published
    assert len(outputs) == len(RECIPES)
    assert recipe("llava_v1_5_13b_finetune_task").model.init_from == "llava-hf/llava-1.5-13b-hf"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_complete(name: str):
    config = recipe(name)
    assert config.recipe == name
    assert (RECIPES[name].__doc__ or "").strip()
    assert override(config, flat(config)) == config  # every value fits its type
    assert config.model.template in TEMPLATES
    assert config.data.dataset in DATASETS or "task" in name


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_eight_gpus_of_80_gb_hold_every_official_recipe(name: str):
    assert make_plan(recipe(name), DEVICES["a100-80"], gpus=8, rows=100_000).fits


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(UnknownName, match="llava_v1_5_7b_finetune"):
        recipe("llava_v1_5_7b_finetun")
