"""Judges the 500 hostile images in child processes with 512 MB of memory and prints what became of them, family by family.

    python benchmarks/hostile_images.py

Each family is judged twice, in two processes; the verdicts must be the same. The last row is not hostile: pictures of 24 MP, the largest
that are accepted, show the most memory and time that one image can cost. Linux only (peaks are read from /proc).
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import PIL

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from hostile_images import FAMILIES, Verdict, judge_in_child  # noqa: E402

LARGEST = "largest allowed"
RESULT = HERE / "results" / "hostile_images.json"


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
    outcomes = [verdict.outcome for verdict in first]
    return {
        "family": family,
        "made": len(first),
        "accepted": outcomes.count("accepted"),
        "refused": outcomes.count("refused"),
        "crashed": outcomes.count("crashed"),
        "wrong": sum(bool(verdict.wrong) for verdict in first),
        "differ_between_runs": sum((a.outcome, a.detail) != (b.outcome, b.detail) for a, b in zip(first, second, strict=True)),
        "peak_mb": round(max(verdict.megabytes for verdict in first), 1),
        "seconds_median": round(statistics.median(verdict.seconds for verdict in first), 5),
        "seconds_max": round(max(verdict.seconds for verdict in first), 4),
    }


def main() -> None:
    rows = [run_family(family) for family in (*FAMILIES, LARGEST)]
    hostile = rows[:-1]
    total = {"family": "all 500"} | {key: sum(row[key] for row in hostile) for key in list(rows[0])[1:7]}  # type: ignore[misc]
    total |= {"peak_mb": max(row["peak_mb"] for row in hostile), "seconds_max": max(row["seconds_max"] for row in hostile)}  # type: ignore[type-var]
    heads = ("made", "accepted", "refused", "crashed", "wrong", "differ_between_runs", "peak_mb", "seconds_median", "seconds_max")
    print(f"{'family':27}" + "".join(f"{head.replace('_between_runs', ''):>15}" for head in heads))
    for row in (*hostile, total, rows[-1]):
        print(f"{row['family']:27}" + "".join(f"{row.get(head, ''):>15}" for head in heads))
    RESULT.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "pillow": PIL.__version__, "machine": platform.machine()}
    RESULT.write_text(json.dumps({"environment": machine, "families": rows, "total": total}, indent=1) + "\n")


if __name__ == "__main__":
    main()
