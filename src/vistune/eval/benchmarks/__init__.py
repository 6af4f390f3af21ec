"""The benchmarks by name. A new one is a file in this folder and a line in this table."""

from __future__ import annotations

from vistune.errors import UnknownName
from vistune.eval.benchmark import Benchmark
from vistune.eval.benchmarks import (
    benchlmm,
    chartqa,
    coco_captions,
    docvqa,
    gqa,
    llava_bench,
    mm_vet,
    mme,
    mvbench,
    pope,
    scanqa,
    scienceqa_data,
    scienceqa_teacher,
    textvqa,
    vizwiz,
    vqa,
)
from vistune.eval.benchmarks.easy_vqa import EASY_VQA
from vistune.eval.benchmarks.scenes_v1 import SCENES_V1

BENCHMARKS: dict[str, Benchmark] = {
    "easy-vqa": EASY_VQA,
    "scenes-v1": SCENES_V1,
    "textvqa": textvqa.BENCHMARK,
    "vqav2": vqa.BENCHMARK,
    "gqa": gqa.BENCHMARK,
    "vizwiz": vizwiz.BENCHMARK,
    "chartqa": chartqa.BENCHMARK,
    "docvqa": docvqa.BENCHMARK,
    "llava-bench-coco": llava_bench.COCO,
    "llava-bench-wild": llava_bench.WILD,
    "benchlmm": benchlmm.BENCHMARK,
    "mm-vet": mm_vet.BENCHMARK,
    "mvbench": mvbench.BENCHMARK,
    "scanqa": scanqa.BENCHMARK,
    "coco-captions": coco_captions.BENCHMARK,
    "pope": pope.BENCHMARK,
    "mme": mme.BENCHMARK,
    "scienceqa": scienceqa_data.BENCHMARK,
    "scienceqa-complement": scienceqa_teacher.COMPLEMENT,
    "scienceqa-judge": scienceqa_teacher.JUDGE,
}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark called `name`. Raises UnknownName, which lists the right ones."""
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise UnknownName("benchmark", name, known=BENCHMARKS) from None
