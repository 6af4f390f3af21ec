"""The physical limits of training: what a step must compute and move at the least, and how long this machine needs for that at best.

Only useful work counts: no padding, no recomputation, no weight gradient of a frozen weight, no head at a position without a label, no
row of the last layer that nothing reads. What a trainer does beyond that is its own loss; what it reaches of the limit, `fraction` says.
No torch here; `measure_attainable` loads it late.

With the symbols of `shapes.py`, T tokens of a sequence and S of them supervised (2 FLOP per weight and token):

    linear     2 P T                                       attention   2 T² h e L         (causal: half of all pairs)
    head       2 H S                                       projector   2 n (its matrices)
    pruned     2 (2 d h e + m d ff) (T - S) + 2 (T - S)² h e       what the last layer saves by running only where a label is
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

from vistune.speed import ProductType, copy_rate, product_rate
from vistune.train.config import Part
from vistune.train.shapes import LanguageShape, ModelShape

ADAMW_BYTES = 28
"""Per trained weight and step, in fp32: weight, gradient and two moments are read, three of them written."""


@dataclass(frozen=True)
class SampleSize:
    """One conversation, in numbers."""

    tokens: int
    """Text and visual tokens together."""
    supervised: int
    visual: int = 0
    views: int = 0


@dataclass(frozen=True)
class Flops:
    """Floating point operations, by where they are made."""

    linear: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    projector: float = 0.0
    tower: float = 0.0
    adapters: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Attainable:
    """What a device was measured to reach, on products of a model's own shapes and on a plain copy."""

    flops_per_second: float
    bytes_per_second: float


# --- a forward pass -------------------------------------------------------------------------------------------------------------------


def linear_flops(shape: LanguageShape, tokens: float) -> float:
    return 2.0 * shape.matrices * tokens


def attention_flops(shape: LanguageShape, tokens: float) -> float:
    return 2.0 * tokens**2 * shape.query_width * shape.layers


def head_flops(shape: LanguageShape, supervised: float) -> float:
    return 2.0 * shape.head * supervised


def pruned_flops(shape: LanguageShape, tokens: float, supervised: float) -> tuple[float, float]:
    """(linear, attention): what the last layer saves when only rows with a label go through its queries, output and MLP.

    The labelled rows are taken for the last of the sequence, where attention is dearest: what is saved is never overstated.
    """
    rest = tokens - supervised
    per_row = 2 * shape.width * shape.query_width + shape.mlp_matrices * shape.width * shape.mlp_width
    return 2.0 * per_row * rest, 2.0 * rest**2 * shape.query_width


def projector_flops(shape: ModelShape, visual: float) -> float:
    return 2.0 * shape.projector.matrices * visual


def tower_flops(shape: ModelShape, views: float) -> float:
    return float(shape.tower.flops_per_view) * views


def forward_flops(shape: ModelShape, size: SampleSize) -> Flops:
    """One conversation read once, its last layer and head only where a label is."""
    language = shape.language_model
    saved_linear, saved_attention = pruned_flops(language, size.tokens, size.supervised)
    return Flops(
        linear=linear_flops(language, size.tokens) - saved_linear,
        attention=attention_flops(language, size.tokens) - saved_attention,
        head=head_flops(language, size.supervised),
        projector=projector_flops(shape, size.visual),
        tower=tower_flops(shape, size.views),
    )


# --- a training step ------------------------------------------------------------------------------------------------------------------


def step_flops(
    shape: ModelShape, sizes: Iterable[SampleSize], trainable: Collection[Part], *, lora_rank: int = 0, cached: float = 0.0
) -> Flops:
    """What one optimizer step over these conversations must compute.

    A trained map costs three times its forward pass, a frozen one that a gradient has to cross twice. Attention has no weights: its
    backward pass is twice its forward pass, always.

    Args:
        lora_rank: of the adapters, where `lora` is trained.
        cached: the part of the views whose features a frozen tower need not compute again, 0 to 1.
    """
    trains_words = "language_model" in trainable
    linear = head = 3.0 if trains_words else 2.0
    tower = 3.0 if "vision_tower" in trainable else 1.0 - cached
    projector = 3.0 if {"projector", "vision_tower"} & set(trainable) else 1.0
    total = Flops()
    for size in sizes:
        once = forward_flops(shape, size)
        adapters = 6.0 * shape.language_model.lora_parameters(lora_rank) * size.tokens if "lora" in trainable else 0.0
        total += Flops(
            linear=linear * once.linear,
            attention=3.0 * once.attention,
            head=head * once.head,
            projector=projector * once.projector,
            tower=tower * once.tower,
            adapters=adapters,
        )
    return total


def recomputed_flops(shape: ModelShape, sizes: Iterable[SampleSize]) -> float:
    """What activation checkpointing adds to a step: the layers once more. Work, but not useful work."""
    language = shape.language_model
    return sum(linear_flops(language, size.tokens) + attention_flops(language, size.tokens) for size in sizes)


def align_flops(shape: ModelShape, views: float, *, cached: float = 0.0) -> Flops:
    """The `align` objective runs no language model: the tower and the projector alone."""
    visual = views * shape.tower.tokens
    return Flops(projector=3.0 * projector_flops(shape, visual), tower=(1.0 - cached) * tower_flops(shape, views))


def trained_parameters(shape: ModelShape, trainable: Collection[Part], *, lora_rank: int = 0) -> int:
    """How many weights learn. Tied embeddings count once."""
    language = shape.language_model
    return (
        ("projector" in trainable) * shape.projector.parameters
        + ("language_model" in trainable) * language.parameters
        + ("vision_tower" in trainable) * shape.tower.parameters
        + ("lora" in trainable) * language.lora_parameters(lora_rank)
    )


def step_bytes(
    shape: ModelShape, trainable: Collection[Part], *, forwards: int = 1, bytes_per_weight: float = 2.0, lora_rank: int = 0
) -> tuple[float, float]:
    """(weights, optimizer): bytes that a step has to move at the least.

    Each forward reads the language model once and its backward pass once more, and writes its weights' gradients where they learn.
    """
    read = (3.0 if "language_model" in trainable else 2.0) * bytes_per_weight
    weights = read * (shape.language_model.matrices + shape.language_model.head) * forwards
    return weights, float(ADAMW_BYTES * trained_parameters(shape, trainable, lora_rank=lora_rank))


def floor_seconds(flops: float, weight_bytes: float, optimizer_bytes: float, device: Attainable) -> float:
    """The least time of a step: products and the weights' traffic overlap, the optimizer comes after them."""
    overlapped = max(flops / device.flops_per_second, weight_bytes / device.bytes_per_second)
    return overlapped + optimizer_bytes / device.bytes_per_second


# --- of this machine ------------------------------------------------------------------------------------------------------------------


def measure_attainable(
    shape: LanguageShape, number: ProductType, *, device: str = "cpu", tokens: int = 1024, megabytes: int = 64, repeats: int = 5
) -> Attainable:
    """The speed of this model's own products (one layer's linear maps on `tokens` rows) and of a copy, each the best of `repeats`."""
    d, ff, query, kv = shape.width, shape.mlp_width, shape.query_width, shape.kv_width
    maps = [(d, query), (d, kv), (d, kv), (query, d), *[(d, ff)] * (shape.mlp_matrices - 1), (ff, d)]
    products = [(tokens, inputs, outputs) for inputs, outputs in maps]
    return Attainable(
        flops_per_second=product_rate(products, number, device=device, repeats=repeats),
        bytes_per_second=copy_rate(device=device, megabytes=megabytes, repeats=repeats),
    )
