"""Measures the planner and the sampler on a million row lengths, and writes benchmarks/results/planner.json.

    python benchmarks/planner.py [--rows 1000000] [--out FILE]

The lengths are drawn from the mixture that LLaVA-1.5 was finetuned on (twelve sub-sets as lognormal distributions, 576 tokens a picture, at
most 2048). A plan deals the rows of a step to ranks and forwards. Of each way to share a run the table says:

    fill          tokens in a forward as a share of its budget
    tokens, squares, images   p99 of the ranks' load divided by its mean, and the maximum
    waiting       time of the slowest rank in each forward, summed, divided by the mean: what a step takes longer than if all were equal
    dealt_in_turn the same p99 of tokens and waiting if rows went to ranks in turn, as a sampler that knows no lengths deals them
    rows_per_s    rows planned in a second of one core

Ranks hold whole rows and at most one picture more or less than others, so at 16 rows a rank pictures cannot be more even than 1/16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistune.data.planner import Forwards, RowSize, plan_step
from vistune.data.sampler import Sampler

RESULT = Path(__file__).resolve().parent / "results" / "planner.json"

# Thousands of rows, mean words in tokens, sigma, pictures: llava_v1_5_mix665k. Means are within about 20 %.
MIXTURE = {
    "conversation": (58, 380, 0.35, 1),
    "detail": (23, 190, 0.25, 1),
    "complex reasoning": (77, 220, 0.25, 1),
    "ShareGPT": (40, 1300, 0.70, 0),
    "VQAv2": (83, 150, 0.25, 1),
    "GQA": (72, 330, 0.45, 1),
    "OCR-VQA": (80, 170, 0.20, 1),
    "A-OKVQA": (66, 110, 0.20, 1),
    "TextCaps": (22, 140, 0.30, 1),
    "RefCOCO": (48, 290, 0.50, 1),
    "Visual Genome": (86, 390, 0.30, 1),
    "OK-VQA": (9, 65, 0.15, 1),
}
IMAGE_TOKENS, LONGEST = 576, 2048

# Ranks, rows of a rank in a step, tokens of a forward.
SHARES = [(8, 16, 16384), (8, 64, 16384), (64, 8, 8192), (64, 16, 16384), (1000, 8, 8192), (1000, 16, 16384), (1000, 16, 8192)]


def draw(rows: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and pictures of rows of the mixture."""
    generator = np.random.default_rng(seed)
    counts, means, sigmas, pictures = (np.array(column, float) for column in zip(*MIXTURE.values(), strict=True))
    subset = generator.choice(len(counts), rows, p=counts / counts.sum())
    mean, sigma, images = means[subset], sigmas[subset], pictures[subset].astype(np.int64)
    text = np.exp(generator.normal(np.log(mean) - sigma**2 / 2, sigma)).astype(np.int64)
    return np.minimum(LONGEST, np.maximum(1, text) + IMAGE_TOKENS * images), images


def loads(plan: tuple[Forwards, ...], work: NDArray[np.int64]) -> NDArray[np.int64]:
    """Work by rank and forward, [ranks, forwards]."""
    return np.array([[work[list(forward)].sum() for forward in rank] for rank in plan])


def unevenness(by_rank: NDArray[np.int64]) -> tuple[float, float]:
    """(p99, maximum) of the ranks' load, divided by its mean."""
    return float(np.percentile(by_rank, 99) / by_rank.mean()), float(by_rank.max() / by_rank.mean())


def measure(tokens: NDArray[np.int64], images: NDArray[np.int64], ranks: int, rows_per_rank: int, budget: int) -> dict[str, Any]:
    batch = ranks * rows_per_rank
    seconds = 0.0
    found: dict[str, list[float]] = {}
    for start in range(0, len(tokens) - batch + 1, batch):
        step = slice(start, start + batch)
        lengths, pictures = tokens[step], images[step]
        sizes = [RowSize(*size) for size in zip(lengths.tolist(), pictures.tolist(), strict=True)]
        began = time.process_time()
        plan = plan_step(sizes, ranks, budget)
        seconds += time.process_time() - began
        by_forward = loads(plan, lengths)
        in_turn = np.array([lengths[rank::ranks].sum() for rank in range(ranks)])
        row = {
            "forwards": float(len(plan[0])),
            "fill": float(lengths.sum() / (by_forward.size * budget)),
            "waiting": float(by_forward.max(0).sum() / by_forward.sum(1).mean()),
            "dealt_in_turn_p99": unevenness(in_turn)[0],
            "dealt_in_turn_waiting": float(in_turn.max() / in_turn.mean()),
        }
        for name, work in (("tokens", lengths), ("squares", lengths**2), ("images", pictures)):
            row[f"{name}_p99"], row[f"{name}_max"] = unevenness(loads(plan, work).sum(1))
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    steps = len(found["fill"])
    figures = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    share = {"ranks": ranks, "rows_per_rank": rows_per_rank, "budget": budget, "steps": steps}
    return {**share, **figures, "rows_per_s": round(steps * batch / seconds)}


def order_hash(tokens: NDArray[np.int64], images: NDArray[np.int64], ranks: int, *, steps: int, batch: int) -> str:
    """Of the rows that the ranks together train on, in the order of each step."""
    sampler, digest = Sampler(len(tokens), batch, seed=42), hashlib.sha256()
    for step in range(steps):
        rows = sampler.rows(step).rows
        plan = plan_step([RowSize(int(tokens[row]), int(images[row])) for row in rows], ranks, 16384)
        together = sorted(place for rank in plan for forward in rank for place in forward)
        digest.update(json.dumps([rows[place] for place in together]).encode())
    return digest.hexdigest()[:16]


def resume_seconds(size: int, step: int) -> float:
    """What the rows of one step cost a sampler that has drawn nothing before: the best of five."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        Sampler(size, 8000, seed=1).rows(step)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    tokens, images = draw(arguments.rows)
    plans = []
    for share in SHARES:
        plans.append(measure(tokens, images, *share))
        print(json.dumps(plans[-1]), file=sys.stderr)
    percentiles = [5, 25, 50, 75, 95, 99]
    result = {
        "rows": arguments.rows,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokens": {"mean": round(float(tokens.mean()), 1)} | {f"p{p}": int(np.percentile(tokens, p)) for p in percentiles},
        "text_only": round(float((images == 0).mean()), 4),
        "plans": plans,
        "order_hash_by_ranks": {str(ranks): order_hash(tokens, images, ranks, steps=4, batch=8000) for ranks in (1, 2, 8, 1000)},
        "seconds_to_the_rows_of_a_step": {
            "step 0 of 1,000,000 rows": resume_seconds(10**6, 0),
            "step 10**5 of 1,000,000,000 rows": resume_seconds(10**9, 10**5),
            "step 10**9 of 1,000,000,000 rows": resume_seconds(10**9, 10**9),
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
