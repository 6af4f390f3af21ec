"""Configs: recipes complete and official, overrides checked, JSON and back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vistune.errors import UnknownName, UsageError
from vistune.train.config import flat, override
from vistune.train.recipes import recipe


def test_a_13b_recipe_differs_from_the_7b_in_its_language_model_and_places_only():
    small, large = flat(recipe("llava_v1_5_7b_finetune")), flat(recipe("llava_v1_5_13b_finetune"))
    differ = {"recipe", "output", "model.language_model", "model.init_from", "activation_checkpointing"}
    assert {name for name in small if small[name] != large[name]} == differ


def test_overrides_are_read_as_the_type_of_what_they_replace():
    changes = {"optim.lr": "1e-5", "max_steps": "7", "early_stop": "none", "trainable": "projector,lora", "optim.betas": "0.9, 0.95"}
    config = override(recipe("smol_tune"), {**changes, "data.mask": "official", "optim.projector_lr": 2})
    assert (config.optim.lr, config.max_steps, config.early_stop, config.trainable) == (1e-5, 7, None, ("projector", "lora"))
    assert (config.optim.betas, config.data.mask, config.optim.projector_lr) == ((0.9, 0.95), "official", 2.0)


@pytest.mark.parametrize(
    ("name", "value", "error", "complaint"),
    [
        ("optim.learning_rate", "1", UnknownName, "optim.lr"),
        ("optim", "1", UnknownName, "setting called 'optim'"),
        ("data.mask", "all", UnknownName, "Known: answers, official"),
        ("trainable", "projector,eyes", UnknownName, "eyes"),
        ("max_steps", "1.5", UsageError, "a whole number"),
        ("optim.lr", "fast", UsageError, "a number"),
        ("optim.betas", "0.9", UsageError, "2 values"),
    ],
)
def test_a_wrong_override_says_what_is_right(name: str, value: str, error: type[Exception], complaint: str):
    with pytest.raises(error, match=complaint):
        override(recipe("smol_tune"), {name: value})


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UnknownName, match="smol_tune"):
        recipe("smol_tun")


def test_listing_recipes_loads_no_torch():
    code = "import sys, vistune.train.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
