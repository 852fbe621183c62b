"""Open requests and where each stands: the account of the mesh, a partition in which nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from node.types import NodeId, RequestId, RunningReport
from router.events import Request, Why
from router.frames import Queued
from router.settings import RouterSettings


class Place(StrEnum):
    """Where a request stands. In the scheduler's queue: WAITING. Holds a slot: GRANTED, RUNNING."""

    WAITING = "waiting"
    GRANTED = "granted"  # not yet taken by its edge
    RUNNING = "running"
    PARKED = "parked"  # was waiting, its edge's link is gone
    LOST = "lost"  # was running on a node that went down: its edge will ask again, or go on if the node lives


class Spot(Struct, frozen=True):
    """Where a request runs or is to run. `why` None: an earlier coordinator's, its reasons are with the edge."""

    node: NodeId
    model: str
    why: Why | None = None


class Open:
    """One request that some edge has open, as the desk keeps it. Times on the desk's clock."""

    __slots__ = (
        "attempt",
        "edge",
        "first",
        "granted_at",
        "news_at",
        "place",
        "queued",
        "request",
        "seen_at",
        "silent_at",
        "since",
        "spot",
        "withdrawn",
    )

    def __init__(self, request: Request, attempt: int, edge: NodeId, since: float) -> None:
        self.request, self.attempt, self.edge = request, attempt, edge
        self.since = since  # its edge accepted it
        self.place = Place.WAITING
        self.spot: Spot | None = None
        self.withdrawn: Spot | None = None  # granted, but not taken in time
        self.granted_at = self.seen_at = 0.0  # seen: last reported by its node, or granted, or lost
        self.first = False  # its first token has come
        self.silent_at: float | None = None  # its edge's link is gone since
        self.queued: Queued | None = None  # as last said to its edge
        self.news_at = 0.0  # while it waits: the next look at whether that has changed

    @property
    def node(self) -> NodeId | None:
        return self.spot.node if self.spot is not None else None

    @property
    def holds(self) -> bool:
        """It takes a slot of the scheduler's account."""
        return self.place in (Place.GRANTED, Place.RUNNING)

    def runs(self, attempt: int, node: NodeId, model: str) -> bool:
        """It is already known to run just there."""
        spot = self.spot
        same = spot is not None and (spot.node, spot.model) == (node, model)
        return same and self.place is Place.RUNNING and self.attempt == attempt

    def given_up(self, bounds: RouterSettings, now: float) -> bool:
        """Its edge is gone, or its node and no word since; or it runs past every bound (the scheduler's rule too)."""
        if self.silent_at is not None and now - self.silent_at >= bounds.edge_gone_s:
            return True
        if self.place is Place.LOST:
            return now - self.seen_at >= bounds.lost_s
        if self.place is not Place.RUNNING:
            return False
        if self.request.deadline is None:
            return now >= self.granted_at + bounds.granted_limit_s
        return now >= max(self.request.deadline, self.granted_at) + bounds.overdue_s


class NodeAccount(Struct):
    """Requests bound to one node: `reserved` = granted, not yet taken, or waiting inside it."""

    reserved: int = 0
    in_flight: int = 0


class Account(Struct):
    """Every open request known here is in exactly one number. `queue_depth` = waiting, bound to no node yet."""

    queue_depth: int
    nodes: dict[NodeId, NodeAccount]

    @property
    def total(self) -> int:
        return self.queue_depth + sum(n.reserved + n.in_flight for n in self.nodes.values())


class Standing(Struct, frozen=True):
    """One request for the account: bound to `node` or (None) waiting; `started` as far as edge and desk know."""

    id: RequestId
    attempt: int
    node: NodeId | None
    started: bool


def account(standings: Iterable[Standing], reports: Iterable[tuple[NodeId, RunningReport]]) -> Account:
    """Own grants and what nodes report, as one. The first standing of a request counts; a node's word that it still
    waits inside goes before our belief that it started; a report of a request nobody here knows counts by itself."""
    reported = {(node, r.id, r.attempt): r for node, r in reports}
    total, seen = Account(0, {}), set()
    for s in standings:
        if s.id in seen:
            continue
        seen.add(s.id)
        if s.node is None:
            total.queue_depth += 1
            continue
        report = reported.get((s.node, s.id, s.attempt))
        _count(total, s.node, started=s.started if report is None else report.started and s.started)
    for (node, request, _), report in reported.items():
        if request not in seen:
            seen.add(request)
            _count(total, node, started=report.started)
    return total


def _count(total: Account, node: NodeId, *, started: bool) -> None:
    here = total.nodes.setdefault(node, NodeAccount())
    if started:
        here.in_flight += 1
    else:
        here.reserved += 1
