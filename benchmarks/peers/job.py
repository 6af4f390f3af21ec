"""One cell of the benchmark as data, what it measures, and the files that it works on. Torch is imported only to make these files."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.workload import (
    Length,
    Stage,
    batches_of,
    grouped_rows,
    model_config,
    model_folder,
    padding,
    typical_rows,
    write_rows,
)

LEARNING_RATE = 1e-3
SEED = 1


@dataclass(frozen=True)
class Job:
    """Who does what. `steps` optimizer steps of `batch` conversations each follow on `warm` steps that are not timed."""

    config: str
    peer: str
    stage: Stage
    shape: str
    batch: int = 8
    warm: int = 1
    steps: int = 2
    grouped: bool = False
    """Batches of like lengths, as transformers' sampler groups them, and not the mixture as it comes."""
    precision: str = "bf16"
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    """What only this peer understands, such as `checkpointing` or `per_device`."""

    @property
    def small(self) -> bool:
        return self.shape.startswith("small")

    @property
    def rows(self) -> str:
        """Which rows: stage 1's captions, or stage 2's mixture, as it comes or grouped by length."""
        return "captions" if self.stage == "stage1" else "grouped" if self.grouped else "mixture"

    @property
    def scale(self) -> float:
        return 0.12 if self.small else 1.0


@dataclass
class Measured:
    """What a block of steps took. A block that was stopped half-way says nothing and is not kept."""

    seconds: list[float] = field(default_factory=list)
    """Of each timed step, from the end of the one before it: fetching its data is part of it."""
    losses: list[float] = field(default_factory=list)
    """Of every step, those that warm up included."""
    peak_bytes: int = 0
    import_bytes: int = 0
    """Resident once everything is imported and nothing loaded."""
    notes: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """A conversation as vistune's processor tokenised it: every peer learns from these very ids and labels."""

    input_ids: list[int]
    labels: list[int]
    image: str | None

    @property
    def supervised(self) -> int:
        return sum(label != -100 for label in self.labels[1:])


@dataclass(frozen=True)
class Files:
    """What a job reads: the model folder, the rows as data file, and the same rows tokenised."""

    model: Path
    data: Path

    @property
    def pictures(self) -> Path:
        return self.data / "pictures"

    def examples(self) -> list[Example]:
        return [Example(**each) for each in json.loads((self.data / "examples.json").read_text())]


def files_for(job: Job, root: Path) -> Files:
    """The job's files, made where they are not there yet."""
    model, data = model_folder(job.shape, root), data_folder(job, root)
    if not (data / "examples.json").is_file():
        _make_data(job, model, data)
    return Files(model, data)


def data_folder(job: Job, root: Path) -> Path:
    return root / job.shape / f"{job.rows}-{job.batch}x{job.warm}+{job.steps}"


def cache_folder(job: Job, root: Path) -> Path:
    """The features of the pictures of the job's rows, in its number format."""
    return data_folder(job, root) / f"features-{job.precision}"


def _make_data(job: Job, model: Path, data: Path) -> None:
    from vistune.checkpoint.assemble import read_tokenizer
    from vistune.data.sampler import Sampler
    from vistune.formats import example_from_row
    from vistune.model.backbones import tokens_per_view
    from vistune.model.processor import Processor

    config = model_config(job.shape)
    tokenizer, per_picture = read_tokenizer(model), tokens_per_view(config)
    sizes = {"batch": job.batch, "warm": job.warm, "timed": job.steps, "scale": job.scale}
    stage: Stage = "stage1" if job.stage == "stage1" else "stage2"
    lengths: Sequence[Length] = grouped_rows(per_picture, **sizes) if job.grouped else typical_rows(stage, per_picture, **sizes)
    order = Sampler(len(lengths), job.batch, SEED)
    places = [place for step in range(order.steps_per_epoch) for place in order.rows(step).rows]
    rows = json.loads(write_rows(stage, lengths, tokenizer, data, places).read_text())
    processor = Processor(tokenizer, _with_template(config, stage))
    examples = []
    for place in places:
        conversation = example_from_row(rows[place], data / "pictures", row_number=place).conversation
        inputs = processor(conversation, train=True, load_pixels=False)
        assert inputs.labels is not None
        examples.append({"input_ids": inputs.input_ids.tolist(), "labels": inputs.labels.tolist(), "image": rows[place].get("image")})
    (data / "examples.json").write_text(json.dumps(examples))


def template_of(stage: Stage) -> str:
    return "plain" if stage == "stage1" else "vicuna_v1"


def _with_template(config: Any, stage: Stage) -> Any:
    from dataclasses import replace

    return replace(config, template=template_of(stage))


def tokens_of_steps(job: Job, examples: Sequence[Example]) -> list[int]:
    """Real tokens of each timed step."""
    steps = batches_of(examples, job.batch)[job.warm : job.warm + job.steps]
    return [sum(len(each.input_ids) for each in step) for step in steps]


def padding_of(job: Job, examples: Sequence[Example]) -> float:
    totals = [len(each.input_ids) for each in examples[job.warm * job.batch :]]
    return padding(totals, int(job.options.get("per_device", job.batch)))


# --- memory and time ---


def now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was told."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str = "cpu") -> int:
    """The most that this process ever held in memory: its own, or the GPU's."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes(device: str = "cpu") -> int:
    """What it holds now; where the system does not say, the most so far, which right after the imports is the same. 0 on a GPU."""
    if device == "cuda":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")
