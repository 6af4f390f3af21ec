"""Whether the time of a 401 tells how much of a key was right (it must not; for information, the constant-time comparison is the gate).

    python -m tests.faults.key_timing --keys 20000

Wrong keys that share 0 to n letters with the right one are tried in random order, in this process and without HTTP, which would drown any
difference. Prints the median nanoseconds for each length, and the slope against the length with its 95 % interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from vistune.serve.failures import ApiError
from vistune.serve.keys import ApiKeys

KEY = "sk-canary-0123456789abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=20_000)
    count: int = parser.parse_args().keys
    keys, generator = ApiKeys([KEY]), random.Random(7)
    lengths = range(0, len(KEY), 5)
    seconds: dict[int, list[int]] = {length: [] for length in lengths}
    order = [length for length in lengths for _ in range(count // len(lengths))]
    generator.shuffle(order)
    for length in order:
        wrong = KEY[:length] + "".join(generator.choices("ABCDEFGHIJ", k=len(KEY) - length))
        headers = [(b"authorization", f"Bearer {wrong}".encode())]
        started = time.perf_counter_ns()
        try:
            keys.check(headers)
        except ApiError:
            seconds[length].append(time.perf_counter_ns() - started)
    medians = {length: statistics.median(values) for length, values in seconds.items()}
    slope, error = _slope(list(medians.items()))
    print("median ns by letters that are right:", {length: round(value) for length, value in medians.items()})
    print(f"slope {slope:+.2f} ± {1.96 * error:.2f} ns a letter")


def _slope(points: list[tuple[int, float]]) -> tuple[float, float]:
    """The least-squares slope and its standard error."""
    x, y = zip(*points, strict=True)
    slope, intercept = statistics.linear_regression(x, y)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in points) / (len(points) - 2)
    return slope, (residual / sum((a - statistics.mean(x)) ** 2 for a in x)) ** 0.5


if __name__ == "__main__":
    main()
