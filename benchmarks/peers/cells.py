"""What is measured, most telling first. A cell is one side of one comparison; each of its blocks is a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from peers.job import Job
from peers.workload import Stage

Kind = Literal["gate", "cache", "train", "pipeline"]
GATE_STEPS = 20

CONFIGS: dict[str, tuple[Stage, str]] = {
    "stage1_smol336_cached": ("stage1", "smol336"),
    "stage2_smol224": ("stage2", "smol224"),
    "lora_smol224": ("lora", "smol224"),
    "stage1_smol224_cached": ("stage1", "smol224"),
}
# With a GPU: LLaVA-1.5-7B, Vicuna and CLIP-L/14-336. Its tower takes less than a millisecond a picture there: nobody would cache.
GPU_CONFIGS: dict[str, tuple[Stage, str]] = {"stage1_7b336": ("stage1", "large336"), "lora_7b336": ("lora", "large336")}
PIPELINES = {"pipeline_336": "smol336", "pipeline_224": "smol224"}

_TUNED: dict[str, Any] = {"workers": 2}
PEERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "hf_tuned": {"options": _TUNED},
    "hf_default": {"precision": "fp32"},
    "trl": {"options": {}},
    "trl_checkpointing": {"options": {"checkpointing": True}},
    "ours_grouped": {"grouped": True},
    "hf_length_grouped": {"grouped": True, "options": _TUNED},
    # The peers' settings, swept: what one of these reaches beyond `hf_tuned` is credited to `hf_tuned_best`.
    "hf_tuned:batch=1": {"options": _TUNED | {"per_device": 1}},
    "hf_tuned:batch=2": {"options": _TUNED | {"per_device": 2}},
    "hf_tuned:batch=4": {"options": _TUNED | {"per_device": 4}},
    "hf_tuned:workers=0": {"options": {"workers": 0}},
    "hf_tuned:frozen=fp32": {"options": _TUNED | {"frozen_bf16": False}},
    # Ours, with a lever the other way.
    "ours:cache=off": {"options": {"cache": False}},
    "ours:tokens_per_forward=8192": {"options": {"tokens_per_forward": 8192}},
    "ours:compile=on": {"options": {"compile": True}},
}

_CARD: dict[str, Any] = {"device": "cuda", "batch": 32, "warm": 2, "steps": 5}
GPU_PEERS: dict[str, dict[str, Any]] = {
    "ours": _CARD | {"options": {"cache": False, "tokens_per_forward": 8192}},
    "hf_tuned": _CARD | {"options": {"workers": 8, "per_device": 8}},
    "hf_tuned:batch=4": _CARD | {"options": {"workers": 8, "per_device": 4}},
    "hf_tuned:batch=16": _CARD | {"options": {"workers": 8, "per_device": 16}},
    "hf_checkpointing": _CARD | {"options": {"workers": 8, "per_device": 16, "checkpointing": True}},
}
"""`hf_checkpointing` is how LLaVA's own code trains; the parts of the batch are what fits beside the weights into 80 GB."""

HEADLINE: tuple[str, ...] = (
    "stage1_smol336_cached/ours",
    "stage1_smol336_cached/hf_tuned",
    "stage1_smol336_cached/hf_default",
    "stage2_smol224/ours",
    "stage2_smol224/hf_tuned",
    "stage2_smol224/trl",
    "stage2_smol224/hf_default",
    "stage2_smol224/ours_grouped",
    "stage2_smol224/hf_length_grouped",
    "lora_smol224/ours",
    "lora_smol224/hf_tuned",
    "lora_smol224/hf_default",
    "stage1_smol224_cached/ours",
    "stage1_smol224_cached/hf_tuned",
    "stage1_smol224_cached/hf_default",
)
"""Measured in every round, in this order: a config's sides take turns, so that a machine that slows down slows all of them."""

ONCE: tuple[str, ...] = (
    "stage2_smol224/hf_tuned:batch=1",
    "stage2_smol224/hf_tuned:batch=2",
    "stage2_smol224/trl_checkpointing",
    "lora_smol224/hf_tuned:batch=1",
    "stage1_smol336_cached/hf_tuned:batch=2",
    "stage1_smol336_cached/trl",
    "stage1_smol336_cached/hf_tuned:frozen=fp32",
    "stage2_smol224/hf_tuned:workers=0",
    "stage2_smol224/ours:cache=off",
    "stage2_smol224/ours:tokens_per_forward=8192",
    "stage1_smol336_cached/ours:compile=on",
    "stage2_smol224/hf_tuned:batch=4",
    "lora_smol224/trl",
    "stage1_smol224_cached/trl",
)
"""Measured once, after two rounds of the headline."""

# The gates: (stage, shape, peer). Settings that cannot change the result (threads, batch cut in parts, checkpointing) share one.
_GATES: tuple[tuple[Stage, str, str], ...] = (
    ("stage1", "small336", "hf"),
    ("stage2", "small224", "hf"),
    ("lora", "small224", "hf"),
    ("stage1", "small224", "hf"),
    ("lora", "small336", "hf"),
    ("stage2", "small224", "trl"),
    ("stage1", "small336", "trl"),
    ("lora", "small224", "trl"),
    ("stage1", "small224", "trl"),
)

# Seconds for a conversation of stage 2 at 224 pixels on two cores, and of the other configs beside it: guesses until a block is measured.
_GUESS = {
    "ours": 1.2,
    "hf_tuned": 2.7,
    "hf_default": 5.0,
    "trl": 2.8,
    "trl_checkpointing": 3.7,
    "ours_grouped": 1.2,
    "hf_length_grouped": 1.7,
    "hf_checkpointing": 3.7,
}
_BESIDE = {"stage1_smol336_cached": 1.0, "stage2_smol224": 1.0, "lora_smol224": 0.8, "stage1_smol224_cached": 0.25}
_START_SECONDS = 25.0


@dataclass(frozen=True)
class Cell:
    """`seconds` is a guess, for the first block only."""

    kind: Kind
    name: str
    job: Job
    seconds: float


def gates(quick: bool) -> list[Cell]:
    steps = 4 if quick else GATE_STEPS - 1
    return [
        Cell("gate", gate_name(stage, shape, peer), Job("gate", peer, stage, shape, batch=4, steps=steps, precision="fp32"), 40.0)
        for stage, shape, peer in _GATES
    ]


def gate_name(stage: Stage, shape: str, peer: str) -> str:
    """The gate that a peer of a config has to pass; big and small shapes of one tower share it."""
    family = "trl" if peer.startswith("trl") else "hf"
    return f"gate/{stage}-{shape.lstrip('abcdefghijklmnopqrstuvwxyz')}-{family}"


def small(shape: str) -> str:
    """The shape of a few thousand weights with the same tower's topology."""
    return shape.replace("smol", "small").replace("large", "small")


def training_cell(name: str, quick: bool) -> Cell:
    """The cell `config/peer`; a GPU's on the CPU, too, where it is only tried."""
    config, peer = name.split("/")
    stage, shape = (CONFIGS | GPU_CONFIGS)[config]
    if quick:
        shape = small(shape)
    job = replace(Job(config, peer, stage, shape, steps=2), **(GPU_PEERS if config in GPU_CONFIGS else PEERS)[peer])
    if quick:
        options = {**job.options, "per_device": min(4, job.options["per_device"])} if "per_device" in job.options else job.options
        job = replace(job, batch=4, warm=1, steps=1, device="cpu", options=options)
    if config in GPU_CONFIGS:
        return Cell("train", name, job, 240.0)
    per_row = _GUESS.get(peer) or _GUESS[peer.split(":")[0]]
    seconds = _START_SECONDS + (job.warm + job.steps) * job.batch * per_row * _BESIDE[config]
    return Cell("train", name, job, seconds)


def cache_cell(cell: Cell) -> Cell:
    """The filling of the feature cache that this cell of ours reads from."""
    return Cell("cache", f"cache/{cell.job.shape}-{cell.job.rows}", replace(cell.job, peer="ours", options={}), 70.0)


def pipeline_cells(quick: bool) -> Iterator[Cell]:
    for config, shape in PIPELINES.items():
        for peer in ("ours", "hf_processor"):
            job = Job(config, peer, "stage2", small(shape) if quick else shape, steps=2 if quick else 7)
            yield Cell("pipeline", f"{config}/{peer}", job, 60.0)


def headline(quick: bool, gpu: bool = False) -> list[Cell]:
    if gpu:
        return [training_cell(f"{config}/{peer}", quick) for config in GPU_CONFIGS for peer in GPU_PEERS]
    return [*(training_cell(name, quick) for name in HEADLINE), *pipeline_cells(quick)]


def once(quick: bool) -> list[Cell]:
    return [training_cell(name, quick) for name in ONCE]


def chosen(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose name contains one of `patterns`; all without any."""
    return [cell for cell in cells if not patterns or any(pattern in cell.name for pattern in patterns)]
