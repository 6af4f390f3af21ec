"""What a run tells while it runs: a line of numbers per step, a progress bar, how near to the machine's limit it is.

`metrics.jsonl` has one object per optimizer step (`loss`, `learning_rate`, `gradient_norm`, `tokens_per_second`, ...) and, between them,
those of validations (`validation_loss`). Floats are written in full, so two runs can be compared bit for bit.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vistune.data.planner import RowSize
from vistune.errors import optional_import
from vistune.journal import atomic_write
from vistune.model.config import ModelConfig
from vistune.train.config import Precision, TrainConfig
from vistune.train.limits import Attainable, SampleSize, align_flops, floor_seconds, measure_attainable, step_bytes, step_flops
from vistune.train.memory import GIB
from vistune.train.shapes import LanguageShape, model_shape


class MetricsLog:
    """`metrics.jsonl`, appended to line by line. Going on from a step first drops the lines after it: they will be lived again.

    Args:
        tensorboard: write the rows as TensorBoard events too, into `tensorboard/` beside the file.

    Raises MissingDependency for `tensorboard` without that package.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, tensorboard: bool = False):
        self._events = _events(path.parent / "tensorboard", resume_step) if tensorboard else None
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, float(value), int(row["step"]))

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _events(folder: Path, resume_step: int) -> Any:
    optional_import("tensorboard", extra="tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, or none if there is no file. A last line that was cut off when the run was killed is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Meter:
    """Says of each step how near to the limit it came, and how much memory is in use.

    The limit is arithmetic (`limits.py`) at the speed that this device has at products of this model's own shapes, measured once.

    Args:
        device: "cpu" or "cuda", of this process.
        processes: that share each step.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, device: str, *, processes: int = 1, cached: bool = False):
        self.config, self.shape, self.device, self.processes, self.cached = config, model_shape(model), device, processes, cached
        self.attainable = _attainable(self.shape.language_model, config.precision, device)

    def read(self, rows: Sequence[RowSize], supervised: float, seconds: float) -> dict[str, float]:
        """`of_limit` (the least time of such a step over the time that it took) and `memory_gib`, for the step's row of metrics.

        Args:
            rows: of the whole step, over all processes.
            supervised: tokens that were learned from, in all of them.
        """
        return {"of_limit": self._floor(rows, supervised) / seconds, "memory_gib": memory_in_use(self.device) / GIB}

    def _floor(self, rows: Sequence[RowSize], supervised: float) -> float:
        config, shape, cached = self.config, self.shape, float(self.cached)
        if config.objective == "align":
            flops = align_flops(shape, sum(row.images for row in rows), cached=cached).total
            weight_bytes = 0.0
        else:
            share = supervised / max(1, sum(row.tokens for row in rows))
            tokens = shape.tower.tokens
            sizes = [SampleSize(row.tokens, round(share * row.tokens), row.images * tokens, row.images) for row in rows]
            flops = step_flops(shape, sizes, config.trainable, lora_rank=config.lora.rank, cached=cached).total
            weight_bytes = step_bytes(shape, config.trainable)[0]
        optimizer_bytes = step_bytes(shape, config.trainable, lora_rank=config.lora.rank)[1]
        return floor_seconds(flops / self.processes, weight_bytes, optimizer_bytes / self.processes, self.attainable)


@cache
def _attainable(shape: LanguageShape, number: Precision, device: str) -> Attainable:
    return measure_attainable(shape, number, device=device, tokens=512, megabytes=32, repeats=3)


def memory_in_use(device: str) -> int:
    """Bytes: the most that a GPU's allocator held since the process began, or the most that was resident of a process on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def note_of(row: dict[str, float]) -> str:
    """What the progress bar says of a step."""
    if "loss" not in row:
        return "step left out"
    parts = [f"loss {row['loss']:.3f}", f"{row['tokens_per_second']:.0f} tokens/s"]
    if "of_limit" in row:
        parts += [f"{row['of_limit']:.0%} of the limit", f"{row['memory_gib']:.1f} GiB"]
    return " · ".join(parts)


class Display:
    """The progress bar of a run and the lines above it. Silent where nobody looks: it draws only on a terminal."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        return Bar(self._progress, self._progress.add_task(title, total=total, completed=done, note=""))

    def say(self, text: str) -> None:
        """A line above the bar; text of models and data is never read as markup."""
        self.console.print(text, markup=False, highlight=False)


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps, note=note)

    def close(self) -> None:
        self._progress.remove_task(self._task)
