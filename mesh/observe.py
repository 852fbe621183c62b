"""Observer: the `report` function that node and router are given. One fact, all its readers: log, metrics, stores,
followers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, assert_never

from mesh.event_store import EventStore
from mesh.log import Later, event, later, utc
from mesh.metrics import Metrics
from mesh.node_events import NodeEvent, event_of
from mesh.store import RouteStore
from node.facts import CallFact, DownloadFact, DrainFact, ModelFact, NodeFact, PressureFact, WorkerFact
from node.types import ModelState, Pressure
from router.events import Term
from router.facts import RouteFact
from router.reasons import Reasons, brief

FOLLOWER_WAITING_MAX = 256  # routes or events a follower may be behind; then it loses the oldest
T = TypeVar("T")

_log = logging.getLogger("mesh.requests")
_node_log = logging.getLogger("mesh.models")


class Followers(Generic[T]):
    """Who wants to hear of each T as it happens."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[T]] = set()

    def tell(self, news: T) -> None:
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(news)

    @contextmanager
    def follow(self) -> Iterator[asyncio.Queue[T]]:
        """A queue of what happens, as long as the context is open."""
        queue: asyncio.Queue[T] = asyncio.Queue(FOLLOWER_WAITING_MAX)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)


class Observer:
    """Hands each fact to its readers; never waits, never raises."""

    def __init__(self, *, metrics: Metrics, store: RouteStore | None = None, events: EventStore | None = None) -> None:
        self._metrics, self._store, self._events = metrics, store, events
        self.routes: Followers[RouteFact] = Followers()
        self.events: Followers[NodeEvent] = Followers()

    def report(self, fact: RouteFact | NodeFact) -> None:
        """Call it from the loop's thread."""
        if isinstance(fact, RouteFact):
            self._route(fact)
            return
        self._metrics.node(fact)
        _log_node(fact)
        found = event_of(fact, utc(time.time()))
        if found is not None:
            self._happened(found)

    def life(self, kind: str, text: str) -> None:
        """Something about the daemon itself: "start", "stop", "orphan"."""
        self._happened(NodeEvent(at=utc(time.time()), kind=kind, text=text))

    def _happened(self, news: NodeEvent) -> None:
        self._metrics.event(news)
        if self._events is not None:
            self._events.add(news)
        self.events.tell(news)

    def _route(self, fact: RouteFact) -> None:
        self._metrics.route(fact)
        if self._store is not None:
            self._store.add(fact)
        self.routes.tell(fact)
        level = logging.INFO if fact.outcome in ("ok", "resumed", "cancelled") else logging.WARNING
        later(_log, level, "request", Later(fact, sentence, _fields))


def _fields(fact: RouteFact) -> dict[str, Any]:
    """The request's line for programs."""
    return {
        "id": fact.id,
        "model": fact.model,
        "served_model": fact.served_model,
        "node": fact.node,
        "why": why(fact),
        "attempts": len(fact.attempts),
        "cuts": sum(a.cut for a in fact.attempts),
        "queue_ms": fact.queue_ms,
        "ttft_ms": fact.ttft_ms,
        "total_ms": fact.total_ms,
        "prompt_tokens": fact.prompt_tokens,
        "cached_tokens": fact.cached_tokens,
        "completion_tokens": fact.completion_tokens,
        "status": fact.status,
        "outcome": fact.outcome,
        "lost": fact.lost,
        "error": fact.error,
        **({"key": fact.key} if fact.key is not None else {}),
    }


def why(fact: RouteFact) -> str:
    """Why this node, in a few words: how many could, and what its time was expected to go into. Of a refusal: what it
    waited for in vain, or why each node could not."""
    grounds = fact.why.grounds if fact.why is not None else None
    if isinstance(grounds, Reasons) and (text := grounds.brief):
        return text
    decision = fact.decision
    if decision is None:
        return ""
    able = [c for c in decision.candidates if c.total_s is not None]
    chosen = next((c for c in able if c.node == decision.chosen), None)
    if chosen is None or chosen.total_s is None:
        waited_for = decision.request.get("waited_for")
        return str(waited_for or "; ".join(f"{c.node}: {c.excluded}" for c in decision.candidates if c.excluded))
    most = max(chosen.terms, key=lambda term: term.seconds, default=Term("", 0.0, ""))
    return brief(len(able), chosen.total_s, most.name, most.why if most.seconds > 0 else "")


def sentence(fact: RouteFact) -> str:
    """The request's line for people."""
    where = f" on {fact.node}" if fact.node else ""
    first = f", first token {fact.ttft_ms:.0f} ms" if fact.ttft_ms is not None else ""
    tries = f", {len(fact.attempts)} attempts" if len(fact.attempts) > 1 else ""
    error = f": {fact.error}" if fact.error else ""
    return (
        f"{fact.id} {fact.model}{where} {fact.outcome} {fact.status} in {fact.total_ms:.0f} ms{first}, "
        f"{fact.completion_tokens} tokens{tries}{error}"
    )


def _log_node(fact: NodeFact) -> None:
    match fact:
        case ModelFact():
            level = logging.ERROR if fact.state is ModelState.FAILED else logging.INFO
            took = f" after {fact.load_s:.1f} s" if fact.load_s is not None else ""
            again = f", started again in {fact.retry_s:.0f} s" if fact.retry_s is not None else ""
            reason = f": {fact.why}" if fact.why else ""
            text = f"{fact.model} is {fact.state.value}{took}{reason}{again}"
            event(_node_log, level, "model", text, model=fact.model, state=fact.state.value, why=fact.why)
        case CallFact():
            level = logging.WARNING if fact.outcome == "failed" else logging.DEBUG
            reason = f": {fact.error}" if fact.error else ""
            text = f"{fact.id}/{fact.attempt} {fact.model} {fact.outcome} in {fact.total_ms:.0f} ms{reason}"
            event(_node_log, level, "call", text, id=fact.id, attempt=fact.attempt, edge=fact.edge, model=fact.model)
        case WorkerFact():
            event(_node_log, logging.INFO, "worker", f"{fact.model}: {fact.text}", model=fact.model)
        case DownloadFact():
            _log_download(fact)
        case PressureFact():
            level = logging.INFO if fact.pressure is Pressure.NORMAL else logging.WARNING
            text = f"memory pressure is {fact.pressure.value}"
            event(_node_log, level, "pressure", text, pressure=fact.pressure.value, budget_bytes=fact.budget_bytes)
        case DrainFact():
            said = {
                "begun": "takes no more requests",
                "drained": "has finished its requests",
                "ended": "takes requests",
            }
            reason = f": {fact.why}" if fact.why else ""
            event(_node_log, logging.INFO, "drain", f"this node {said[fact.phase]}{reason}", phase=fact.phase)
        case _:
            assert_never(fact)


def _log_download(fact: DownloadFact) -> None:
    level = {"failed": logging.ERROR, "progress": logging.DEBUG}.get(fact.phase, logging.INFO)
    reason = f": {fact.why}" if fact.why else ""
    text = f"{fact.model}: download of {fact.source} {fact.phase}{reason}"
    event(_node_log, level, "download", text, model=fact.model, phase=fact.phase, done_bytes=fact.done_bytes)
