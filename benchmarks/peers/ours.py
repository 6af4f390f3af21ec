"""vistune's side of the benchmark: `vistune.train.trainer.train` itself, with a clock that looks over its shoulder."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from peers.job import LEARNING_RATE, SEED, Files, Job, Measured, now, peak_bytes, resident_bytes, template_of
from vistune.model.backbones import tokens_per_view
from vistune.model.config import LoraConfig
from vistune.train.config import BatchConfig, DataConfig, ModelChoice, OptimConfig, Part, Precision, TrainConfig
from vistune.train.limits import Attainable, SampleSize, floor_seconds, measure_attainable, step_bytes, step_flops
from vistune.train.metrics import Bar, Display, read_metrics
from vistune.train.plan import this_device
from vistune.train.shapes import model_shape
from vistune.train.trainer import train

TRAINABLE: dict[str, tuple[Part, ...]] = {
    "stage1": ("projector",),
    "stage2": ("projector", "language_model"),
    "lora": ("projector", "lora"),
}
TOKENS_PER_FORWARD = 2560
"""Four rows of stage 1 at 336 pixels. Larger forwards cost memory; products are no faster for more rows than this."""
LORA_DROPOUT = 0.05


class EnoughTimed(Exception):
    """The timed steps are done; saving the result is no part of them."""


def train_config(job: Job, files: Files, output: Path, cache: Path) -> TrainConfig:
    """The run of a job: v1.5's choices of what learns, constant rates so that every peer has the same."""
    return TrainConfig(
        recipe="benchmark",
        output=str(output),
        model=ModelChoice(init_from=str(files.model), template=template_of(job.stage), image_mode="square"),
        trainable=TRAINABLE[job.stage],
        data=DataConfig(dataset="rows.json", root=str(files.data), images="pictures"),
        batch=BatchConfig(conversations=job.batch, tokens_per_forward=int(job.options.get("tokens_per_forward", TOKENS_PER_FORWARD))),
        optim=OptimConfig(lr=LEARNING_RATE, schedule="constant", warmup_ratio=0.0),
        lora=LoraConfig(rank=128, alpha=256, dropout=0.0 if job.precision == "fp32" else LORA_DROPOUT),
        max_steps=job.warm + job.steps,
        seed=SEED,
        precision=cast(Precision, job.precision),
        device=cast(Any, job.device),
        feature_cache=str(cache) if job.options.get("cache", True) else "",
        save_every=1_000_000,
        compile=bool(job.options.get("compile", False)),
        activation_checkpointing=bool(job.options.get("checkpointing", False)),
    )


def run(job: Job, files: Files, scratch: Path) -> Measured:
    """Trains for the job's steps. The feature cache outlives the block: who fills it first is told how long that took."""
    measured = Measured(import_bytes=resident_bytes(job.device))
    config = train_config(job, files, scratch / "run", files.data / f"features-{job.precision}")
    limits = _limits(job, files) if job.precision == "bf16" else None
    clock = Clock(config.recipe, job.warm + job.steps, job.device)
    with contextlib.suppress(EnoughTimed):
        train(config, display=clock)
    measured.peak_bytes = clock.peak_bytes
    ends = clock.ends
    measured.seconds = [later - earlier for earlier, later in zip(ends[job.warm - 1 :], ends[job.warm :], strict=False)]
    measured.losses = [row["loss"] for row in read_metrics(Path(config.output) / "metrics.jsonl")]
    measured.notes = {"cache_seconds": clock.cache_seconds, "threads": torch.get_num_threads(), "options": job.options}
    if limits is not None:
        measured.notes |= _floor(job, files, limits, measured.seconds)
    return measured


def fill_cache(job: Job, files: Files, scratch: Path) -> Measured:
    """Encodes the pictures of the job's rows, as the trainer does before its first step, and stops there."""
    measured = Measured(import_bytes=resident_bytes())
    cache = files.data / f"features-{job.precision}"
    shutil.rmtree(cache, ignore_errors=True)
    config = train_config(job, files, scratch / "run", cache)
    clock = Clock(config.recipe, steps=0)
    with contextlib.suppress(EnoughTimed):
        train(config, display=clock)
    measured.peak_bytes = peak_bytes()
    measured.seconds = [clock.cache_seconds]
    measured.notes = {"pictures": clock.pictures, "cache_bytes": sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())}
    return measured


class Clock(Display):
    """Notes when each step ended and how long the pictures took, by the bars that the trainer draws. With 0 steps only the pictures."""

    def __init__(self, recipe: str, steps: int, device: str = "cpu"):
        super().__init__(Console(quiet=True))
        self.recipe, self.steps, self.device = recipe, steps, device
        self.ends: list[float] = []
        self.peak_bytes = 0
        self.cache_seconds, self.pictures = 0.0, 0

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        shown = super().bar(title, total, done)
        return cast(Bar, _Timed(shown, self, title, total))

    def step_ended(self) -> None:
        self.ends.append(now(self.device))
        self.peak_bytes = peak_bytes(self.device)
        if len(self.ends) == self.steps:
            raise EnoughTimed


class _Timed:
    def __init__(self, shown: Bar, clock: Clock, title: str, total: int):
        self._shown, self._clock, self._title = shown, clock, title
        self._began, self._total = time.perf_counter(), total

    def advance(self, *args: Any, **kwargs: Any) -> None:
        self._shown.advance(*args, **kwargs)
        if self._title == self._clock.recipe:
            self._clock.step_ended()

    def close(self) -> None:
        self._shown.close()
        if self._title == "pictures":
            self._clock.cache_seconds, self._clock.pictures = time.perf_counter() - self._began, self._total
            if not self._clock.steps:
                raise EnoughTimed


# --- the floor ---


@dataclass(frozen=True)
class _Limits:
    device: Attainable
    config: Any


def _limits(job: Job, files: Files) -> _Limits:
    """What this machine reaches now, on products of this model's own shapes."""
    from peers.workload import model_config

    config = model_config(job.shape)
    return _Limits(measure_attainable(model_shape(config).language_model, "bf16", device=job.device), config)


def _floor(job: Job, files: Files, limits: _Limits, seconds: list[float]) -> dict[str, Any]:
    """The least time for the timed steps, by the better of two measurements of the machine: before them and after them."""
    again = _limits(job, files).device
    device = replace(
        again,
        flops_per_second=max(again.flops_per_second, limits.device.flops_per_second),
        bytes_per_second=max(again.bytes_per_second, limits.device.bytes_per_second),
    )
    shape, trainable = model_shape(limits.config), TRAINABLE[job.stage]
    views = tokens_per_view(limits.config)
    rank = 128 if job.stage == "lora" else 0
    floors, flops = [], []
    examples = files.examples()
    for step in range(job.warm, job.warm + job.steps):
        rows = examples[step * job.batch : (step + 1) * job.batch]
        sizes = [SampleSize(len(row.input_ids), row.supervised, views * bool(row.image), int(bool(row.image))) for row in rows]
        cached = 1.0 if job.options.get("cache", True) else 0.0
        work = step_flops(shape, sizes, trainable, lora_rank=rank, cached=cached).total
        weights, optimizer = step_bytes(shape, trainable, lora_rank=rank)
        floors.append(floor_seconds(work, weights, optimizer, device))
        flops.append(work)
    return {
        "floor_seconds": floors,
        "flops": flops,
        "gflops_attainable": round(device.flops_per_second / 1e9, 1),
        "gb_per_second": round(device.bytes_per_second / 1e9, 1),
        "of_limit": sum(floors) / sum(seconds),
    } | ({"published_flops": this_device("cuda").flops_bf16} if job.device == "cuda" else {})
