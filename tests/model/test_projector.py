"""Projectors: shapes, names that the Hugging Face folder knows, and visual tokens at the scale of words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vistune.errors import UnknownName, UsageError
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.projector import GridMLPProjector, build_projector

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


PLACES = nn.functional.normalize(torch.randn(16, 32), dim=-1)


def test_grid_mlp_gives_visual_tokens_the_scale_of_words_whatever_the_features_scale():
    projector = projector_of("grid_mlp")
    features = torch.randn(50, 16, 24) * torch.logspace(-3, 3, 24) + 7
    words = torch.randn(500, 32) * 0.136
    projector.fit(features, words, PLACES)
    # What lies in a cell at the scale of a word, and half as much for where it lies.
    assert projector(features).std().item() == pytest.approx(0.136 * 1.25**0.5, rel=0.05)


def test_grid_mlp_begins_by_calling_each_place_by_its_word():
    projector = projector_of("grid_mlp")
    projector.fit(torch.randn(50, 16, 24), torch.randn(500, 32), PLACES)
    tokens = projector(torch.randn(200, 16, 24)).mean(0)
    assert nn.functional.cosine_similarity(tokens[:, None], PLACES[None], dim=-1).argmax(1).tolist() == list(range(16))


def test_grid_mlp_lets_a_cell_hear_its_neighbours_and_no_others():
    projector = projector_of("grid_mlp")
    nn.init.normal_(projector.neighbours.weight)
    features = torch.randn(1, 16, 24)
    changed = features.clone()
    changed[0, 5] += 1.0  # row 1, column 1 of 4 × 4
    moved = (projector(features) - projector(changed)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def worded(*, words: int = 6, certain: float = 1.0) -> GridMLPProjector:
    """A projector that was given words, as certain of them as asked; its middles are marked nowhere."""
    projector = projector_of("grid_mlp")
    assert isinstance(projector, GridMLPProjector)
    projector.fit(torch.randn(50, 16, 24), torch.randn(500, 32) * 0.136, PLACES)
    projector.take_words(*nn.functional.normalize(torch.randn(words + 1, 32), dim=-1).split([words, 1]))
    nn.init.normal_(projector.linear_2.weight, std=certain)
    nn.init.constant_(projector.middle.bias, -50.0)
    return projector


def test_grid_mlp_says_what_it_sees_in_the_words_it_was_given():
    projector, features = worded(certain=1e4), torch.randn(3, 16, 24)
    said = projector.read(features)[0].argmax(-1)
    # So certain that each cell is one word, as long as a word of the language model is, with the cell's place added.
    length = 0.136 * 32**0.5
    torch.testing.assert_close(projector(features), projector.words[said] * length + 0.5 * PLACES * length, rtol=0.1, atol=0.02)


def test_grid_mlp_that_is_unsure_says_several_words_by_their_probability():
    projector, features = worded(certain=2.0), torch.randn(2, 16, 24)
    weights = projector.read(features)[0].softmax(-1)
    assert 0.2 < weights.max(-1).values.mean() < 0.95
    expected = (weights @ projector.words * 32**0.5 + projector.position) * projector.scale
    torch.testing.assert_close(projector(features), expected)


def test_grid_mlp_marks_the_cell_that_holds_the_middle_of_a_thing():
    projector, features = worded(), torch.randn(2, 16, 24)
    unmarked = projector(features)
    nn.init.constant_(projector.middle.bias, 50.0)
    marks = (projector(features) - unmarked) / projector.scale
    torch.testing.assert_close(marks, projector.middle_mark.expand_as(marks), rtol=1e-3, atol=1e-4)
    assert projector.middle_mark.norm().item() == pytest.approx(0.5 * 32**0.5)


def test_grid_mlp_with_words_runs_in_half_precision():
    projector, features = worded(), torch.randn(2, 16, 24)
    expected = projector(features)
    found = projector.to(torch.bfloat16)(features.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)


class TestClassesOfTheTower:
    """A projector on EfficientNet-Lite0, aligned with pictures whose channels are all of mean 0 and deviation 1."""

    def projector(self) -> GridMLPProjector:
        config = ModelConfig(
            vision_tower="efficientnet_lite0",
            text_config={"hidden_size": 32},
            image=ImageConfig(size=64),
            projector="grid_mlp",
            visual_words=3,
        )
        projector = build_projector(config)
        assert isinstance(projector, GridMLPProjector)
        assert projector.classes
        words = nn.functional.normalize(torch.randn(3 + len(projector.classes.words) + 1, 32), dim=-1)
        projector.take_words(words[:3], words[3], words[4:])
        nn.init.constant_(projector.middle.bias, -50.0)
        nn.init.zeros_(projector.position)
        return projector

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The first channels tell the cats, which are five classes, from a kind of fish."""
        logits = torch.zeros(*features.shape[:-1], 1000)
        logits[..., [281, 282, 283, 284, 285, 0]] = 4.0 * features[..., :6]
        return logits

    def features(self, *, size: float) -> torch.Tensor:
        """One picture of 2 × 2 cells: three show something of all cats, the last a fish."""
        torch.manual_seed(1)
        features = torch.randn(1, 4, 1728) * size
        features[..., :6] = 0.0
        features[0, :3, :5] = 4.0
        features[0, 3, 5] = 4.0
        return features

    def test_of_a_strange_picture_the_cells_that_agree_are_said_by_class(self):
        projector = self.projector()
        assert projector.classes
        said = projector(self.features(size=3.0), self.classify)[0] / 32**0.5
        cat = projector.class_words[projector.classes.words.index("cat")]
        torch.testing.assert_close(said[:3], cat.expand(3, 32), rtol=0.05, atol=0.02)
        assert not torch.allclose(said[:3], projector(self.features(size=3.0))[0, :3] / 32**0.5, atol=0.05)

    def test_the_cell_that_shows_something_else_keeps_the_words_it_learned(self):
        projector, features = self.projector(), self.features(size=3.0)
        learned = projector.read(features)[0].softmax(-1) @ projector.words
        torch.testing.assert_close(projector(features, self.classify)[0, 3] / 32**0.5, learned[0, 3], rtol=0.05, atol=0.02)

    def test_a_picture_like_those_of_the_alignment_is_said_in_learned_words_alone(self):
        projector, features = self.projector(), self.features(size=1.0)
        learned = projector.read(features)[0].softmax(-1) @ projector.words
        torch.testing.assert_close(projector(features, self.classify) / 32**0.5, learned, rtol=0.01, atol=1e-3)

    def test_there_is_a_name_for_each_class_and_kinds_share_theirs(self):
        classes = self.projector().classes
        assert classes
        assert len(classes.names) == 1000
        assert all(classes.names)
        assert set(classes.names[151:269]) == {"dog"}
        assert classes.names[504] == "mug"


def test_grid_mlp_refuses_tokens_that_are_no_square_grid():
    with pytest.raises(UsageError, match="17 tokens"):
        GridMLPProjector(24, 32, 17)


def test_grid_mlp_standardises_each_channel_and_leaves_a_constant_one_small():
    projector = projector_of("grid_mlp")
    features = torch.randn(50, 16, 24) * torch.logspace(-1, 1, 24)
    features[..., 0] = 5.0
    projector.fit(features, torch.randn(10, 32), PLACES)
    standardised = (features - projector.feature_mean) / projector.feature_std
    torch.testing.assert_close(standardised[..., 1:].flatten(0, 1).std(0), torch.ones(23), atol=1e-3, rtol=0)
    assert standardised[..., 0].abs().max() < 1e-3


def test_grid_mlp_tells_equal_cells_apart_by_their_place():
    projector = projector_of("grid_mlp")
    tokens = projector(torch.ones(1, 16, 24))[0]
    assert not torch.equal(tokens[0], tokens[1])


def test_grid_mlp_cannot_be_fitted_to_nothing():
    with pytest.raises(UsageError, match="two or more"):
        projector_of("grid_mlp").fit(torch.randn(0, 16, 24), torch.randn(10, 32), PLACES)


def test_an_unknown_projector_lists_the_right_ones():
    with pytest.raises(UnknownName, match="Did you mean 'mlp2x_gelu'"):
        projector_of("mlp3x_gelu")
