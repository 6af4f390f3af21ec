"""A benchmark of a few questions, for tests of whatever runs, judges or compares benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vistune.eval.benchmark import About, Benchmark, Protocol, by_kind
from vistune.eval.scoring import exact_match
from vistune.types import Question

ABOUT = About(title="a few questions", source="this test", licence="none", layout="", metric="exact match", paper="")


def benchmark_of(name: str, questions: Sequence[Question], **changes: Any) -> Benchmark:
    """Exact match, mean over kinds, where `changes` say nothing else."""
    made = Benchmark(
        name,
        "1",
        about=ABOUT,
        protocols=(Protocol("exact", "as it is"),),
        load=lambda folder, protocol: questions,
        score=exact_match,
        summarise=by_kind,
        needs_data=False,
    )
    return dataclasses.replace(made, **changes)
