"""Judges the 500 hostile images in child processes with 512 MB of memory and prints what became of them, family by family.

    python benchmarks/hostile_images.py
    python benchmarks/hostile_images.py --pool

Each family is judged twice, in two processes; the verdicts must be the same. The last row is not hostile: pictures of 24 MP, the largest
that are accepted, show the most memory and time that one image can cost. Linux only (peaks are read from /proc).

With `--pool` they are judged by a `DecodePool`, as the server does it: once one after the other, once four at a time, and both verdicts,
which hold a digest of the pixels, must be those of `media.open_image` in this process. Then come the times of three ordinary pictures in
the pool and in this process, one in turn with the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from hostile_images import FAMILIES, Case, Verdict, judge, judge_in_child, make  # noqa: E402
from image_files import encode, photo  # noqa: E402
from vistune.decoding import DecodePool  # noqa: E402
from vistune.media import open_image  # noqa: E402

LARGEST = "largest allowed"
RESULTS = HERE / "results"
AT_ONCE = 4
REPEATS = {"224×224 JPEG": 100, "2 MP JPEG": 40, "24 MP PNG": 7}


def run_family(family: str) -> dict[str, object]:
    """The figures of one family. Exits if a child dies: there is no figure for that."""
    runs: list[list[Verdict]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            try:
                runs.append(judge_in_child(family, Path(folder)))
            except subprocess.CalledProcessError as error:
                sys.exit(f"{family}: the child died with status {error.returncode}\n{error.stderr}")
    first, second = runs
    return figures(family, first, sum((a.outcome, a.detail) != (b.outcome, b.detail) for a, b in zip(first, second, strict=True)))


def run_family_in_pool(family: str, pool: DecodePool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as executor:
        cases = make(family, Path(folder))
        here = [judge(case) for case in cases]
        alone = [judge_timed(case, pool) for case in cases]
        together = list(executor.map(lambda case: judge(case, pool.open_image), cases))
    differ = sum(not a == replace(b, seconds=0.0, megabytes=0.0) == c for a, b, c in zip(here, alone, together, strict=True))
    return figures(family, alone, differ)


def judge_timed(case: Case, pool: DecodePool) -> Verdict:
    """The peak is that of the decoding process alone and whole, so that it can be held against its limit."""
    pool.peak_bytes = 0
    start = time.perf_counter()
    verdict = judge(case, pool.open_image)
    return replace(verdict, seconds=time.perf_counter() - start, megabytes=pool.peak_bytes / 2**20)


def figures(family: str, first: list[Verdict], differ: int) -> dict[str, object]:
    outcomes = [verdict.outcome for verdict in first]
    return {
        "family": family,
        "made": len(first),
        "accepted": outcomes.count("accepted"),
        "refused": outcomes.count("refused"),
        "crashed": outcomes.count("crashed"),
        "wrong": sum(bool(verdict.wrong) for verdict in first),
        "differ_between_runs": differ,
        "peak_mb": round(max(verdict.megabytes for verdict in first), 1),
        "seconds_median": round(statistics.median(verdict.seconds for verdict in first), 5),
        "seconds_max": round(max(verdict.seconds for verdict in first), 4),
    }


def added_times(pool: DecodePool) -> list[dict[str, object]]:
    """Milliseconds of ordinary pictures here and in the pool, in turn; and how many times a second one decoder opens the small one."""
    large = photo(1500, 1000).resize((6000, 4000), Image.Resampling.BICUBIC)
    pictures = {
        "224×224 JPEG": encode(photo(224, 224), "JPEG", quality=90),
        "2 MP JPEG": encode(photo(1600, 1250), "JPEG", quality=90),
        "24 MP PNG": encode(large.quantize(64).convert("RGB"), "PNG", compress_level=1),
    }
    rows: list[dict[str, object]] = []
    for name, data in pictures.items():
        times: dict[Callable[..., Any], list[float]] = {open_image: [], pool.open_image: []}
        for _ in range(REPEATS[name]):
            for opener, taken in times.items():
                start = time.perf_counter()
                opener(data)
                taken.append(1000 * (time.perf_counter() - start))
        here, there = (statistics.median(taken) for taken in times.values())
        best_here, best_there = (min(taken) for taken in times.values())
        rows.append(
            {"picture": name, "bytes": len(data), "here_ms": round(here, 2), "pool_ms": round(there, 2), "added_ms": round(there - here, 2)}
            | {"best_here_ms": round(best_here, 2), "best_pool_ms": round(best_there, 2)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", action="store_true", help="judge in a DecodePool, as the server does")
    times: list[dict[str, object]] = []
    in_pool = parser.parse_args().pool
    if in_pool:
        with DecodePool() as pool:
            rows = [run_family_in_pool(family, pool) for family in (*FAMILIES, LARGEST)]
            times = added_times(pool)
            print(f"in force: {pool.protections!r}")
    else:
        rows = [run_family(family) for family in (*FAMILIES, LARGEST)]
    hostile = rows[:-1]
    total = {"family": "all 500"} | {key: sum(row[key] for row in hostile) for key in list(rows[0])[1:7]}  # type: ignore[misc]
    total |= {"peak_mb": max(row["peak_mb"] for row in hostile), "seconds_max": max(row["seconds_max"] for row in hostile)}  # type: ignore[type-var]
    heads = ("made", "accepted", "refused", "crashed", "wrong", "differ_between_runs", "peak_mb", "seconds_median", "seconds_max")
    print(f"{'family':27}" + "".join(f"{head.replace('_between_runs', ''):>15}" for head in heads))
    for row in (*hostile, total, rows[-1]):
        print(f"{row['family']:27}" + "".join(f"{row.get(head, ''):>15}" for head in heads))
    for row in times:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    RESULTS.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "pillow": PIL.__version__, "machine": platform.machine()}
    result = {"environment": machine, "families": rows, "total": total} | ({"times": times} if in_pool else {})
    (RESULTS / f"hostile_images{'_pool' * in_pool}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
