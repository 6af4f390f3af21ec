"""Projectors: vision features in, vectors of the language model's width out.

`linear` is LLaVA-1's and `mlp2x_gelu` LLaVA-1.5's, with the module names of the Hugging Face folder. `grid_mlp` is ours, for convolutional
towers and small language models (native folders only).
"""

from __future__ import annotations

import math

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
    """An MLP for the grid cells of a convolutional tower, each of which also hears its eight neighbours. [V, P, Dv] -> [V, P, D].

    Channels are standardised (a network's raw activations differ by orders of magnitude), a learned position is added (a convolution
    does not tell where its cell is), and the result has the scale of the language model's own word embeddings: without that, visual
    tokens drown the words or drown in them, and training first has to find the scale. The neighbours (a depthwise 3×3 convolution of the
    hidden layer, which begins at zero) agree on a thing that several of them see a part of: after equal minutes of alignment 65 instead of
    61 of 100 cells of drawn scenes were named right, and 33 instead of 28 of things drawn as never before.

    Once it was aligned (`take_words`), a cell's content is said in words: it is the mean of the word embeddings that it may stand for, each
    with its probability (Ovis, arXiv 2405.20797, which learns its table). A small language model reads words at once and does not learn
    within an hour to read what merely points their way: after 640 captions its loss was 0.60 nats a token, without this end 1.01.

    Args:
        words: K, how many words there are; 0 before alignment, when the content is the MLP's own output.

    Raises:
        UsageError: the tokens are not a square grid.
    """

    feature_mean: Tensor
    feature_std: Tensor
    scale: Tensor
    words: Tensor
    sharpness: Tensor

    def __init__(self, inputs: int, outputs: int, tokens: int, words: int = 0):
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_std", torch.ones(inputs))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("words", torch.zeros(words, outputs), persistent=words > 0)  # at unit length; no file holds an empty tensor
        self.register_buffer("sharpness", torch.ones(()))
        self.side = math.isqrt(tokens)
        if self.side**2 != tokens:
            raise UsageError(f"The projector grid_mlp is for square grids of cells; this tower gives {tokens} tokens, which is no square.")
        self.linear_1 = nn.Linear(inputs, 2 * outputs)
        self.neighbours = nn.Conv2d(2 * outputs, 2 * outputs, 3, padding=1, groups=2 * outputs)
        for parameter in self.neighbours.parameters():
            nn.init.zeros_(parameter)
        self.linear_2 = nn.Linear(2 * outputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, outputs))

    def forward(self, features: Tensor) -> Tensor:
        content = self.content(features)
        if len(self.words):
            weights = word_logits(content, self.words, self.sharpness).softmax(-1).to(content.dtype)  # [V, P, K]
            content = weights @ self.words.to(content.dtype) * self.words.shape[-1] ** 0.5
        return (content + self.position) * self.scale

    def content(self, features: Tensor) -> Tensor:
        """What lies in each cell, wherever the cell is: vectors whose direction alignment teaches. [V, P, Dv] -> [V, P, D]."""
        standardised = (features - self.feature_mean) / self.feature_std
        hidden = F.gelu(self.linear_1(standardised))
        return self.norm(self.linear_2(hidden + self._of_neighbours(hidden)))

    def _of_neighbours(self, hidden: Tensor) -> Tensor:
        grid = hidden.transpose(1, 2).unflatten(2, (self.side, self.side)).contiguous(memory_format=torch.channels_last)
        return F.gelu(self.neighbours(grid)).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def fit(self, features: Tensor, word_embeddings: Tensor, places: Tensor) -> None:
        """Sets what is measured and not learned: the features' mean and deviation per channel, and the words' scale. The positions begin as
        what the language model itself calls them, so that it need not first find out what stands where.

        Args:
            features: a sample of the tower's output, [V, P, Dv]; a few hundred pictures are plenty. At least two vectors.
            word_embeddings: the language model's input embeddings [vocabulary, D].
            places: a word embedding for each cell's place, at unit length, [P, D].
        """
        flat = features.reshape(-1, features.shape[-1]).double()
        if len(flat) < 2:
            raise UsageError(f"The projector was given {len(flat)} feature vectors to standardise by; give it two or more.")
        self.feature_mean.copy_(flat.mean(0))
        # A channel that is (almost) constant over the sample says nothing: it is left small, not blown up into noise.
        deviation = flat.std(0)
        self.feature_std.copy_(deviation.clamp_min(1e-3 * float(deviation.mean()) + 1e-6))
        self.scale.copy_(word_embeddings.double().std())
        # Half as long as what the norm gives for the cell's content.
        self.position.copy_(0.5 * places.shape[-1] ** 0.5 * places)

    def take_words(self, words: Tensor, sharpness: float) -> None:
        """From now on every cell is said in these words.

        Args:
            words: the language model's embeddings of what can lie in a cell, at unit length, [K, D].
            sharpness: what a cosine is multiplied by to give a logit: the alignment's, so that the weights are its probabilities.
        """
        self.register_buffer("words", words.to(self.words))
        self.sharpness.fill_(sharpness)


def word_logits(content: Tensor, words: Tensor, sharpness: Tensor | float) -> Tensor:
    """How well each vector agrees with each word: cosine times sharpness. [..., D], [K, D] -> [..., K], float32."""
    return sharpness * F.normalize(content.float(), dim=-1) @ words.float().T


def build_projector(config: ModelConfig) -> LinearProjector | MLPProjector | GridMLPProjector:
    """Builds the projector that the configuration names, with random weights."""
    inputs, outputs = vision_width(config), int(config.text_config["hidden_size"])
    match config.projector:
        case "linear":
            return LinearProjector(inputs, outputs)
        case "mlp2x_gelu":
            return MLPProjector(inputs, outputs)
        case "grid_mlp":
            return GridMLPProjector(inputs, outputs, tokens_per_view(config), config.visual_words)
    raise UnknownName("projector", config.projector, known=("linear", "mlp2x_gelu", "grid_mlp"))
