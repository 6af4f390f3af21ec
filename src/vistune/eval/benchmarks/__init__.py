"""The benchmarks by name. A new one is a file in this folder and a line in this table."""

from __future__ import annotations

from vistune.errors import UnknownName
from vistune.eval.benchmark import Benchmark
from vistune.eval.benchmarks import (
    ai2d,
    benchlmm,
    chartqa,
    coco_captions,
    coloninst,
    docvqa,
    embspatial,
    gqa,
    llava_bench,
    mm_vet,
    mmbench,
    mme,
    mmmu_data,
    mmr,
    mvbench,
    pope,
    qbench,
    scanqa,
    scienceqa_data,
    scienceqa_teacher,
    seed_bench,
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
    "mmbench": mmbench.BENCHMARK,
    "embspatial": embspatial.BENCHMARK,
    "coloninst": coloninst.BENCHMARK,
    "mmr": mmr.BENCHMARK,
    "mmmu": mmmu_data.BENCHMARK,
    "seed-bench": seed_bench.BENCHMARK,
    "ai2d": ai2d.BENCHMARK,
    "qbench": qbench.BENCHMARK,
    "mmbench-matched": mmbench.MATCHED,
}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark called `name`. Raises UnknownName, which lists the right ones."""
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise UnknownName("benchmark", name, known=BENCHMARKS) from None
