"""What runs on nodes that nobody here has granted: it takes their slots all the same.

Counted anew only where something has changed that the count rests on: a node's report, or one of the requests in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from node.types import NodeId, NodeStatus, RequestId, RunningReport


class Foreign:
    """`ours_until(node, report)`: until when a request that `node` reports is ours; in the past: it is not."""

    def __init__(self, ours_until: Callable[[NodeId, RunningReport], float]) -> None:
        self._ours_until = ours_until
        self._running: dict[NodeId, tuple[RunningReport, ...]] = {}
        self._where: dict[RequestId, set[NodeId]] = {}  # who reports it
        self._counts: dict[NodeId, dict[str, int]] = {}  # as last told: node -> model -> requests
        self._stale: set[NodeId] = set()
        self._look_at = math.inf  # one of ours may become a foreign one

    def reports(self) -> Iterator[tuple[NodeId, RunningReport]]:
        return ((node, report) for node, running in self._running.items() for report in running)

    def counts(self, node: NodeId) -> dict[str, int]:
        """By MODEL.name, as last told."""
        return self._counts.get(node, {})

    def reported(self, node: NodeId, running: tuple[RunningReport, ...]) -> None:
        """All that `node` says it runs."""
        before = {report.id for report in self._running.get(node, ())}
        there = {report.id for report in running}
        self._running[node] = running
        for request in there - before:
            self._where.setdefault(request, set()).add(node)
        for request in before - there:
            self._forget(request, node)
        if before or there:
            self._stale.add(node)

    def changed(self, request: RequestId) -> None:
        """It is granted, ended, or otherwise not what it was."""
        if self._where and (nodes := self._where.get(request)):
            self._stale |= nodes

    def forget(self) -> None:
        """None of them is ours any more."""
        self._stale.update(self._running)

    def drop(self, node: NodeId) -> None:
        """It is gone, and its report with it."""
        for request in {report.id for report in self._running.pop(node, ())}:  # two attempts of one may run there
            self._forget(request, node)
        self._counts.pop(node, None)
        self._stale.discard(node)

    def recount(self, up: dict[NodeId, NodeStatus], now: float) -> list[NodeId]:
        """Those of the nodes that are `up` whose counts are others than before."""
        if now >= self._look_at:
            self._stale.update(self._running)
            self._look_at = math.inf
        if not self._stale:
            return []
        found = []
        for node in [n for n in self._running if n in self._stale and n in up]:
            self._stale.discard(node)
            counts: dict[str, int] = {}
            for report in self._running[node]:
                until = self._ours_until(node, report)
                if until <= now:
                    counts[report.model] = counts.get(report.model, 0) + 1
                else:
                    self._look_at = min(self._look_at, until)
            if counts != self._counts.get(node, {}):
                self._counts[node] = counts
                found.append(node)
        return found

    def _forget(self, request: RequestId, node: NodeId) -> None:
        nodes = self._where[request]
        nodes.discard(node)
        if not nodes:
            del self._where[request]
