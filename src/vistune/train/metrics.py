"""What a run tells: a line of numbers per step, a progress bar, and the loss curve as a picture.

`metrics.jsonl` has one object per optimizer step (`loss`, `learning_rate`, `gradient_norm`, `tokens_per_second`, ...) and, between them,
those of validations (`validation_loss`). Floats are written in full, so two runs can be compared bit for bit.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vistune.journal import atomic_write


class MetricsLog:
    """`metrics.jsonl`, appended to line by line. Going on from a step first drops the lines after it: they will be lived again."""

    def __init__(self, path: Path, *, resume_step: int = 0):
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, or none if there is no file. A last line that was cut off when the run was killed is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def draw_loss_curve(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draws training and validation loss over steps as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training, each step")
        axes.plot(steps, _smoothed(losses), color="tab:blue", label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss per token", title=title)
    if training or validation:
        axes.legend()
    axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    pyplot.close(figure)
    atomic_write(path, drawn.getvalue())


def _smoothed(losses: tuple[float, ...], memory: float = 0.95) -> list[float]:
    """Exponential average without the bias towards its start."""
    average, weight, smooth = 0.0, 0.0, []
    for loss in losses:
        average = memory * average + (1 - memory) * loss
        weight = memory * weight + (1 - memory)
        smooth.append(average / weight)
    return smooth


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
