"""How much memory a run takes, part by part, before it runs. No torch here.

The state is counted exactly: who learns has an fp32 weight, a gradient and two moments, who does not has a weight in the forward's format.
What a layer keeps for its backward pass is counted from what autograd was seen to save (`tests/train/test_memory.py` counts again), per
token. `benchmarks/plan_memory.py` holds the sum against the peaks of real runs.

With d, ff, h, k, e as in `shapes.py`; b is the bytes of a number in the forward: 2 in bf16, 4 in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vistune.train.config import TrainConfig
from vistune.train.limits import SampleSize, trained_parameters
from vistune.train.shapes import LanguageShape, ModelShape, TowerShape

Device = Literal["cpu", "cuda"]
GIB = 2**30

CHUNK = 1024
"""Positions whose logits are held at once (`Llava.loss`)."""
LONGEST_IN_BLOCKS = 1024
"""Attention in bf16 on a CPU is written out by blocks of queries, up to so many tokens a sequence (`model/block_attention.py`)."""
STEPS_AHEAD = 2
"""Steps whose rows are in memory at once: the one that is taken, and the one that is being read."""
NF4_BYTES, INT8_BYTES = 0.516, 1.001
"""Per weight: four bits in blocks of 64 with an 8-bit scale each; eight bits with a scale per row."""
CPU_RUNTIME = 0.09 * GIB
"""What the first step of a process brings: kernels' own buffers, threads' heaps."""
CUDA_CONTEXT = 0.9 * GIB
CUDA_FRAGMENTS = 0.04
"""Of everything else: what the allocator holds and cannot give."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a step, and where they go."""

    weights: float
    """Frozen ones in the forward's format, trained ones in fp32."""
    gradients: float
    moments: float
    """AdamW's two, in fp32."""
    copies: float
    """Trained matrices in bf16, made anew for each forward; with several devices, what is gathered at one time."""
    activations: float
    """What the language model's layers keep for the backward pass."""
    logits: float
    projector: float
    tower: float
    rows: float
    """Pixels or features of the rows at hand: in the device's memory on a CPU, else in the host's."""
    overhead: float
    peak: float
    """Of their sum, what is there at one time."""


@dataclass(frozen=True)
class Forward:
    """The largest piece that goes through the model at once."""

    lengths: tuple[int, ...]
    supervised: int
    visual: int
    views: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def largest_forward(sizes: Sequence[SampleSize], budget: int) -> Forward:
    """A forward of rows like these (their mean), filled to the budget; or the longest row, where that is longer than the budget."""
    longest = max(sizes, key=lambda size: size.tokens)
    if longest.tokens >= budget:
        return Forward((longest.tokens,), longest.supervised, longest.visual, longest.views)
    rows: list[SampleSize] = []
    free = budget
    for size in sizes:
        if size.tokens <= free:
            rows.append(size)
            free -= size.tokens
    return Forward(
        tuple(size.tokens for size in rows),
        sum(size.supervised for size in rows),
        sum(size.visual for size in rows),
        sum(size.views for size in rows),
    )


def needed_memory(
    config: TrainConfig, shape: ModelShape, forward: Forward, *, rows: Sequence[SampleSize], forwards: int, device: Device, shards: int = 1
) -> Memory:
    """What one device needs.

    Args:
        forward: the largest piece of a step.
        rows: one device's part of a step.
        forwards: how many pieces that part is cut into.
        shards: processes that divide the weights among them.
    """
    language, trains_words = shape.language_model, "language_model" in config.trainable
    lora = language.lora_parameters(config.lora.rank) if "lora" in config.trainable else 0
    trained = trained_parameters(shape, config.trainable, lora_rank=config.lora.rank)
    number = 2 if config.precision == "bf16" else 4
    align = config.objective == "align"
    weights = _weights(config, shape, trained, shards)
    gradients, moments = 4.0 * trained / shards, 8.0 * trained / shards
    # Of several processes autocast copies the last layer only: the others are gathered in the forward's format.
    copied = trains_words * (language.matrices if shards == 1 else language.layer_matrices)
    copies = 0.0 if number == 4 else 2.0 * (copied + lora + shape.projector.matrices)
    copies += _gathered(config, shape, shards)
    activations = 0.0 if align else _activations(config, language, forward, device)
    logits = 0.0 if align else _logits(language, forward.supervised, trains_words, number, device)
    projector = _projector(shape, forward, number, learns="projector" in config.trainable or "vision_tower" in config.trainable)
    cached = bool(config.feature_cache) and "vision_tower" not in config.trainable
    tower = 0.0 if cached else _tower(shape.tower, forward.views, number, learns="vision_tower" in config.trainable)
    held = STEPS_AHEAD * sum(_row_bytes(shape.tower, size.views, number, cached) for size in rows)
    state = weights + moments + (held if device == "cpu" else 0.0)
    # A gradient appears while the activations before it go; with several forwards to a step, all are there from the second on.
    earlier = gradients if forwards > 1 else 0.0
    before_backward = copies + activations + logits + projector + (tower if "vision_tower" in config.trainable else 0.0) + earlier
    after_backward = copies + gradients
    while_seeing = tower + earlier
    largest = state + max(before_backward, after_backward, while_seeing)
    if device == "cuda":
        overhead = CUDA_CONTEXT + CUDA_FRAGMENTS * largest
    else:
        # Between what a layer keeps, glibc's heap keeps holes of the size of its passing fp32 tensors (none with MALLOC_MMAP_THRESHOLD_).
        overhead = CPU_RUNTIME + (0.0 if align else 4.0 * language.width * forward.tokens * language.layers)
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=moments,
        copies=copies,
        activations=activations,
        logits=logits,
        projector=projector,
        tower=tower,
        rows=held,
        overhead=overhead,
        peak=largest + overhead,
    )


def _weights(config: TrainConfig, shape: ModelShape, trained: int, shards: int) -> float:
    """The projector is always fp32; so is what learns; the rest is as the forward wants it, or quantised."""
    language, number = shape.language_model, 2.0 if config.precision == "bf16" else 4.0
    frozen = 0.0
    if "language_model" not in config.trainable:
        layers = {"none": number, "nf4": NF4_BYTES, "int8": INT8_BYTES}[config.model.quantise] * language.matrices
        frozen += layers + number * (language.parameters - language.matrices)
    if "vision_tower" not in config.trainable:
        frozen += number * shape.tower.parameters
    if "projector" not in config.trainable:
        frozen += 4.0 * shape.projector.parameters
    return frozen / (shards if config.parallel.shard == "all" else 1) + 4.0 * trained / shards


def _gathered(config: TrainConfig, shape: ModelShape, shards: int) -> float:
    """What FSDP has gathered at one time: the layer that computes, the next one, and all that is outside of layers, with the last one."""
    language, trains_words = shape.language_model, "language_model" in config.trainable
    if shards == 1 or not (trains_words or config.parallel.shard == "all"):
        return 0.0
    number = 2.0 if config.precision == "bf16" else 4.0
    outside = 4.0 if trains_words else number
    tower = 4.0 * shape.tower.parameters if "vision_tower" in config.trainable else 0.0
    return number * 2 * language.layer_matrices + outside * (language.layer_matrices + language.head * (1 if language.tied else 2)) + tower


def layer_bytes(shape: LanguageShape, config: TrainConfig, device: Device, longest: int) -> float:
    """What one decoder layer keeps for each token, where the longest sequence has so many. Nothing grows with the pairs of tokens."""
    d, ff, query = shape.width, shape.mlp_width, shape.query_width
    maps = shape.mlp_matrices
    wide = config.precision == "fp32"
    number = 4 if wide else 2
    trains_words = "language_model" in config.trainable
    norms = 2 * (4 * d + 4)  # their fp32 input and its scale
    mlp = maps * number * ff  # before the activation, after it, and what gates it
    inputs = 0.0
    if trains_words:
        norms += 2 * 4 * d  # the normalised input, for the norm's own weight
        inputs = 4 * (2 * d + query + ff) if wide else 2 * ((2 + maps) * d + query + ff)  # in bf16 a copy for each map
    elif "lora" in config.trainable:
        # Maps that read the same keep it once (`adapted.py`), but for quantised ones, whose input comes from fp32 norms.
        entries = (2 + maps) * d + query + ff
        inputs = float(number * (entries if config.model.quantise != "none" and not wide else 2 * d + query + ff))
        if config.lora.dropout:
            inputs += entries  # a mask each
        inputs += number * config.lora.rank * (4 + maps)
    return norms + mlp + inputs + _attention_bytes(shape, config, device, longest)


def _attention_bytes(shape: LanguageShape, config: TrainConfig, device: Device, longest: int) -> float:
    """Queries, keys and values; of torch's kernels the output and its normaliser too."""
    number, query, kv = 4 if config.precision == "fp32" else 2, shape.query_width, shape.kv_width
    if device == "cuda":  # keys and values are repeated for the heads that share them
        return number * 4 * query + 4 * shape.heads
    if number == 2 and longest <= LONGEST_IN_BLOCKS:
        return number * (query + 2 * kv)
    return number * 2 * (query + kv) + 4 * shape.heads


def _activations(config: TrainConfig, shape: LanguageShape, forward: Forward, device: Device) -> float:
    """All layers, the last of them only where a label is; or only their inputs and one layer, where they are computed again."""
    per_layer = layer_bytes(shape, config, device, max(forward.lengths, default=0)) * forward.tokens
    trains_words = "language_model" in config.trainable
    stream = 4 if config.precision == "fp32" or trains_words else 2
    labelled = forward.supervised / max(1, forward.tokens)
    last = per_layer * labelled + forward.tokens * (1 - labelled) * (4 * shape.width * (2 if trains_words else 1) + 4 * shape.kv_width)
    embedded = 2 * stream * shape.width * forward.tokens
    if config.activation_checkpointing:
        return embedded + (shape.layers - 1) * stream * shape.width * forward.tokens + max(per_layer, last)
    return embedded + (shape.layers - 1) * per_layer + last


def _logits(shape: LanguageShape, supervised: int, trained: bool, number: int, device: Device) -> float:
    """A chunk of logits, which become their gradients; on a GPU it is widened whole. A trained head's gradient in fp32 and in bf16."""
    widened = 4 if device == "cuda" and number == 2 else 0
    chunk = float(shape.vocabulary * min(CHUNK, supervised) * (number + widened))
    return chunk + (shape.head * (4.0 + (2.0 if number == 2 else 0.0)) if trained else 0.0)


def _projector(shape: ModelShape, forward: Forward, number: int, *, learns: bool) -> float:
    entries = (shape.tower.width + shape.projector.hidden) * number + 4 * shape.tower.width
    out = (4 + number) * shape.language_model.width
    return float(forward.visual * ((entries if learns else 0) + out))


def _tower(shape: TowerShape, views: int, number: int, *, learns: bool) -> float:
    if not shape.layers:
        return 4.0 * views * shape.pixels**2 * (32 + 96) / 4  # the first stages, at half the side, are the widest
    passing = views * shape.sequence * number * (4.0 * shape.mlp_width + 6.0 * shape.width)
    if not learns:
        return passing + 12.0 * views * shape.pixels**2
    kept = (16 + 5 * number) * shape.width + 4 * number * shape.mlp_width + 4 * number * shape.width
    return passing + float(views * shape.sequence * shape.layers * kept)


def _row_bytes(shape: TowerShape, views: int, number: int, cached: bool) -> float:
    return views * (float(number * shape.tokens * shape.width) if cached else 12.0 * shape.pixels**2)
