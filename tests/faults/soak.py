"""Mixed traffic, good and hostile, for as long as it is told, and whether what the server holds grows meanwhile.

    python -m tests.faults.soak --minutes 30

Prints a line a minute, and at the end the slope of memory over the second half, by least squares: during
the first the bounded caches fill, ours and those of libraries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tests.faults.serve_traffic import (
    JSON,
    ask,
    exchange,
    good_bodies,
    json_seeds,
    leave,
    mutated,
    mutated_head,
    oversized,
    raw_requests,
    shown,
)
from tests.faults.tiny_server import Options, TinyServer, Weight, assert_clean, tiny_server
from tests.serve.live import png

CLIENTS = 4
OPTIONS = Options(kv_bytes=4 << 20, max_queue=32)
"""Little room for keys and values, so that the cache is full within the warm-up and has to let go all the time."""


@dataclass(frozen=True)
class Sample:
    minutes: float
    memory: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Soaked:
    """What became of it. `slope` in MiB an hour."""

    statuses: dict[int, int]
    samples: list[Sample]
    slope: float
    before: Weight
    after: Weight

    def __str__(self) -> str:
        first, last = self.samples[0], self.samples[-1]
        return (
            f"{sum(self.statuses.values())} requests in {last.minutes:.1f} minutes, {dict(sorted(self.statuses.items()))}; memory "
            f"{first.memory:.1f} → {last.memory:.1f} MiB, slope {self.slope:+.1f} MiB an hour; descriptors {first.descriptors} → "
            f"{last.descriptors}, threads {first.threads} → {last.threads}; with the heap trimmed {self.before} → {self.after}"
        )


def soak(minutes: float, server: TinyServer, *, seed: int = 19) -> Soaked:
    """Keeps a server under `CLIENTS` clients, which stop at the first thing that is wrong."""
    statuses: Counter[int] = Counter()
    samples: list[Sample] = []
    before: Weight | None = None
    began = time.monotonic()

    def sample() -> Sample:
        samples.append(Sample((time.monotonic() - began) / 60, server.memory(), server.descriptors(), server.threads()))
        return samples[-1]

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(_client, server, random.Random(seed + number), began + 60 * minutes, statuses) for number in range(CLIENTS)]
        while not wait(clients, timeout=min(60, 2 * minutes), return_when=FIRST_EXCEPTION).done:
            print(f"{sample()} {dict(statuses)}", flush=True)
            if before is None and samples[-1].minutes > minutes / 2:
                before = server.weighed()
    for client in clients:
        client.result()
    server.settled()
    sample()
    assert server.alive()
    assert_clean(server)
    warm = [sample for sample in samples if sample.minutes > minutes / 2]
    slope = 60 * _slope([(sample.minutes, sample.memory) for sample in warm])
    after = server.weighed()
    return Soaked(dict(statuses), warm, slope, before or after, after)


def _slope(points: list[tuple[float, float]]) -> float:
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope if len(points) > 2 else 0.0


def _client(server: TinyServer, generator: random.Random, until: float, statuses: Counter[int]) -> None:
    bodies, seeds, raws = good_bodies(), list(json_seeds().values()), [raw for _, raw in raw_requests()]
    large = list(oversized().values())
    for number in itertools.count():
        if time.monotonic() > until:
            return
        match generator.randrange(10):
            case 0 | 1:
                status = _post(server, generator.choice(bodies))
            case 2:  # another picture each time, so that the cache turns over
                colour = f"#{generator.randrange(1 << 24):06x}"
                question = shown(f"What is {number}?", png(colour, (20, 30)))
                status = _post(server, json.dumps(ask(question, max_tokens=24, temperature=1.0)).encode())
            case 3:
                leave(server.port, ask(f"Tell me {number}", max_tokens=300, stream=True), chunks=generator.randrange(8))
                status = 0
            case 4:
                status = _post(server, generator.choice(seeds))
            case 5 | 6:
                status = _post(server, mutated(generator, bodies))
            case 7:
                status = exchange(server.port, mutated_head(generator, generator.choice(bodies))).status
            case 8:
                status = exchange(server.port, generator.choice(raws)).status
            case _:
                status = _post(server, json.dumps(generator.choice(large)).encode()) if number % 50 == 9 else server.get("/").status_code
        statuses[status] += 1
        assert status < 500, number


def _post(server: TinyServer, body: bytes) -> int:
    options: dict[str, Any] = {"content": body, "headers": JSON, "timeout": 300}
    return server.post(**options).status_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=19)
    arguments = parser.parse_args()
    with tiny_server(OPTIONS) as server:
        print(soak(arguments.minutes, server, seed=arguments.seed))


if __name__ == "__main__":
    main()
