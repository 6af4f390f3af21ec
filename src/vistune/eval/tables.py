"""Results for a person at a terminal: a bar while they are made, a table when they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vistune.eval.benchmark import Metric
from vistune.eval.results import BenchmarkResult

if TYPE_CHECKING:
    from rich.table import Table


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for `evaluate`'s progress; nothing is drawn where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as drawn:
        task = drawn.add_task(what, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


def table(result: BenchmarkResult) -> Table:
    """A row per category, a column per metric; what was not asked stays empty.

    Where some metrics have categories, those that have none are said below the table.
    """
    from rich import box
    from rich.table import Table

    columns, alone = _columns(result)
    rows = list(dict.fromkeys(row for cells in columns.values() for row in cells))
    said = [remarks(result), *(f"{metric.name} {as_printed(metric)}" for metric in alone)]
    drawn = Table(title=title(result), caption="; ".join(said), box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    drawn.add_column("", overflow="fold", min_width=12)
    for heading, cells in columns.items():
        drawn.add_column(heading, justify="right", min_width=max(len(as_printed(metric)) for metric in cells.values()))
    drawn.add_column("n", justify="right", no_wrap=True)
    for row in rows:
        found = [cells.get(row) for cells in columns.values()]
        drawn.add_row(row or "all", *(as_printed(each) for each in found), str(max(each.n for each in found if each)))
    return drawn


def _columns(result: BenchmarkResult) -> tuple[dict[str, dict[str, Metric]], list[Metric]]:
    """metric → category → figure, and the metrics that have no category while others have."""
    columns: dict[str, dict[str, Metric]] = {}
    for metric in result.metrics:
        name, _, category = metric.name.partition("/")
        columns.setdefault(name, {})[category] = metric
    if all(set(cells) == {""} for cells in columns.values()):
        return columns, []
    alone = [cells[""] for cells in columns.values() if set(cells) == {""} and not cells[""].headline]
    return {name: cells for name, cells in columns.items() if cells.get("") not in alone}, alone


def title(result: BenchmarkResult) -> str:
    marks = [mark for mark, set in (("blind", result.blind), ("PARTIAL", result.partial)) if set]
    by = f", judged by {result.judge}" if result.judge else ""
    return f"{result.benchmark} ({', '.join([result.protocol, *marks])}): {result.model}{by}"


def remarks(result: BenchmarkResult) -> str:
    """The headline with what it rests on, in a sentence or three."""
    said = [f"{result.n} questions about {result.n_pictures} pictures, {result.n_unscored} unscored"]
    if result.headline:
        said.insert(0, f"{result.headline.name} {as_printed(result.headline, interval=True)}")
    if result.n_unscored:
        said.append(_between(result))
    if result.agreement:
        agreed = result.agreement
        correlation = "unknown" if agreed.correlation is None else f"{agreed.correlation:.2f}"
        said.append(
            f"{agreed.judges[1]} gives {agreed.same:.0%} of {agreed.n} replies the same score, {-agreed.mean_difference:+.2f} on average, "
            f"correlation {correlation}"
        )
    return "; ".join(said)


def _between(result: BenchmarkResult) -> str:
    if result.bounds is None:
        return "what they could change is unknown"
    low, high = (f"{bound:.4g}" for bound in result.bounds)
    return f"between {low} and {high} if those were all wrong or all right"


def as_printed(metric: Metric | None, *, interval: bool = False) -> str:
    """The figure with the digits that its unit is printed with: 46.83, 0.667, 1510.7."""
    if metric is None:
        return ""
    digits = {"percent": 2, "fraction": 3, "points": 1, "score": 3}[metric.unit]
    span = f" [{metric.interval[0]:.{digits}f}, {metric.interval[1]:.{digits}f}]" if interval and metric.interval else ""
    return f"{metric.value:.{digits}f}{span}"
