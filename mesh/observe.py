"""Observer: the `report` function that node and router are given. One fact, all its readers: log, metrics, store,
followers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from mesh.log import event
from mesh.metrics import Metrics
from mesh.store import RouteStore
from node.facts import CallFact, DownloadFact, DrainFact, ModelFact, NodeFact, PressureFact, WorkerFact
from node.types import ModelState, Pressure
from router.facts import RouteFact

FOLLOWER_WAITING_MAX = 256  # routes a follower may be behind; then it loses the oldest

_log = logging.getLogger("mesh.requests")
_node_log = logging.getLogger("mesh.models")


class Observer:
    """Hands each fact to its readers; never waits, never raises."""

    def __init__(self, *, metrics: Metrics, store: RouteStore | None = None) -> None:
        self._metrics, self._store = metrics, store
        self._followers: set[asyncio.Queue[RouteFact]] = set()

    def report(self, fact: RouteFact | NodeFact) -> None:
        """Call it from the loop's thread."""
        if isinstance(fact, RouteFact):
            self._route(fact)
        else:
            self._metrics.node(fact)
            _log_node(fact)

    def _route(self, fact: RouteFact) -> None:
        self._metrics.route(fact)
        if self._store is not None:
            self._store.add(fact)
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(fact)
        level = logging.INFO if fact.outcome in ("ok", "resumed", "cancelled") else logging.WARNING
        event(
            _log,
            level,
            "request",
            sentence(fact),
            id=fact.id,
            model=fact.model,
            served_model=fact.served_model,
            node=fact.node,
            why=why(fact),
            attempts=len(fact.attempts),
            queue_ms=fact.queue_ms,
            ttft_ms=fact.ttft_ms,
            total_ms=fact.total_ms,
            prompt_tokens=fact.prompt_tokens,
            cached_tokens=fact.cached_tokens,
            completion_tokens=fact.completion_tokens,
            status=fact.status,
            outcome=fact.outcome,
            error=fact.error,
        )

    @contextmanager
    def follow(self) -> Iterator[asyncio.Queue[RouteFact]]:
        """A queue of routes as they end, as long as the context is open."""
        follower: asyncio.Queue[RouteFact] = asyncio.Queue(FOLLOWER_WAITING_MAX)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)


def why(fact: RouteFact) -> str:
    """Why this node, in a few words: how many could, and what its time was expected to go into."""
    if fact.decision is None:
        return ""
    able = [c for c in fact.decision.candidates if c.total_s is not None]
    chosen = next((c for c in able if c.node == fact.decision.chosen), None)
    if chosen is None or chosen.total_s is None:
        return next((f"{c.node}: {c.excluded}" for c in fact.decision.candidates if c.excluded), "")
    most = max(chosen.terms, key=lambda term: term.seconds, default=None)
    part = f", most of it {most.name}: {most.why}" if most is not None and most.seconds > 0 else ""
    return f"soonest of {len(able)}, expected {chosen.total_s:.2f} s{part}"


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
