"""Projectors: shapes, names that the Hugging Face folder knows, and visual tokens at the scale of words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vistune.errors import UnknownName, UsageError
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.projector import build_projector

CLIP = {"image_size": 28, "patch_size": 7, "hidden_size": 24}


def projector_of(kind: str) -> nn.Module:
    return build_projector(
        ModelConfig(vision_tower="clip", vision_config=CLIP, text_config={"hidden_size": 32}, image=ImageConfig(size=28), projector=kind)
    )


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "grid_mlp"])
def test_every_projector_maps_features_to_the_language_models_width(kind):
    assert projector_of(kind)(torch.randn(3, 16, 24)).shape == (3, 16, 32)


def test_mlp_has_the_names_and_the_exact_gelu_of_the_hugging_face_folder():
    projector = projector_of("mlp2x_gelu")
    assert sorted(projector.state_dict()) == ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"]
    features = torch.randn(1, 16, 24)
    expected = nn.Sequential(projector.linear_1, nn.GELU(), projector.linear_2)(features)
    assert torch.equal(projector(features), expected)


def test_grid_mlp_gives_visual_tokens_the_scale_of_words_whatever_the_features_scale():
    projector = projector_of("grid_mlp")
    features = torch.randn(50, 16, 24) * torch.logspace(-3, 3, 24) + 7
    words = torch.randn(500, 32) * 0.136
    projector.fit(features, words)
    assert projector(features).std().item() == pytest.approx(0.136, rel=0.05)


def test_grid_mlp_standardises_each_channel_and_leaves_a_constant_one_small():
    projector = projector_of("grid_mlp")
    features = torch.randn(50, 16, 24) * torch.logspace(-1, 1, 24)
    features[..., 0] = 5.0
    projector.fit(features, torch.randn(10, 32))
    standardised = (features - projector.feature_mean) / projector.feature_std
    torch.testing.assert_close(standardised[..., 1:].flatten(0, 1).std(0), torch.ones(23), atol=1e-3, rtol=0)
    assert standardised[..., 0].abs().max() < 1e-3


def test_grid_mlp_tells_equal_cells_apart_by_their_place():
    projector = projector_of("grid_mlp")
    tokens = projector(torch.ones(1, 16, 24))[0]
    assert not torch.equal(tokens[0], tokens[1])


def test_grid_mlp_cannot_be_fitted_to_nothing():
    with pytest.raises(UsageError, match="two or more"):
        projector_of("grid_mlp").fit(torch.randn(0, 16, 24), torch.randn(10, 32))


def test_an_unknown_projector_lists_the_right_ones():
    with pytest.raises(UnknownName, match="Did you mean 'mlp2x_gelu'"):
        projector_of("mlp3x_gelu")
