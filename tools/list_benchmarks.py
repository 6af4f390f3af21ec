"""Writes docs/benchmarks.md, the page about every benchmark, from what the benchmarks say of themselves.

    python tools/list_benchmarks.py

A test compares the page with the records, so that neither is changed without the other.
"""

from __future__ import annotations

from pathlib import Path

from vistune.eval.benchmark import Benchmark
from vistune.eval.benchmarks import BENCHMARKS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
HEAD = """# The benchmarks

Written by `tools/list_benchmarks.py`; how to run them is in [evaluation](evaluation.md). `ROOT` is what `--data` gets. The first protocol
is the default. A benchmark marked *judge* needs `--judge`."""


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD, *map(section, BENCHMARKS.values())]) + "\n"


def section(benchmark: Benchmark) -> str:
    """What there is to know of one benchmark before it is run."""
    about, judged = benchmark.about, " · *judge*" if benchmark.judge else ""
    paper = f" · [paper]({about.paper})" if about.paper.startswith("https://") else ""
    files = [f"ROOT/{benchmark.name}/{line}" for line in about.layout.splitlines()]
    parts = [f"## {benchmark.name}{judged}", f"{about.title}{paper}"]
    parts.append(f"- **Metric**: {about.metric}\n- **Data**: {about.source}\n- **Licence**: {about.licence}{sizes(benchmark)}")
    if files:
        parts.append("\n".join(["```", *files, "```"]))
    protocols = [f"| `{protocol.id}` | {protocol.about} |" for protocol in benchmark.protocols]
    parts.append("\n".join(["| Protocol | How it asks and scores |", "| --- | --- |", *protocols]))
    return "\n\n".join(parts)


def sizes(benchmark: Benchmark) -> str:
    """How many questions there officially are; nothing where that is not certain."""
    counts = {protocol.id: benchmark.sizes[protocol.id] for protocol in benchmark.protocols if protocol.id in benchmark.sizes}
    if not counts:
        return ""
    same = len(set(counts.values())) == 1 and len(counts) == len(benchmark.protocols)
    said = f"{next(iter(counts.values())):,}" if same else ", ".join(f"{count:,} (`{id}`)" for id, count in counts.items())
    return f"\n- **Questions**: {said}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
