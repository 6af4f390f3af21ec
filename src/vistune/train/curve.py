"""The loss curve of a run: `loss.png` for a glance, `loss.html` for a look. Both stand for themselves; nothing is loaded from elsewhere.

write_curves(read_metrics(folder / "metrics.jsonl"), folder, title="smol_tune")
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.journal import atomic_write

Point = tuple[float, float]

_MEMORY = 0.95  # of the smoothed line: what each step keeps of the steps before it
_MOST_POINTS = 1500  # of a line in the page; a longer run is drawn by the means of equal stretches


def write_curves(rows: Sequence[dict[str, Any]], folder: Path, *, title: str) -> None:
    """Draws `loss.png` and `loss.html` in the folder of a run."""
    draw_loss_curve(rows, folder / "loss.png", title=title)
    atomic_write(folder / "loss.html", curve_page(rows, title=title).encode())


def draw_loss_curve(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draws training and validation loss over steps as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training, validation = series(rows, "loss"), series(rows, "validation_loss")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if training:
        axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.3, linewidth=1, label="training, each step")
        axes.plot(*zip(*smoothed(training), strict=True), color="tab:blue", label="training, smoothed")
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


def series(rows: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """(step, value) of the rows that have such a number, left out where it is not finite."""
    return [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential average without the bias towards its start."""
    average, weight, smooth = 0.0, 0.0, []
    for step, value in points:
        average = _MEMORY * average + (1 - _MEMORY) * value
        weight = _MEMORY * weight + (1 - _MEMORY)
        smooth.append((step, average / weight))
    return smooth


# --- the page -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    points: Sequence[Point]
    kind: str
    """A class of the page's style."""
    label: str


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 1.5rem 0 0 } svg { width: 100%; height: auto } table { border-collapse: collapse }
td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; font-weight: normal } td { font-variant-numeric: tabular-nums }
line { stroke: #8884 } text { font-size: 11px; fill: currentColor } polyline { fill: none; stroke-width: 1.6 } .each { stroke: #4477aa55 }
.train { stroke: #4477aa } .valid { stroke: #d9730d } circle.valid { fill: #d9730d }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } .train { stroke: #77aadd } .each { stroke: #77aadd55 } }
"""


def curve_page(rows: Sequence[dict[str, Any]], *, title: str) -> str:
    """A page with the losses, the learning rate and the speed of a run as pictures, and where it stands as a table."""
    training, validation = series(rows, "loss"), series(rows, "validation_loss")
    loss = (
        _Line(training, "each", "training, each step"),
        _Line(smoothed(training), "train", "training, smoothed"),
        _Line(validation, "valid", "validation"),
    )
    charts = [
        _chart("Loss per token", loss),
        _chart("Learning rate", (_Line(series(rows, "learning_rate"), "train", ""),)),
        _chart("Gradient norm", (_Line(smoothed(series(rows, "gradient_norm")), "train", "smoothed"),)),
        _chart("Tokens per second", (_Line(smoothed(series(rows, "tokens_per_second")), "train", "smoothed"),)),
    ]
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", _table(rows), *charts])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(rows: Sequence[dict[str, Any]]) -> str:
    training, validation = smoothed(series(rows, "loss")), series(rows, "validation_loss")
    facts = {"steps": f"{max((row['step'] for row in rows), default=0):,}"}
    if training:
        facts["training loss, smoothed, at the end"] = f"{training[-1][1]:.4f}"
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        facts["best validation loss"] = f"{best:.4f} at step {step:,.0f}"
    facts["tokens"] = f"{sum(row.get('tokens', 0) for row in rows):,}"
    facts["hours"] = f"{sum(row.get('seconds', 0.0) for row in rows) / 3600:.2f}"
    if skipped := sum("skipped" in row for row in rows):
        facts["steps left out"] = f"{skipped:,}"
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts.items()) + "</table>"


_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 900, 260, 60, 24, 10


def _chart(title: str, lines: Sequence[_Line]) -> str:
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    high = high if high > low else low + (abs(low) or 1.0)

    def place(point: Point) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 10) * (point[0] - first) / max(1, last - first)
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - point[1]) / (high - low)
        return x, y

    drawn = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        y = place((first, value))[1]
        drawn.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        step = first + (last - first) * tick / 4
        drawn.append(f'<text x="{place((step, low))[0]:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{step:.0f}</text>')
    for line in lines:
        places = [place(point) for point in _thinned(line.points)]
        drawn.append(f'<polyline class="{line.kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if line.kind == "valid":
            drawn += [f'<circle class="valid" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
    names = " · ".join(line.label for line in lines if line.label and line.points)
    return (
        f'<h2>{title}</h2>\n<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} over optimizer steps">'
        f"{''.join(drawn)}</svg>\n<small>{names}</small>"
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    stride = math.ceil(len(points) / _MOST_POINTS) or 1
    groups = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [(sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups]
