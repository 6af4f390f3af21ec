"""Projectors: vision features in, vectors of the language model's width out.

`linear` is LLaVA-1's and `mlp2x_gelu` LLaVA-1.5's, with the module names of the Hugging Face folder. `grid_mlp` is ours, for convolutional
towers and small language models (native folders only).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.errors import UnknownName, UsageError
from vistune.model.backbones import tokens_per_view, vision_width
from vistune.model.config import ModelConfig

# V views · P tokens per view · Dv width of the vision features · D width of the language model


class LinearProjector(nn.Module):
    """One affine map (LLaVA-1). [V, P, Dv] -> [V, P, D]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_1(features)


class MLPProjector(nn.Module):
    """Two affine maps with an exact GELU between them (LLaVA-1.5). [V, P, Dv] -> [V, P, D]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


class GridMLPProjector(nn.Module):
    """An MLP for the grid cells of a convolutional tower. [V, P, Dv] -> [V, P, D].

    Channels are standardised (a network's raw activations differ by orders of magnitude), a learned position is added (a convolution
    does not tell where its cell is), and the result has the scale of the language model's own word embeddings: without that, visual
    tokens drown the words or drown in them, and training first has to find the scale.
    """

    feature_mean: Tensor
    feature_std: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int, tokens: int):
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_std", torch.ones(inputs))
        self.register_buffer("scale", torch.ones(()))
        self.linear_1 = nn.Linear(inputs, 2 * outputs)
        self.linear_2 = nn.Linear(2 * outputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, outputs))

    def forward(self, features: Tensor) -> Tensor:
        standardised = (features - self.feature_mean) / self.feature_std
        projected = self.linear_2(F.gelu(self.linear_1(standardised)))
        return (self.norm(projected) + self.position) * self.scale

    @torch.no_grad()
    def fit(self, features: Tensor, word_embeddings: Tensor) -> None:
        """Sets what is measured and not learned: the features' mean and deviation per channel, and the words' scale.

        Args:
            features: a sample of the tower's output, [V, P, Dv]; a few hundred pictures are plenty. At least two vectors.
            word_embeddings: the language model's input embeddings [vocabulary, D].
        """
        flat = features.reshape(-1, features.shape[-1]).double()
        if len(flat) < 2:
            raise UsageError(f"The projector was given {len(flat)} feature vectors to standardise by; give it two or more.")
        self.feature_mean.copy_(flat.mean(0))
        # A channel that is (almost) constant over the sample says nothing: it is left small, not blown up into noise.
        deviation = flat.std(0)
        self.feature_std.copy_(deviation.clamp_min(1e-3 * float(deviation.mean()) + 1e-6))
        self.scale.copy_(word_embeddings.double().std())


def build_projector(config: ModelConfig) -> LinearProjector | MLPProjector | GridMLPProjector:
    """Builds the projector that the configuration names, with random weights."""
    inputs, outputs = vision_width(config), int(config.text_config["hidden_size"])
    match config.projector:
        case "linear":
            return LinearProjector(inputs, outputs)
        case "mlp2x_gelu":
            return MLPProjector(inputs, outputs)
        case "grid_mlp":
            return GridMLPProjector(inputs, outputs, tokens_per_view(config))
    raise UnknownName("projector", config.projector, known=("linear", "mlp2x_gelu", "grid_mlp"))
