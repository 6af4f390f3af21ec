"""Vision towers: pixels in, the features of one hidden layer out.

CLIP and SigLIP are transformers' own modules, run only up to the selected hidden state; EfficientNet-Lite0 is defined here. A tower knows
nothing of projectors, views or conversations. Its weights keep the names of the published files.
"""

from __future__ import annotations

import math

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.errors import UnsupportedModel
from vistune.model.backbones import VisionTowerSpec, patches_per_side, tokens_per_view, vision_setting, vision_tower_spec, vision_width
from vistune.model.config import ModelConfig

# V views · H, W pixels · P tokens per view · D width of the tower


class VisionTower(nn.Module):
    """A tower's module with the choice of its layer. [V, 3, H, W] -> [V, tokens_per_view, vision_width]."""

    tokens: int
    width: int


class TransformerTower(VisionTower):
    """CLIP or SigLIP up to one hidden state.

    The layers after it (one of 24 in LLaVA-1.5) and the post-norm are kept, so that a folder is saved as complete as it was loaded,
    but never run. The result is bit for bit `hidden_states[feature_layer]` of transformers, of which 0 is the embedding output.
    """

    def __init__(self, config: ModelConfig, spec: VisionTowerSpec):
        super().__init__()
        assert spec.config_class is not None
        assert spec.model_class is not None
        settings = {key: value for key, value in config.vision_config.items() if key != "model_type"}
        tower_config = getattr(transformers, spec.config_class)(**settings)
        self.vision_model = getattr(transformers, spec.model_class)._from_config(tower_config, attn_implementation="sdpa")
        self.num_layers = _layers_to_run(config)
        self.drops_cls = spec.has_cls and config.feature_select == "patch"
        self.tokens, self.width = tokens_per_view(config), vision_width(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_model.embeddings(pixel_values)
        if hasattr(self.vision_model, "pre_layrnorm"):  # CLIP; the misspelling is in the published weights
            hidden = self.vision_model.pre_layrnorm(hidden)
        for layer in self.vision_model.encoder.layers[: self.num_layers]:
            hidden = layer(hidden, attention_mask=None)
        # No CLS by default: the patches keep local detail, which is what is asked about (LLaVA paper, ablations).
        return hidden[:, 1:] if self.drops_cls else hidden


def _layers_to_run(config: ModelConfig) -> int:
    """How many encoder layers lie before the selected hidden state: 23 of 24 for layer -2."""
    available = vision_setting(config, "num_hidden_layers")
    selected = config.feature_layer if config.feature_layer >= 0 else available + 1 + config.feature_layer
    if not 0 <= selected <= available:
        raise UnsupportedModel(
            f"feature_layer {config.feature_layer} is not one of the {available + 1} hidden states of this {config.vision_tower} tower; "
            f"choose 0 to {available}, or -1 to {-available - 1} counted from the end."
        )
    return selected


def build_vision_tower(config: ModelConfig) -> VisionTower:
    """Builds the tower that the configuration names, with random weights.

    Raises UnknownName for a tower that is in no table and UnsupportedModel where its numbers contradict each other.
    """
    spec = vision_tower_spec(config.vision_tower)
    if spec.model_type is None:
        return EfficientNetLite0(config)
    trained_at = vision_setting(config, "image_size")
    if trained_at != config.image.size:
        raise UnsupportedModel(
            f"The {config.vision_tower} tower sees {trained_at} px images (vision_config.image_size), but image.size is "
            f"{config.image.size}; set image.size to {trained_at}."
        )
    return TransformerTower(config, spec)


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------------------------------------------

# Repeats, kernel, stride, expansion, output channels of each stage: EfficientNet-B0's without squeeze-and-excitation
# (github.com/tensorflow/tpu, efficientnet/lite).
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
_MIDDLE_CHANNELS = 112  # the last stage at stride 16
_NUM_CLASSES = 1000


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: where the total is odd, the extra pixel goes to the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = input.shape[-2:]
        rows = max((math.ceil(height / stride) - 1) * stride + kernel - height, 0)
        columns = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
        if rows == columns and rows % 2 == 0:
            return F.conv2d(input, self.weight, self.bias, self.stride, rows // 2, self.dilation, self.groups)
        padded = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # TensorFlow's 0.99 is torch's 0.01


class _Block(nn.Module):
    """Mobile inverted bottleneck: widen, filter each channel, narrow; added to its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self._expand_conv = _SameConv2d(inputs, hidden, 1, bias=False) if expansion != 1 else None
        self._bn0 = _batch_norm(hidden) if expansion != 1 else None
        self._depthwise_conv = _SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = _SameConv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)

    def forward(self, input: Tensor) -> Tensor:
        hidden = input
        if self._expand_conv is not None and self._bn0 is not None:
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + input if self.residual else hidden


class EfficientNetLite0(VisionTower):
    """EfficientNet-Lite0 as a grid of features: 7×7 cells of 1280 head channels and 448 of the stride-16 map at 224 px.

    The head says what is in a cell, the finer map what it looks like (colour, outline). Module names are those of the published
    PyTorch state dict, which loads strictly. The batch norms keep their trained statistics in every mode.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.side = patches_per_side(config)
        self.tokens, self.width = tokens_per_view(config), vision_width(config)
        self._conv_stem = _SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _batch_norm(32)
        blocks: list[_Block] = []
        channels = 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                stride_here = stride if repeat == 0 else 1
                blocks.append(_Block(channels, outputs, kernel=kernel, stride=stride_here, expansion=expansion))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv2d(channels, 1280, 1, bias=False)
        self._bn1 = _batch_norm(1280)
        self._fc = nn.Linear(1280, _NUM_CLASSES)  # ImageNet's classes; run by `classify` only
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Sets the mode of everything but the batch norms: a batch of a few pictures would spoil their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def classify(self, features: Tensor) -> Tensor:
        """Logits of ImageNet's classes from this tower's features; it was trained to tell them from the mean over cells.

        [..., Dv] -> [..., 1000], float32.
        """
        return F.linear(features[..., : self._fc.in_features].float(), self._fc.weight.float(), self._fc.bias.float())

    def forward(self, pixel_values: Tensor) -> Tensor:
        head, middle = self._maps(pixel_values)
        cells = torch.cat([head, F.pixel_unshuffle(middle, 2)], dim=1)  # [V, 1280 + 4·112, 7, 7]
        return cells.flatten(2).transpose(1, 2).contiguous()

    def _maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The head's map at stride 32 and the last 112-channel map at stride 16."""
        pixels = pixel_values.to(self._conv_stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        hidden = F.relu6(self._bn0(self._conv_stem(pixels)))
        middle = hidden
        for block in self._blocks:
            hidden = block(hidden)
            if hidden.shape[1] == _MIDDLE_CHANNELS:
                middle = hidden
        return F.relu6(self._bn1(self._conv_head(hidden))), middle
