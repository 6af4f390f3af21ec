"""One measured benchmark as a record: run it, write it down, show it.

Beside each result lies its predictions file, every answer verbatim. Given the same folder again, only what has no answer yet is asked.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vistune import __version__
from vistune.chat_model import ChatModel
from vistune.eval.benchmark import Benchmark, KindResult
from vistune.eval.blind import BlindChatModel
from vistune.eval.runner import grade, predict, questions_digest
from vistune.eval.scoring import SCORER_VERSION
from vistune.journal import atomic_write
from vistune.types import Graded, SamplingParams

if TYPE_CHECKING:
    from rich.table import Table

    from vistune.eval.benchmarks.text_only import SideBySide


@dataclass(frozen=True)
class BenchmarkResult:
    """A model's figures on a benchmark with everything needed to tell whether two results may be compared."""

    benchmark: str
    version: str
    scorer: str
    model: str
    checkpoint: str
    """Digest of the model's folder."""
    blind: bool
    questions: str
    """Digest of the questions that were asked."""
    params: SamplingParams
    arithmetic: str
    """Number format, and whether answers depend on their company; empty where it is not known."""
    overall: float
    """Mean over kinds."""
    micro: float
    """Mean over questions."""
    by_group: dict[str, float]
    kinds: tuple[KindResult, ...]
    n: int
    n_unscored: int
    seconds: float | None
    """None where some answers are from an earlier run."""
    predictions: str
    """Name of the predictions file in the result's folder."""
    vistune: str = __version__


async def evaluate(
    model: ChatModel, benchmark: Benchmark, folder: Path, *, model_name: str, checkpoint: str, arithmetic: str = "",
    blind: bool = False, limit: int | None = None, concurrency: int = 16, progress: Callable[[int, int], None] | None = None,
) -> tuple[BenchmarkResult, list[Graded]]:  # fmt: skip
    """Asks a benchmark's questions and writes `NAME.jsonl` (predictions) and `NAME.json` (the result) into `folder`.

    Args:
        checkpoint: the model's digest; answers of another checkpoint in the folder, or of another `arithmetic`, are refused.
        blind: shows grey pictures instead of the benchmark's.
        limit: only the first so many questions; such a result has names of its own.

    Raises what `runner.predict` and `runner.grade` raise.
    """
    name = ".".join([benchmark.name, *(["blind"] if blind else []), *([f"first-{limit}"] if limit else [])])
    predictions = folder / f"{name}.jsonl"
    resumed, started = predictions.exists(), time.perf_counter()
    found = await predict(
        BlindChatModel(model) if blind else model,
        benchmark,
        predictions,
        model_name=" ".join(filter(None, [model_name, checkpoint, arithmetic, "blind" if blind else ""])),
        concurrency=concurrency,
        limit=limit,
        progress=progress,
    )
    seconds = None if resumed else round(time.perf_counter() - started, 2)
    report, graded = grade(benchmark, found)
    result = BenchmarkResult(
        benchmark=benchmark.name,
        version=benchmark.version,
        scorer=SCORER_VERSION,
        model=model_name,
        checkpoint=checkpoint,
        blind=blind,
        questions=questions_digest([item.question for item in graded]),
        params=benchmark.params,
        arithmetic=arithmetic,
        overall=report.overall,
        micro=report.micro,
        by_group=report.by_group,
        kinds=report.kinds,
        n=report.n,
        n_unscored=report.n_unscored,
        seconds=seconds,
        predictions=predictions.name,
    )
    atomic_write(folder / f"{name}.json", (json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n").encode())
    return result, graded


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
    """A row per group, a column per kind; what was not asked stays empty."""
    from rich import box
    from rich.table import Table

    values = {(kind.group, kind.kind): kind.value for kind in result.kinds if kind.n}
    kinds = sorted({kind.kind for kind in result.kinds})
    title = f"{result.benchmark}{' (blind)' if result.blind else ''}: exact match of {result.model}"
    caption = f"{result.n} questions, {result.n_unscored} of them unscored; overall is the mean over kinds"
    drawn = Table(title=title, caption=caption, box=box.SIMPLE, pad_edge=False)
    drawn.add_column("group", overflow="fold")
    for heading in (*kinds, "overall", "n"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for group, overall in {"": result.overall, **result.by_group}.items():
        count = sum(kind.n for kind in result.kinds if kind.group == group)
        figures = [values.get((group, kind)) for kind in kinds]
        cells = ["" if figure is None else f"{figure:.3f}" for figure in (*figures, overall)]
        drawn.add_row(group or "all", *cells, str(count))
    return drawn


def side_by_side_markdown(rows: tuple[SideBySide, ...], *, tuned_name: str) -> str:
    """The answers of both models under each prompt, for a person to read."""
    title = "# Text-only prompts: base and tuned side by side"
    parts = [title, f"Tuned: {tuned_name}; base: the language model that it was tuned from. Greedy answers, verbatim."]
    for number, row in enumerate(rows, start=1):
        parts += [f"## {number}. {row.prompt}", f"**Base**\n\n{_quoted(row.base)}", f"**Tuned**\n\n{_quoted(row.tuned)}"]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines() or ["(nothing)"])
