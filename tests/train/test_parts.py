"""Who learns: exactly the named parts, and adapters that begin as nothing."""

from __future__ import annotations

import pytest
import torch
from tests.train.conftest import tiny_config, tiny_model

from vistune.errors import UnknownName, UsageError
from vistune.model.config import ImageConfig, LoraConfig
from vistune.model.inputs import RaggedBatch, lay_end_to_end
from vistune.model.llava import Llava
from vistune.train.parts import add_adapters, choose_parts
from vistune.types import Conversation, Message, TextPart

LORA = LoraConfig(rank=2, alpha=4, dropout=0.0)
ANYRES = ImageConfig(size=32, mode="anyres", pinpoints=((32, 64), (64, 32)))


@pytest.fixture
def model() -> Llava:
    return tiny_model(tiny_config())[0]


@pytest.fixture
def batch() -> RaggedBatch:
    conversation = Conversation((Message("user", (TextPart("Hi"),)), Message("assistant", (TextPart("Yes"),))))
    return lay_end_to_end([tiny_model(tiny_config())[1](conversation, train=True)])


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["projector"], ("multi_modal_projector.", "image_newline")),
        (["vision_tower"], ("vision_tower.",)),
        (["language_model"], ("language_model.",)),
        (["projector", "vision_tower"], ("multi_modal_projector.", "image_newline", "vision_tower.")),
    ],
)
def test_the_named_parts_learn_and_no_other(parts, prefixes):
    model, _ = tiny_model(tiny_config(image=ANYRES, image_newline=True))
    choose_parts(model, parts, LORA)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def test_adapters_cover_every_linear_layer_but_the_head_and_are_all_that_lora_trains(model):
    choose_parts(model, ["lora"], LORA)
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_adapters_that_a_model_came_with_are_trained_on(model):
    add_adapters(model, LORA)
    own = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    choose_parts(model, ["lora"], LoraConfig(rank=3))
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == {id(each) for each in own.values()}


def test_fresh_adapters_change_nothing_and_trained_ones_do(model, batch):
    before = model(batch)
    add_adapters(model, LORA)
    torch.testing.assert_close(model(batch), before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert not torch.allclose(model(batch), before)


def test_parts_that_do_not_exist_or_contradict_each_other_are_named(model):
    with pytest.raises(UnknownName, match="Did you mean 'projector'"):
        choose_parts(model, ["projektor"], LORA)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="both language_model and lora"):
        choose_parts(model, ["language_model", "lora"], LORA)
