"""What a run will take, said before it begins: rows, tokens, steps, memory by part, hours. No torch here.

    plan = make_plan(config, DEVICES["h100"], gpus=8)
    print(plan.render())
    plan.refuse_unless_it_fits()

What does not fit is refused with the settings that would make it fit, each tried. Hours are arithmetic: the operations of `limits.py`, what
is recomputed included, over the device's speed times a stated efficiency (published runs reach 0.24 to 0.45 of the datasheet's).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vistune.data.planner import RowSize
from vistune.errors import OutOfMemory, UsageError
from vistune.model.config import ModelConfig
from vistune.train.config import TrainConfig, override
from vistune.train.expected import TAUGHT, ExpectedRows, expected_model, expected_rows
from vistune.train.limits import SampleSize, align_flops, recomputed_flops, step_flops, trained_parameters
from vistune.train.memory import GIB, Device, Forward, Memory, largest_forward, needed_memory
from vistune.train.shapes import ModelShape, model_shape


@dataclass(frozen=True)
class DeviceSpec:
    """What a device has: memory in bytes, and its speed at products, as published or measured."""

    name: str
    kind: Device
    memory: float | None
    flops_bf16: float
    flops_fp32: float
    measured: bool = False


# Memory as the driver shows it; speeds of the datasheets, without sparsity, fp32 without TF32.
DEVICES: dict[str, DeviceSpec] = {
    "h100": DeviceSpec("h100", "cuda", 79.1 * GIB, 989e12, 67e12),
    "h200": DeviceSpec("h200", "cuda", 139.8 * GIB, 989e12, 67e12),
    "a100-80": DeviceSpec("a100-80", "cuda", 79.1 * GIB, 312e12, 19.5e12),
    "a100-40": DeviceSpec("a100-40", "cuda", 39.4 * GIB, 312e12, 19.5e12),
}


def published_device(name: str, memory: float) -> DeviceSpec | None:
    """A device by the name that its driver gives, with the memory that it has; None for one that is not in the table."""
    kind = next((kind for kind in ("H100", "H200", "A100") if kind in name), None)
    if kind is None:
        return None
    known = DEVICES[{"H100": "h100", "H200": "h200", "A100": "a100-80"}[kind]]
    return replace(known, name=name, memory=memory)


def this_device(kind: Device) -> DeviceSpec:
    """This machine's GPU, or its CPU; of a speed of 0 where that is in no table. Loads torch."""
    if kind == "cpu":
        return DeviceSpec("this CPU", "cpu", None, 0.0, 0.0)
    import torch

    name, memory = torch.cuda.get_device_name(), float(torch.cuda.get_device_properties().total_memory)
    return published_device(name, memory) or DeviceSpec(name, "cuda", memory, 0.0, 0.0)


SPARE = 0.95
"""The share of a device's memory that a plan may use: it is right within 10 % or so, and mostly on the high side."""


@dataclass(frozen=True)
class Plan:
    config: TrainConfig
    model: ModelConfig
    device: DeviceSpec
    gpus: int
    rows: ExpectedRows
    model_source: str
    steps: int
    tokens_per_step: float
    useful_flops: float
    """Of the whole run."""
    recomputed_flops: float
    forward: Forward
    memory: Memory
    host_bytes: float
    """In the host's memory for each process, before a model is on its device."""
    parameters: int
    trained: int
    efficiency: float
    remedies: tuple[str, ...] = ()
    """Where it does not fit: settings with which it would."""

    @property
    def fits(self) -> bool:
        return self.device.memory is None or self.memory.peak <= SPARE * self.device.memory

    @property
    def hours(self) -> float | None:
        """None where nobody knows the device's speed."""
        flops = self.device.flops_bf16 if self.config.precision == "bf16" else self.device.flops_fp32
        return (self.useful_flops + self.recomputed_flops) / (flops * self.efficiency * self.gpus) / 3600 if flops else None

    def refuse_unless_it_fits(self) -> None:
        """Raises OutOfMemory, naming what would fit, for a run that does not."""
        if self.fits or self.device.memory is None:
            return
        advice = (
            f"It would fit with {', or with '.join(self.remedies)}." if self.remedies else "No setting makes it fit; take more devices."
        )
        raise OutOfMemory(
            f"{self.config.recipe} needs about {_gib(self.memory.peak)} on each device, and {self.device.name} has "
            f"{_gib(self.device.memory)} (of which a plan uses {SPARE:.0%}). {advice}"
        )

    def summary(self) -> str:
        """One line."""
        devices = f"{self.gpus} x {self.device.name}" if self.gpus > 1 else self.device.name
        return (
            f"{self.rows.rows:,} rows, {self.steps:,} steps of about {self.tokens_per_step:,.0f} tokens; {_count(self.trained)} of "
            f"{_count(self.parameters)} weights learn; about {_gib(self.memory.peak)} on {devices}"
            + (f", {_hours(self.hours)}" if self.hours is not None else "")
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.config.recipe,
            "rows": self.rows.rows,
            "rows_source": self.rows.source,
            "model_source": self.model_source,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens_per_step * self.steps,
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "device": self.device.name,
            "gpus": self.gpus,
            "memory": {each.name: getattr(self.memory, each.name) for each in fields(Memory)},
            "host_bytes": self.host_bytes,
            "device_memory": self.device.memory,
            "fits": self.fits,
            "remedies": list(self.remedies),
            "useful_flops": self.useful_flops,
            "recomputed_flops": self.recomputed_flops,
            "efficiency": self.efficiency,
            "hours": self.hours,
        }

    def render(self, *, price: float | None = None) -> str:
        """For a person: what is learned from, what it takes, where the memory goes."""
        config, memory = self.config, self.memory
        speed = self.device.flops_bf16 if config.precision == "bf16" else self.device.flops_fp32
        origin = "measured on this machine" if self.device.measured else "datasheet"
        tokens = self.steps * self.tokens_per_step
        work = f"{_flop(self.useful_flops)} to do" + (f", {_flop(self.recomputed_flops)} again" if self.recomputed_flops else "")
        lines = [
            ("recipe", f"{config.recipe}: {', '.join(config.trainable)} on {config.data.dataset}"),
            ("model", f"{_count(self.parameters)} weights, {_count(self.trained)} learn; {self.model_source}"),
            ("rows", f"{self.rows.rows:,} ({self.rows.source})"),
            ("tokens", f"about {self._mean_tokens:,.0f} a row, {self.tokens_per_step:,.0f} a step, {_count(tokens)} in all"),
            ("steps", f"{self.steps:,} of {config.batch.conversations} rows, {config.epochs:g} epoch{'s' * (config.epochs != 1)}"),
            ("device", f"{self.gpus} x {self.device.name}, {_flop(speed)}/s in {config.precision} ({origin})"),
            ("hours", f"{_hours(self.hours)} at {self.efficiency:g} of that; {work}"),
        ]
        if price is not None and self.hours is not None:
            lines.append(("cost", f"{price * self.hours * self.gpus:,.2f} at {price:g} for a device and hour"))
        text = "\n".join(f"{name:<8} {value}" for name, value in lines)
        parts = [(each.name, getattr(memory, each.name)) for each in fields(Memory) if each.name not in ("peak", "rows")]
        rows_place = "" if self.device.kind == "cpu" else " (in the host's memory)"
        table = "\n".join(f"  {name:<12} {_gib(value):>10}" for name, value in parts if value)
        table += f"\n  {'rows':<12} {_gib(memory.rows):>10}{rows_place}"
        whole = f" of {_gib(self.device.memory)}" if self.device.memory else ""
        fits = "" if self.fits else "   DOES NOT FIT"
        text += f"\nmemory   on each device, a forward of up to {self.forward.tokens:,} tokens:\n{table}"
        text += f"\n  {'at its peak':<12} {_gib(memory.peak):>10}{whole}{fits}"
        if self.device.kind == "cuda":
            text += f"\n  {'host':<12} {_gib(self.host_bytes + memory.rows):>10} for each process while the model is loaded"
        if self.remedies:
            text += "\nIt would fit with " + ", or with ".join(self.remedies) + "."
        return text

    @property
    def _mean_tokens(self) -> float:
        return sum(size.tokens for size in self.rows.sizes) / len(self.rows.sizes)


def make_plan(
    config: TrainConfig,
    device: DeviceSpec,
    *,
    gpus: int = 1,
    rows: int | None = None,
    efficiency: float = 0.4,
    model: ModelConfig | None = None,
    found: ExpectedRows | None = None,
) -> Plan:
    """Plans a run on `gpus` devices.

    Args:
        rows: so many rows in place of those that the data has.
        efficiency: which part of the device's speed the run will reach, 0 to 1.
        model, found: where they are known already; else they are looked for (`expected.py`).

    Raises:
        UsageError: settings that contradict each other or the number of devices; data of which nothing is known.
        UnknownName: backbones that are neither here nor published.
    """
    _check(config, gpus, efficiency)
    source = "this model"
    if model is None:
        expected = expected_model(config.model)
        model, source = expected.config, expected.source
    found = found or expected_rows(config, model, rows=rows)
    plan = _plan(config, device, gpus, efficiency, model, source, found)
    return plan if plan.fits else _with_remedies(plan)


def check_fits(config: TrainConfig, model: ModelConfig, rows: Sequence[RowSize], count: int, device: DeviceSpec, *, gpus: int = 1) -> Plan:
    """The plan of a run that is about to begin, from its own model and rows.

    Args:
        rows: the sizes of some hundred of its rows, evenly from all.
        count: how many there are.
        device: `this_device`; on a CPU nothing is refused, it only becomes slow.

    Raises OutOfMemory for what cannot fit, naming the settings with which it would.
    """
    shape = model_shape(model)
    sizes = [
        SampleSize(row.tokens, max(1, round(TAUGHT * (row.tokens - seen))), seen, row.images)
        for row in rows
        for seen in [min(row.tokens - 1, row.images * shape.tower.tokens)]
    ]
    found = ExpectedRows(count, tuple(sizes), "the rows of this run")
    plan = make_plan(config, device, gpus=gpus, model=model, found=found)
    plan.refuse_unless_it_fits()
    return plan


def _check(config: TrainConfig, gpus: int, efficiency: float) -> None:
    if gpus < 1 or gpus % config.parallel.replicas:
        raise UsageError(f"{gpus} devices cannot be divided into parallel.replicas={config.parallel.replicas} groups of one size.")
    if gpus > config.batch.conversations:
        raise UsageError(
            f"{gpus} devices share steps of batch.conversations={config.batch.conversations}, so some would have nothing to do. Plan "
            "fewer, or a larger batch (which is another recipe: its learning rate has to be found anew)."
        )
    if not 0 < efficiency <= 1:
        raise UsageError(f"An efficiency is a part of the device's speed, above 0 and at most 1, not {efficiency:g}.")
    if config.model.quantise != "none" and "language_model" in config.trainable:
        raise UsageError(f"model.quantise={config.model.quantise} is for a frozen language model; this run trains it. Train lora instead.")


def _plan(
    config: TrainConfig, device: DeviceSpec, gpus: int, efficiency: float, model: ModelConfig, source: str, found: ExpectedRows
) -> Plan:
    shape = model_shape(model)
    batch = min(config.batch.conversations, found.rows)
    steps = config.max_steps or max(1, math.ceil(config.epochs * math.ceil(found.rows / config.batch.conversations)))
    mean_tokens = sum(size.tokens for size in found.sizes) / len(found.sizes)
    useful, again = _mean_flops(config, shape, found.sizes, steps * batch / found.rows)
    share = _cycled(found.sizes, math.ceil(batch / gpus))
    forward = largest_forward(share, config.batch.tokens_per_forward)
    forwards = max(1, math.ceil(sum(size.tokens for size in share) / max(config.batch.tokens_per_forward, 1)))
    shards = gpus // config.parallel.replicas
    memory = needed_memory(config, shape, forward, rows=share, forwards=forwards, device=device.kind, shards=shards)
    return Plan(
        config=config,
        model=model,
        device=device,
        gpus=gpus,
        rows=found,
        model_source=source,
        steps=steps,
        tokens_per_step=mean_tokens * batch,
        useful_flops=useful * batch * steps,
        recomputed_flops=again * batch * steps,
        forward=forward,
        memory=memory,
        host_bytes=_host_bytes(config, shape, gpus),
        parameters=shape.parameters,
        trained=trained_parameters(shape, config.trainable, lora_rank=config.lora.rank),
        efficiency=efficiency,
    )


def _host_bytes(config: TrainConfig, shape: ModelShape, gpus: int) -> float:
    """Of a checkpoint in 16 bits: masters are made in the host's memory by a process alone, else where the shards are."""
    language = shape.language_model.parameters
    masters = config.precision == "fp32" or ("language_model" in config.trainable and gpus == 1)
    return (4.0 if masters else 2.0) * language + 4.0 * (shape.parameters - language)


def _mean_flops(config: TrainConfig, shape: ModelShape, sizes: Sequence[SampleSize], epochs: float) -> tuple[float, float]:
    """(useful, recomputed) of a row."""
    # With a cache, a picture is encoded once however often it is met.
    cached = max(0.0, 1.0 - 1.0 / epochs) if config.feature_cache and "vision_tower" not in config.trainable else 0.0
    if config.objective == "align":
        return sum(align_flops(shape, size.views, cached=cached).total for size in sizes) / len(sizes), 0.0
    useful = step_flops(shape, sizes, config.trainable, lora_rank=config.lora.rank, cached=cached).total
    again = recomputed_flops(shape, sizes) if config.activation_checkpointing else 0.0
    return useful / len(sizes), again / len(sizes)


def _cycled(sizes: Sequence[SampleSize], count: int) -> list[SampleSize]:
    return [sizes[place % len(sizes)] for place in range(count)]


# --- what would fit -------------------------------------------------------------------------------------------------------------------

_TRIED: tuple[Mapping[str, Any], ...] = (
    {"activation_checkpointing": True},
    {"parallel.shard": "all"},
    {"batch.tokens_per_forward": 4096},
    {"batch.tokens_per_forward": 2048},
    {"activation_checkpointing": True, "batch.tokens_per_forward": 2048},
    {"activation_checkpointing": True, "parallel.shard": "all"},
    {"trainable": ("projector", "lora")},
    {"trainable": ("projector", "lora"), "activation_checkpointing": True},
    {"model.quantise": "nf4"},
    {"model.quantise": "nf4", "activation_checkpointing": True},
    {"trainable": ("projector", "lora"), "model.quantise": "nf4", "activation_checkpointing": True},
)
_ENOUGH = 3  # remedies are named, the gentlest first
_DEVICES_TRIED = (2, 4, 8, 16, 32, 64)


def _with_remedies(plan: Plan) -> Plan:
    found: list[str] = []
    changed: list[Mapping[str, Any]] = []
    for changes in _TRIED:
        if len(found) == _ENOUGH or any(earlier.items() <= changes.items() for earlier in changed):
            continue
        if _makes_sense(plan, changes) and (tried := _replanned(plan, override(plan.config, changes), plan.gpus)).fits:
            found.append(f"{_spelled(changes)} ({_gib(tried.memory.peak)})")
            changed.append(changes)
    batch, replicas = plan.config.batch.conversations, plan.config.parallel.replicas
    more = [gpus for gpus in _DEVICES_TRIED if plan.gpus < gpus <= batch and gpus % replicas == 0 and plan.device.kind == "cuda"]
    for gpus in more:
        if (tried := _replanned(plan, plan.config, gpus)).fits:
            found.append(f"{gpus} devices ({_gib(tried.memory.peak)} on each)")
            break
    return replace(plan, remedies=tuple(found))


def _replanned(plan: Plan, config: TrainConfig, gpus: int) -> Plan:
    return _plan(config, plan.device, gpus, plan.efficiency, plan.model, plan.model_source, plan.rows)


def _makes_sense(plan: Plan, changes: Mapping[str, Any]) -> bool:
    trains_words = "language_model" in changes.get("trainable", plan.config.trainable)
    if plan.config.objective == "align" or override(plan.config, changes) == plan.config:
        return False
    if "parallel.shard" in changes and plan.gpus == 1:
        return False
    if "model.quantise" in changes and trains_words:
        return False
    if changes.get("batch.tokens_per_forward", 0) > plan.config.batch.tokens_per_forward:
        return False
    return "trainable" not in changes or "language_model" in plan.config.trainable


def _spelled(changes: Mapping[str, Any]) -> str:
    def value(each: Any) -> str:
        return ",".join(each) if isinstance(each, tuple) else str(each).lower() if isinstance(each, bool) else str(each)

    return " ".join(f"{name}={value(each)}" for name, each in changes.items())


# --- numbers for people ---------------------------------------------------------------------------------------------------------------


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.095 * GIB else f"{size / 2**20:.1f} MiB"


def _scaled(value: float, units: Iterator[str]) -> str:
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)) is not None:
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}".strip()


def _count(value: float) -> str:
    return _scaled(float(value), iter(("", "thousand", "million", "billion", "trillion")))


def _flop(value: float) -> str:
    return _scaled(value, iter(("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP")))


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    if hours >= 48:
        return f"{hours:.0f} hours ({hours / 24:.1f} days)"
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"
