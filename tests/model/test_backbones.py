"""The tables of towers and language models, and the arithmetic of visual tokens."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vistune.errors import UnknownName, UnsupportedModel
from vistune.model.backbones import (
    check_language_model,
    language_model_spec,
    patches_per_side,
    tokens_per_view,
    vision_tower_spec,
    vision_width,
)
from vistune.model.config import ImageConfig, ModelConfig

LLAMA = {"model_type": "llama"}
CLIP_L_336 = {"image_size": 336, "patch_size": 14, "hidden_size": 1024}


def test_clip_large_at_336_gives_576_patches_of_width_1024():
    config = ModelConfig(vision_tower="clip", vision_config=CLIP_L_336, text_config=LLAMA)
    assert (patches_per_side(config), tokens_per_view(config), vision_width(config)) == (24, 576, 1024)


def test_keeping_the_class_token_adds_one_for_clip_and_none_for_siglip():
    clip = ModelConfig(vision_tower="clip", vision_config=CLIP_L_336, text_config=LLAMA, feature_select="full")
    so400m = {"image_size": 384, "patch_size": 14, "hidden_size": 1152}
    siglip = ModelConfig(vision_tower="siglip", vision_config=so400m, text_config=LLAMA, feature_select="full")
    assert tokens_per_view(clip) == 577
    assert tokens_per_view(siglip) == 27 * 27


def test_a_vision_config_that_leaves_out_defaults_is_read_as_transformers_reads_it():
    config = ModelConfig(vision_tower="clip", vision_config={"image_size": 224}, text_config=LLAMA)
    assert (patches_per_side(config), vision_width(config)) == (7, 768)  # CLIP's own defaults: patch 32, width 768


def test_efficientnet_gives_a_seven_by_seven_grid_at_224():
    config = ModelConfig(vision_tower="efficientnet_lite0", text_config=LLAMA, image=ImageConfig(size=224))
    assert (patches_per_side(config), tokens_per_view(config), vision_width(config)) == (7, 49, 1728)


def test_efficientnet_refuses_a_size_that_does_not_tile():
    config = ModelConfig(vision_tower="efficientnet_lite0", text_config=LLAMA, image=ImageConfig(size=230))
    with pytest.raises(UnsupportedModel, match=r"set image\.size to 224"):
        patches_per_side(config)


def test_an_unknown_tower_lists_the_right_ones():
    with pytest.raises(UnknownName, match="Did you mean 'siglip'"):
        vision_tower_spec("siglip2")


def test_a_family_outside_the_parity_tests_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"'mamba'.*llama, mistral"):
        language_model_spec("mamba")


@pytest.mark.parametrize("rope", [{"rope_scaling": {"type": "dynamic"}}, {"rope_parameters": {"rope_type": "longrope"}}])
def test_rope_that_depends_on_the_batch_is_refused_by_name(rope):
    with pytest.raises(UnsupportedModel, match=r"'dynamic'|'longrope'"):
        check_language_model({"model_type": "llama", **rope})


def test_fixed_rope_types_are_accepted():
    assert check_language_model({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}).model_class == "LlamaForCausalLM"
    assert check_language_model({"model_type": "qwen2", "rope_scaling": None}).model_type == "qwen2"


def test_dropout_inside_the_language_model_is_refused():
    with pytest.raises(UnsupportedModel, match="Set attention_dropout to 0"):
        check_language_model({"model_type": "llama", "attention_dropout": 0.1})


def test_the_tables_load_no_torch():
    code = "import sys, vistune.model.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
