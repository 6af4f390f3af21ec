"""Every benchmark in the table says of itself what a user must know, and the page about them says the same."""

from __future__ import annotations

import pytest
from tools.list_benchmarks import PAGE, page

from vistune.errors import DataError, UnknownName, UsageError
from vistune.eval.benchmark import Benchmark
from vistune.eval.benchmarks import BENCHMARKS, benchmark_named

ALL = pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)


@ALL
def test_a_benchmark_is_found_under_its_own_name_and_says_what_it_is(benchmark: Benchmark):
    assert benchmark_named(benchmark.name) is benchmark
    about = benchmark.about
    assert all((about.title, about.source, about.licence, about.metric, about.paper, benchmark.version, benchmark.scorer))
    assert bool(about.layout) == benchmark.needs_data


@ALL
def test_protocols_have_names_of_their_own_and_sizes_are_of_protocols(benchmark: Benchmark):
    ids = [protocol.id for protocol in benchmark.protocols]
    assert ids
    assert len(set(ids)) == len(ids)
    assert set(benchmark.sizes) <= set(ids)
    assert benchmark.protocol().id == ids[0]
    with pytest.raises(UnknownName):
        benchmark.protocol("no such protocol")


@ALL
def test_a_benchmark_without_its_files_says_which_and_where_from(benchmark: Benchmark, tmp_path):
    if not benchmark.needs_data:
        return
    with pytest.raises(UsageError, match="--data ROOT"):
        benchmark.questions()
    (tmp_path / benchmark.name).mkdir()
    for protocol in benchmark.protocols:
        with pytest.raises(DataError):
            benchmark.questions(tmp_path, protocol.id)


def test_the_page_about_the_benchmarks_is_what_they_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/list_benchmarks.py"
