"""Projectors: vision features in, vectors of the language model's width out.

`linear` is LLaVA-1's and `mlp2x_gelu` LLaVA-1.5's, with the module names of the Hugging Face folder. `grid_mlp` is ours, for convolutional
towers and small language models (native folders only).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.errors import UnknownName, UsageError
from vistune.model.backbones import TowerClasses, tokens_per_view, tower_classes, vision_width
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

    Once it is to be aligned (`take_words`), a cell's content is said in words: the mean of the word embeddings that it may stand for, each
    with its probability (Ovis, arXiv 2405.20797, which learns its table). A small language model reads words at once and does not learn
    within an hour to read what merely points their way: after 640 captions its loss was 0.60 nats a token, without this end 1.01. Two
    things are said beside the words. The cell that holds the middle of a thing is marked, since words hide where one thing ends and the
    next of its kind begins. And where a picture is unlike all that the words were learned from (a photograph, to one who saw drawings), the
    tower's own classes speak for the cells that they agree on (`_as_classified`).

    Args:
        words: K, how many words there are; 0 before alignment, when the content is the MLP's own output.
        classes: what the tower itself was trained to tell apart; None if it was no classifier.

    Raises:
        UsageError: the tokens are not a square grid.
    """

    feature_mean: Tensor
    feature_std: Tensor
    scale: Tensor
    words: Tensor
    class_words: Tensor

    def __init__(self, inputs: int, outputs: int, tokens: int, words: int = 0, classes: TowerClasses | None = None):
        super().__init__()
        self.side = math.isqrt(tokens)
        if self.side**2 != tokens:
            raise UsageError(f"The projector grid_mlp is for square grids of cells; this tower gives {tokens} tokens, which is no square.")
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_std", torch.ones(inputs))
        self.register_buffer("scale", torch.ones(()))
        self.linear_1 = nn.Linear(inputs, 2 * outputs)
        self.neighbours = nn.Conv2d(2 * outputs, 2 * outputs, 3, padding=1, groups=2 * outputs)
        for parameter in self.neighbours.parameters():
            nn.init.zeros_(parameter)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, outputs))
        self.classes = classes
        # Not a tensor: no file holds it, and a model is built without memory before its file is read.
        self._word_of_class = [classes.words.index(name) for name in classes.names] if classes else []
        if words:
            class_words = torch.zeros(len(classes.words), outputs) if classes else None
            self.take_words(torch.zeros(words, outputs), torch.zeros(outputs), class_words)
        else:
            self.linear_2 = nn.Linear(2 * outputs, outputs)
            self.norm = nn.LayerNorm(outputs)

    @property
    def has_words(self) -> bool:
        return hasattr(self, "words")

    def forward(self, features: Tensor, classify: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Visual tokens. `classify` is the tower's own classifier of features, [..., Dv] -> logits [..., C]; without it, drawings only."""
        hidden = self._hidden(features)
        if not self.has_words:
            return (self.norm(self.linear_2(hidden)) + self.position) * self.scale
        words, middle = self._read(hidden)
        said = words.float().softmax(-1).to(hidden.dtype) @ self.words  # [V, P, D]
        if self.classes and classify:
            said = self._as_classified(features, said, classify)
        content = said * said.shape[-1] ** 0.5 + middle.sigmoid() * self.middle_mark
        return (content + self.position) * self.scale

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What alignment teaches, wherever the cell is: a logit for each word, and one for "the middle of a thing lies here".

        [V, P, Dv] -> [V, P, K], [V, P, 1]. Only for a projector that has words.
        """
        return self._read(self._hidden(features))

    def content(self, features: Tensor) -> Tensor:
        """Before there are words: vectors whose direction alignment teaches. [V, P, Dv] -> [V, P, D]."""
        return self.norm(self.linear_2(self._hidden(features)))

    def _read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear_2(hidden), self.middle(hidden)

    def _hidden(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.linear_1((features - self.feature_mean) / self.feature_std))
        grid = hidden.transpose(1, 2).unflatten(2, (self.side, self.side)).contiguous(memory_format=torch.channels_last)
        return hidden + F.gelu(self.neighbours(grid)).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _as_classified(self, features: Tensor, said: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
        """Puts the tower's classes for the words, as far as the picture is strange and the cell shows what the whole picture does.

        How strange a picture is, its channels tell by their distance from what they were standardised by: near 1 for pictures like those of
        the alignment. Three distances are taken together, since a thing alone on a plain ground can be far in one of them: of the tower's
        head on the whole, of its head cell by cell, and of the other channels cell by cell. 99 of 100 of 1,200 drawn scenes were
        below 1.4, and all of eleven photographs of things and people from 1.9 up; of microscopy, pages and gravel most were not.
        """
        assert self.classes
        channels = self.classes.channels
        standardised = ((features - self.feature_mean) / self.feature_std).float()
        head, rest = (part.square().mean(-1) for part in standardised.split([channels, features.shape[-1] - channels], dim=-1))  # [V, P]
        distance = torch.stack([head.mean(1).log(), head.log().mean(1), rest.log().mean(1)]).mean(0).exp()[:, None, None]
        strange = 1 / (1 + (STRANGE / distance) ** 16)
        cells = self._word_shares(classify(features))  # [V, P, W]
        whole = self._word_shares(classify(features.mean(1, keepdim=True)))  # [V, 1, W]
        agreement = (cells * whole).sqrt().sum(-1, keepdim=True)  # Bhattacharyya's, 0 to 1
        share = (strange * agreement / agreement.amax(1, keepdim=True).clamp_min(1e-6)).to(said.dtype)
        return said + share * (whole.to(said.dtype) @ self.class_words - said)

    def _word_shares(self, logits: Tensor) -> Tensor:
        """The probability of each class's word: classes of one name add up. [..., C] -> [..., W]."""
        classes = logits.float().softmax(-1)
        words = classes.new_zeros(*classes.shape[:-1], len(self.class_words))
        return words.index_add_(-1, torch.tensor(self._word_of_class, device=words.device), classes)

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
        # Half as long as what is given for the cell's content.
        self.position.copy_(0.5 * places.shape[-1] ** 0.5 * places)

    def take_words(self, words: Tensor, middle: Tensor, class_words: Tensor | None = None) -> None:
        """From now on every cell is said in these words; which of them, a new last layer is to learn.

        Args:
            words: the language model's embeddings of what can lie in a cell, at unit length, [K, D].
            middle: the embedding that marks the middle of a thing, at unit length, [D].
            class_words: the embeddings of `classes.words`, at unit length, [W, D]; only with `classes`.
        """
        outputs = words.shape[-1]
        self.linear_2 = nn.Linear(2 * outputs, len(words)).to(self.position)
        self.middle = nn.Linear(2 * outputs, 1).to(self.position)
        self.norm = nn.Identity()
        self.middle_mark = nn.Parameter((0.5 * outputs**0.5 * middle).to(self.position))
        self.register_buffer("words", words.to(self.position))
        if class_words is not None:
            self.register_buffer("class_words", class_words.to(self.position))


STRANGE = 1.65
"""The distance of a picture's channels from which it counts as unlike what the projector was aligned with."""


def word_logits(content: Tensor, words: Tensor, sharpness: float) -> Tensor:
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
            return GridMLPProjector(inputs, outputs, tokens_per_view(config), config.visual_words, tower_classes(config))
    raise UnknownName("projector", config.projector, known=("linear", "mlp2x_gelu", "grid_mlp"))
