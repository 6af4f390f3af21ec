"""How fast this machine is at the two things that training and answering are made of: matrix products and moving memory.

Measured, not looked up: the best of a few short runs. Used by the doctor, and by whoever says what fraction of the attainable was reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ProductType = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Speed:
    """Measured on this machine, now: the best of a few short runs."""

    threads: int
    gflops_fp32: float
    gflops_bf16: float
    memory_gb_per_second: float


def measure_speed(*, size: int = 1024, megabytes: int = 256, repeats: int = 5) -> Speed:
    """Square matrix products of `size` in fp32 and bf16, and copying `megabytes` of memory, on the CPU."""
    import torch

    square = ((size, size, size),)
    return Speed(
        threads=torch.get_num_threads(),
        gflops_fp32=round(product_rate(square, "fp32", repeats=repeats) / 1e9, 1),
        gflops_bf16=round(product_rate(square, "bf16", repeats=repeats) / 1e9, 1),
        memory_gb_per_second=round(copy_rate(megabytes=megabytes, repeats=repeats) / 1e9, 1),
    )


def product_rate(shapes: Sequence[tuple[int, int, int]], number: ProductType, *, device: str = "cpu", repeats: int = 5) -> float:
    """FLOP per second over products [m, k] x [k, n] of all `shapes`, each at its best: long ones count for more, as they do in a model."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[number]
    own = torch.Generator(device).manual_seed(0)  # the caller's random numbers are not disturbed
    seconds = 0.0
    for rows, inner, columns in shapes:
        left, right = (torch.randn(size, generator=own, device=device).to(dtype) for size in ((rows, inner), (columns, inner)))
        target = torch.empty(rows, columns, dtype=dtype, device=device)
        weight = right.t()  # as a linear layer holds its weight
        seconds += best_seconds(lambda left=left, weight=weight, target=target: torch.mm(left, weight, out=target), repeats, device)
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes) / seconds


def copy_rate(*, device: str = "cpu", megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second that memory takes and gives together: a copy reads and writes every byte once."""
    import torch

    source: torch.Tensor = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_seconds(lambda: target.copy_(source), repeats, device)


def best_seconds(work: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """The fastest of `repeats` after one that warms up: what the machine can do when nothing else runs."""
    import torch

    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else (lambda: None)
    work()
    wait()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
    return best
