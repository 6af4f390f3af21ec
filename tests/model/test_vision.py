"""Vision towers: the right hidden state, nothing computed after it, and EfficientNet-Lite0 by its published definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import transformers
from torch.nn import functional as F

from vistune.errors import UnknownName, UnsupportedModel
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.ragged import fixed_row_tiles, steady_rows
from vistune.model.vision import build_vision_tower

TOWER = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
LLAMA = {"model_type": "llama", "hidden_size": 32}


def tower_config(tower: str, **changes) -> ModelConfig:
    return ModelConfig(**{"vision_tower": tower, "vision_config": TOWER, "text_config": LLAMA, "image": ImageConfig(size=28), **changes})


@pytest.mark.parametrize("layer", [-1, -2, -4, 0, 1, 3])
@pytest.mark.parametrize(("tower", "stock"), [("clip", transformers.CLIPVisionModel), ("siglip", transformers.SiglipVisionModel)])
def test_features_are_the_selected_hidden_state_bit_for_bit(tower, stock, layer):
    ours = build_vision_tower(tower_config(tower, feature_layer=layer, feature_select="full")).eval()
    reference = stock(ours.vision_model.config).eval()
    reference.load_state_dict(ours.vision_model.state_dict())
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(ours(pixels), reference(pixels, output_hidden_states=True).hidden_states[layer])


def test_patch_selection_drops_the_class_token_of_clip_and_nothing_of_siglip():
    pixels = torch.randn(1, 3, 28, 28)
    for tower, tokens in (("clip", 17), ("siglip", 16)):
        full = build_vision_tower(tower_config(tower, feature_select="full"))
        patch = build_vision_tower(tower_config(tower, feature_select="patch"))
        patch.load_state_dict(full.state_dict())
        assert full(pixels).shape == (1, tokens, 24) == (1, full.tokens, full.width)
        assert torch.equal(patch(pixels), full(pixels)[:, -16:])


def test_layers_after_the_selected_one_are_kept_but_not_run():
    tower = build_vision_tower(tower_config("clip", feature_layer=-2))
    tower.vision_model.encoder.layers[2].register_forward_hook(lambda *_: pytest.fail("the last layer ran"))
    tower(torch.randn(1, 3, 28, 28))
    assert "vision_model.encoder.layers.2.mlp.fc1.weight" in tower.state_dict()
    assert "vision_model.post_layernorm.weight" in tower.state_dict()


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(UnsupportedModel, match="choose 0 to 3"):
        build_vision_tower(tower_config("clip", feature_layer=4))


def test_an_image_size_other_than_the_towers_is_refused():
    with pytest.raises(UnsupportedModel, match=r"set image\.size to 28"):
        build_vision_tower(tower_config("clip", image=ImageConfig(size=336)))


def test_an_unknown_tower_is_refused():
    with pytest.raises(UnknownName, match="Known: clip"):
        build_vision_tower(tower_config("dino"))


def efficientnet(size: int = 64):
    torch.manual_seed(0)
    return build_vision_tower(tower_config("efficientnet_lite0", image=ImageConfig(size=size)))


def test_efficientnet_has_the_published_tensors():
    state = efficientnet().state_dict()
    assert len(state) == 296  # as counted in the published file
    assert sum(tensor.numel() for name, tensor in state.items() if name.endswith(("weight", "bias"))) == 4_652_008
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert not any("_blocks.0._expand_conv" in name for name in state)  # the first stage does not widen


def test_efficientnet_gives_head_and_unshuffled_middle_channels_per_cell():
    tower = efficientnet(96)
    features = tower(torch.randn(2, 3, 96, 96))
    assert features.shape == (2, 9, 1728)
    assert features.is_contiguous()


def test_efficientnet_cells_lie_where_their_pixels_lie():
    tower = efficientnet(224)
    pixels = torch.zeros(1, 3, 224, 224)
    changed = pixels.clone()
    changed[..., :20, 200:] = 3.0  # the top right corner
    with torch.inference_mode():
        difference = (tower(changed) - tower(pixels))[0, :, 1280:].norm(dim=1).reshape(7, 7)
    assert difference.argmax() == 6


def test_efficientnet_padding_is_tensorflows():
    stem = efficientnet()._conv_stem
    pixels = torch.randn(1, 3, 8, 8)
    expected = F.conv2d(F.pad(pixels, (0, 1, 0, 1)), stem.weight, stride=2)  # even sides, stride 2: the odd pixel goes right and below
    torch.testing.assert_close(stem(pixels), expected)


def test_efficientnet_statistics_stay_as_trained_in_training_mode():
    tower = efficientnet().train()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    tower(torch.randn(2, 3, 64, 64) * 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


@pytest.mark.parametrize(("mode", "dtype"), [(fixed_row_tiles, torch.bfloat16), (steady_rows, torch.float32)])
def test_efficientnet_sees_a_picture_in_company_as_it_sees_it_alone(mode: Callable[[], AbstractContextManager[None]], dtype: torch.dtype):
    tower = efficientnet(224).eval().to(dtype)
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode(), mode():
        together = tower(pixels)
        assert all(torch.equal(alone, tower(picture)) for alone, picture in zip(together.split(1), pixels.split(1), strict=True))
