"""`GET /metrics`: what Prometheus asks a server for, in its text format.

    RequestLog of every request ─observe─► counters and histograms ─┐
    gate, models with `counters()` ─read when asked─────────────────┴─► text

Labels hold routes, statuses, error codes and the names of models that are served, never what a client wrote: a name that is not served, a
path that is no route and a method are of no label, so that nobody can make the server remember without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vistune.chat_model import ChatModel
from vistune.serve.edge import RequestLog
from vistune.serve.gate import Gate
from vistune.serve.health import all_alive

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300, 600)
_FIRST_TOKEN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300, 600)


class EngineCounters(Protocol):
    """Totals since an engine was made, and what it holds at the moment. `kv_bytes_limit` is None where there is no limit."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def kv_bytes_used(self) -> int: ...
    @property
    def kv_bytes_limit(self) -> int | None: ...
    @property
    def kept_prefixes(self) -> int: ...
    @property
    def images_encoded(self) -> int: ...


@runtime_checkable
class Counted(Protocol):
    """A model that counts what it does. Those that do not, such as other servers', are simply not shown."""

    def counters(self) -> EngineCounters: ...


_TOTALS: Mapping[str, tuple[str, Callable[[EngineCounters], int]]] = {
    "prompt_tokens": ("Prompt tokens of requests that the engine began, pictures included.", lambda engine: engine.prompt_tokens),
    "cached_tokens": ("Prompt tokens that had been read before and were not read again.", lambda engine: engine.cached_tokens),
    "completion_tokens": ("Tokens written, those of replies that were broken off included.", lambda engine: engine.completion_tokens),
    "steps": ("Forward passes.", lambda engine: engine.steps),
    "images_encoded": ("Pictures that went through the vision tower.", lambda engine: engine.images_encoded),
}
_MOMENTS: Mapping[str, tuple[str, Callable[[EngineCounters], float | None]]] = {
    "running": ("Sequences in the engine's batch.", lambda engine: engine.running),
    "waiting": ("Sequences that wait for a place in it.", lambda engine: engine.waiting),
    "kv_bytes": ("Bytes of keys and values in use, kept prefixes included.", lambda engine: engine.kv_bytes_used),
    "kv_limit_bytes": ("Bytes that they may take.", lambda engine: engine.kv_bytes_limit),
    "kept_prefixes": ("Conversations whose keys and values are kept.", lambda engine: engine.kept_prefixes),
    "prefix_hit_ratio": (
        "Share of all prompt tokens that had been read before.",
        lambda engine: engine.cached_tokens / engine.prompt_tokens if engine.prompt_tokens else 0.0,
    ),
}


class Metrics:
    """A registry of its own, so that two servers in one process do not add up."""

    def __init__(self, models: Mapping[str, ChatModel], gate: Gate):
        disable_created_metrics()  # a second series for each, of when it began, which few read
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests that ended.", "route", "status", "model")
        self._errors = self._counter("errors", "Requests that ended in an error, those of a stream that had begun included.", "code")
        self._full = self._counter("queue_full", "Requests that got 429 because there was no place or no memory for them.")
        self._seconds = self._histogram("request_seconds", "Time from headers to the last byte.", _REQUEST_SECONDS, "route")
        self._first_token = self._histogram(
            "first_token_seconds", "Time from headers to the reply's first text, the wait included.", _FIRST_TOKEN_SECONDS, "model"
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of finished requests, pictures included.", "model")
        self._cached = self._counter("cached_tokens", "Those of them that had been read before.", "model")
        self._completion = self._counter("completion_tokens", "Tokens written in finished requests.", "model")
        self._registry.register(_Now(models, gate))
        ProcessCollector(registry=self._registry)

    def observe(self, entry: RequestLog) -> None:
        """Counts a request that has ended."""
        # The page's files are many, and all alike to whoever watches.
        route = "/web" if entry.route.startswith("/web/") else entry.route
        self._requests.labels(route, str(entry.status), entry.model).inc()
        self._seconds.labels(route).observe(entry.seconds)
        if entry.code or entry.error:
            self._errors.labels(entry.code or "internal_error").inc()
        if entry.code == "queue_full":
            self._full.inc()
        if entry.first_token_seconds:
            self._first_token.labels(entry.model).observe(entry.first_token_seconds)
        if entry.prompt_tokens or entry.completion_tokens:
            self._prompt.labels(entry.model).inc(entry.prompt_tokens)
            self._cached.labels(entry.model).inc(entry.cached_tokens)
            self._completion.labels(entry.model).inc(entry.completion_tokens)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"vistune_{name}", help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"vistune_{name}", help, labels, buckets=buckets, registry=self._registry)


class _Now(Collector):
    """What is read at the moment of asking."""

    def __init__(self, models: Mapping[str, ChatModel], gate: Gate):
        self._models, self._gate = models, gate

    def collect(self) -> Iterator[Metric]:
        gate = self._gate
        yield GaugeMetricFamily("vistune_up", "1 while every model can answer.", value=float(all_alive(self._models.values())))
        yield GaugeMetricFamily("vistune_admitted", "Requests in the house, running or waiting.", value=gate.num_admitted)
        yield GaugeMetricFamily("vistune_running", "Choices that are being written.", value=gate.num_running)
        yield GaugeMetricFamily("vistune_waiting", "Choices that wait for their turn.", value=gate.num_waiting)
        yield GaugeMetricFamily("vistune_queue_limit", "Requests that may wait; more get 429.", value=gate.max_queue)
        yield GaugeMetricFamily("vistune_body_bytes", "Bytes of the bodies of requests in the house.", value=gate.num_bytes)
        yield GaugeMetricFamily("vistune_body_limit_bytes", "Bytes that they may take; more get 429.", value=gate.max_bytes)
        engines = list(_engines(self._models))
        for name, (help, total) in _TOTALS.items():
            counter = CounterMetricFamily(f"vistune_engine_{name}", help, labels=["model"])
            for model, counters in engines:
                counter.add_metric([model], total(counters))
            yield counter
        for name, (help, moment) in _MOMENTS.items():
            gauge = GaugeMetricFamily(f"vistune_engine_{name}", help, labels=["model"])
            for model, counters in engines:
                if (value := moment(counters)) is not None:
                    gauge.add_metric([model], value)
            yield gauge


def _engines(models: Mapping[str, ChatModel]) -> Iterable[tuple[str, EngineCounters]]:
    """Each model that counts, once, under the first of its names."""
    seen: list[object] = []
    for name, model in models.items():
        if isinstance(model, Counted) and not any(model is other for other in seen):
            seen.append(model)
            yield name, model.counters()
