"""Every Prometheus name of this program (the only prometheus_client import); docs/metrics.md explains each.

Counters come from facts, as they happen; gauges are read from `Gauges` when somebody asks, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.node_events import NodeEvent
from mesh.tallies import Counts, Spreads
from node.facts import CallFact, DownloadFact, ModelFact, NodeFact
from node.types import Memory, ModelReport
from router.facts import RouteFact

# A token may come in 20 ms; a cold start with a long prompt takes minutes.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Gauges(Struct, frozen=True, kw_only=True):
    """What is true now. `nodes` counts by state; `worker_tokens` by model since the daemon started."""

    node: str = ""
    version: str = ""
    coordinator: bool = False
    term: int = 0
    elections: int = 0
    nodes: Mapping[str, int] = {}
    queue_depth: int = 0
    in_flight: int = 0
    open_requests: int = 0
    kept_bytes: int = 0
    memory: Memory = Memory()
    resident_bytes: int = 0
    worker_tokens: Mapping[str, int] = {}
    models: tuple[ModelReport, ...] = ()
    frames_dropped: Mapping[str, int] = {}  # by reason
    connections: Mapping[str, int] = {}  # by app: edge, peer, admin
    links: int = 0
    routes_dropped: int = 0
    events_dropped: int = 0
    log_lines_dropped: int = 0


class Counter(Counts, Collector):
    """Counts, on the page."""

    def __init__(self, name: str, what: str, labels: Sequence[str] = (), *, registry: CollectorRegistry) -> None:
        super().__init__(name, what, labels)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self.what, labels=self.names)
        for values, count in self.items():
            family.add_metric(values, count.value)
        yield family


class Histogram(Spreads, Collector):
    """Spreads, on the page."""

    def __init__(
        self,
        name: str,
        what: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        super().__init__(name, what, labels, bounds=buckets)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.what, labels=self.names)
        for values, spread in self.items():
            family.add_metric(
                values, [("+Inf" if b == inf else str(float(b)), n) for b, n in spread.up_to()], spread.sum
            )
        yield family


class Metrics:
    """The families of one daemon. `gauges` is called at each look; None: only what facts told."""

    def __init__(self, gauges: Callable[[], Gauges] | None = None) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "mlx_mesh_requests", "Requests ended at this edge", ["outcome", "model", "node"], registry=registry
        )
        self._attempts = Counter(
            "mlx_mesh_attempts", "Tries of this edge on a node", ["outcome", "node"], registry=registry
        )
        self._handovers = Counter(
            "mlx_mesh_handovers", "Answers that broke off and went on", ["mode", "model"], registry=registry
        )
        self._lost = Counter("mlx_mesh_streams_lost", "Streams that broke off for good", ["reason"], registry=registry)
        self._unkept = Counter(
            "mlx_mesh_streams_unkept", "Answers too long, or too many, to be kept to their end", registry=registry
        )
        self._ttft = Histogram(
            "mlx_mesh_ttft_seconds", "Accepted to first token", ["model"], buckets=SECONDS, registry=registry
        )
        self._total = Histogram(
            "mlx_mesh_request_seconds", "Accepted to last byte", ["model"], buckets=SECONDS, registry=registry
        )
        self._queue = Histogram("mlx_mesh_queue_seconds", "Accepted to granted", buckets=SECONDS, registry=registry)
        self._tokens = Counter("mlx_mesh_tokens", "Tokens of answers sent", ["kind", "model"], registry=registry)
        self._bytes = Counter("mlx_mesh_bytes", "Bytes through this daemon", ["direction"], registry=registry)
        self._limits = Counter(
            "mlx_mesh_limits", "Connections and requests that met a limit", ["app", "limit"], registry=registry
        )
        self._turned_away = Counter(
            "mlx_mesh_turned_away", "Requests of clients that may not ask", ["reason"], registry=registry
        )
        self._calls = Counter("mlx_mesh_calls", "Calls this node served", ["outcome", "model"], registry=registry)
        self._loads = Histogram(
            "mlx_mesh_load_seconds",
            "Start of a model to ready",
            ["model"],
            buckets=(*SECONDS, 1200.0),
            registry=registry,
        )
        self._events = Counter(
            "mlx_mesh_model_events", "What happened to models of this node", ["kind", "model"], registry=registry
        )
        self._wait = Histogram(
            "mlx_mesh_wait_seconds", "Admitted here to a slot", ["model"], buckets=SECONDS, registry=registry
        )
        self._cold = Counter("mlx_mesh_cold_calls", "Calls that found their model absent", ["model"], registry=registry)
        self._read = Counter(
            "mlx_mesh_prompt_tokens", "Prompt tokens of calls served here", ["kind", "model"], registry=registry
        )
        self._downloaded = Counter("mlx_mesh_download_bytes", "Bytes of weights fetched", ["model"], registry=registry)
        if gauges is not None:
            registry.register(_GaugesCollector(gauges))

    def route(self, fact: RouteFact) -> None:
        """Counts one ended request. Model names nobody serves are the client's invention: they share one label."""
        model = fact.served_model or ""
        self._requests.labels(fact.outcome, model, fact.node or "").inc()
        for attempt in fact.attempts:
            self._attempts.labels(attempt.outcome, attempt.node).inc()
            if attempt.mode != "start" and (attempt.outcome == "ok" or attempt.cut):
                self._handovers.labels(attempt.mode, model).inc()
        if fact.lost is not None:
            self._lost.labels(fact.lost).inc()
        self._unkept.inc(0 if fact.resumable else 1)
        if fact.ttft_ms is not None:
            self._ttft.labels(model).observe(fact.ttft_ms / 1e3)
        if fact.outcome in ("ok", "resumed"):
            self._total.labels(model).observe(fact.total_ms / 1e3)
        self._queue.observe(fact.queue_ms / 1e3)
        self._tokens.labels("prompt", model).inc(fact.prompt_tokens)
        self._tokens.labels("cached", model).inc(fact.cached_tokens)
        self._tokens.labels("completion", model).inc(fact.completion_tokens)

    def node(self, fact: NodeFact) -> None:
        """Counts what the node side reports."""
        match fact:
            case CallFact():
                self._call(fact)
            case ModelFact(load_s=load_s) if load_s is not None:
                self._loads.labels(fact.model).observe(load_s)
            case DownloadFact():
                self._downloaded.labels(fact.model).inc(fact.new_bytes)
            case _:
                pass

    def _call(self, fact: CallFact) -> None:
        self._calls.labels(fact.outcome, fact.model).inc()
        if fact.wait_ms is not None:
            self._wait.labels(fact.model).observe(fact.wait_ms / 1e3)
        if fact.cold:
            self._cold.labels(fact.model).inc()
        self._read.labels("cached", fact.model).inc(fact.usage.cached)
        self._read.labels("read", fact.model).inc(max(0, fact.usage.prompt - fact.usage.cached))

    def event(self, event: NodeEvent) -> None:
        """Counts what happened to a model."""
        if event.model:
            self._events.labels(event.kind, event.model).inc()

    def count_bytes(self, direction: str, count: int) -> None:
        """Counts `count` bytes in `direction` ("client_in", "client_out", "peer_in", "peer_out" and the like)."""
        self._bytes.labels(direction).inc(count)

    def limited(self, app: str) -> Callable[[str], None]:
        """For `app` ("edge", "peer"): counts one more that met the limit of that name."""
        return lambda limit: self._limits.labels(app, limit).inc()

    def turned_away(self, reason: str) -> None:
        """A client may not ask: for its "host", its "origin" or its "key"."""
        self._turned_away.labels(reason).inc()

    def text(self) -> bytes:
        """The page of /metrics, as CONTENT_TYPE says."""
        return generate_latest(self._registry)

    def names(self) -> list[str]:
        """Every family's name as /metrics shows it, counters with `_total`."""
        found = set()
        for family in self._registry.collect():
            found.add(family.name + ("_total" if family.type == "counter" else ""))
        return sorted(found)


class _GaugesCollector(Collector):
    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        now = self._gauges()
        build = GaugeMetricFamily("mlx_mesh_build_info", "This node and its version", labels=["node", "version"])
        build.add_metric([now.node, now.version], 1)
        yield build
        yield _gauge("coordinator", "1 while this node coordinates", int(now.coordinator))
        yield _gauge("term", "Number of the present reign", now.term)
        yield CounterMetricFamily("mlx_mesh_elections", "Changes of coordinator or term seen here", now.elections)
        yield _by("nodes", "Nodes known here", "state", now.nodes)
        yield _gauge("queue_depth", "Requests waiting at this coordinator for a node", now.queue_depth)
        yield _gauge("in_flight", "Requests this coordinator has granted and not seen end", now.in_flight)
        yield _gauge("open_requests", "Requests open at this edge", now.open_requests)
        yield _gauge("kept_bytes", "Bytes of answers kept so that they can go on elsewhere", now.kept_bytes)
        yield _gauge("memory_budget_bytes", "Bytes models may take here", now.memory.budget_bytes)
        yield _gauge("memory_used_bytes", "Bytes models take here", now.memory.used_bytes)
        yield _gauge("memory_headroom_bytes", "Bytes a model may still take here", now.memory.headroom_bytes)
        yield _gauge("resident_bytes", "Resident memory of the daemon itself", now.resident_bytes)
        yield _count_by("worker_tokens", "Tokens a model's workers generated", "model", now.worker_tokens)
        yield from _of_models(now.models)
        yield _count_by("frames_dropped", "Frames from peers not understood or not sent", "reason", now.frames_dropped)
        yield _by("open_connections", "Open connections of this daemon", "app", now.connections)
        yield _gauge("links", "Open links to peers", now.links)
        yield CounterMetricFamily("mlx_mesh_routes_dropped", "Routes not kept: the disk was slow", now.routes_dropped)
        yield CounterMetricFamily("mlx_mesh_events_dropped", "Events not kept: the disk was slow", now.events_dropped)
        yield CounterMetricFamily("mlx_mesh_log_lines_dropped", "Log lines not written", now.log_lines_dropped)


def _of_models(models: Sequence[ModelReport]) -> Iterator[Metric]:
    states = GaugeMetricFamily("mlx_mesh_model_state", "1 for the state each model is in", labels=["model", "state"])
    for model in models:
        states.add_metric([model.name, model.state.value], 1)
    yield states

    def of(name: str, what: str, value: Callable[[ModelReport], float | None]) -> Metric:
        found = {m.name: value(m) for m in models}
        return _by(f"model_{name}", what, "model", {k: v for k, v in found.items() if v is not None})

    yield of("size_bytes", "Bytes a model needs, by the best estimate", lambda m: m.size_bytes)
    yield of("reserved_bytes", "Bytes of the budget kept for a model now", lambda m: m.reserved_bytes)
    yield of("measured_bytes", "Bytes its process was last seen to take", lambda m: m.measured_bytes or None)
    yield of("load_expected_seconds", "Seconds its next load is expected to take", lambda m: m.load_s)
    yield of("prefill_tokens_per_second", "Speed of reading prompts, measured", lambda m: m.prefill_tps)
    yield of("decode_tokens_per_second", "Speed of writing answers, measured", lambda m: m.decode_tps)
    yield of("in_flight", "Calls a model answers now", lambda m: m.in_flight)
    yield of("queue_depth", "Calls that wait at a model", lambda m: m.queue_depth)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mlx_mesh_{name}", what, value)


def _by(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"mlx_mesh_{name}", what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _count_by(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"mlx_mesh_{name}", what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
