"""Desk: the coordinator's side of the talk with edges. Their frames become the Scheduler's events, its effects frames.

Frames may be lost with their link, said twice, or come from an attempt that is over; the account stays right anyway:
an edge repeats what is open, a higher attempt ends the one before, and what nodes report running corrects the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from math import inf
from random import Random
from typing import TypeAlias, assert_never

from msgspec import Struct, structs

from node.types import NodeId, NodeStatus, RequestId, RunningReport, Usage
from router.account import Open, Place, Spot
from router.errors import ErrorCode, Refusal
from router.events import (
    Adopt,
    Cancel,
    Finished,
    FirstToken,
    Grant,
    NodeChanged,
    NodeDown,
    NodeUp,
    Outcome,
    Refuse,
    SchedulerEffect,
    SchedulerEvent,
    Submit,
    Tick,
)
from router.foreign import Foreign
from router.frames import (
    Ask,
    CancelAsk,
    Carrying,
    Done,
    EdgeFrame,
    First,
    Granted,
    Queued,
    Refused,
    Say,
    Taken,
)
from router.schedule import Scheduler
from router.settings import RouterSettings


class FromEdge(Struct, frozen=True):
    sender: NodeId
    frame: EdgeFrame


class EdgeLost(Struct, frozen=True):
    """The link to that edge is gone; its requests may go on, and be told again over the next one."""

    edge: NodeId


class Rule(Struct, frozen=True):
    """Whether this node decides for others. When it stops, it forgets every request: edges ask the next one."""

    ruling: bool


class Reported(Struct, frozen=True):
    """What `node` itself says it runs."""

    node: NodeId
    running: tuple[RunningReport, ...]


DeskEvent: TypeAlias = FromEdge | EdgeLost | Rule | Reported | NodeUp | NodeChanged | NodeDown | Tick


class Desk:
    """`step(event, now) -> what to say to whom`; wake it with a Tick at `deadline`."""

    def __init__(self, me: NodeId, settings: RouterSettings, rng: Random) -> None:
        self.me, self.ruling = me, False
        self._settings = settings
        self._scheduler = Scheduler(settings, rng)
        self._open: dict[RequestId, Open] = {}
        self._ended: OrderedDict[tuple[RequestId, int], float] = OrderedDict()  # as told by edges, and when
        self._status: dict[NodeId, NodeStatus] = {}  # as last told from outside
        self._foreign = Foreign(self._ours_until)
        self._waiting: dict[RequestId, Open] = {}  # of the open ones
        self._say_at = inf  # next look at what these have heard of their places
        self._keep_at = 0.0  # next housekeeping
        self._out: list[Say] = []

    # What can be asked

    @property
    def deadline(self) -> float | None:
        first = self._scheduler.deadline
        if not self._open:
            return first
        own = min(self._keep_at, self._say_at) if self._waiting else self._keep_at
        return own if first is None or own < first else first

    def open(self) -> Iterator[tuple[RequestId, Open]]:
        """Every request an edge has told of, in any place."""
        return iter(self._open.items())

    def has_ended(self, report: RunningReport) -> bool:
        """Its edge has said that this attempt is over, whatever its node still reports."""
        return (report.id, report.attempt) in self._ended

    def reports(self) -> Iterator[tuple[NodeId, RunningReport]]:
        """What nodes that are up report running."""
        return ((n, r) for n, r in self._foreign.reports() if n in self._status)

    @property
    def scheduler(self) -> Scheduler:
        """For reading only."""
        return self._scheduler

    # What happens

    def step(self, event: DeskEvent, now: float) -> list[Say]:
        self._out = []
        match event:
            case FromEdge(sender, frame):
                self._hear(sender, frame, now)
            case EdgeLost(edge):
                self._park(edge, now)
            case Rule(ruling):
                self.ruling = ruling
                if not ruling:
                    self._open.clear()
                    self._waiting.clear()
                    self._foreign.forget()
                    self._scheduler.forget()
            case Reported(node, running):
                self._reconcile(node, running, now)
            case NodeUp(status) | NodeChanged(status):
                self._know(status, now)
            case NodeDown(node):
                self._lose(node, now)
            case Tick():
                self._tell(event, now)
            case _:
                assert_never(event)
        for node in self._foreign.recount(self._status, now):
            self._tell(NodeChanged(self._with_foreign(self._status[node])), now)
        if now >= self._keep_at:
            self._keep_house(now)
        if now >= self._say_at:
            self._say_places(now)
        return self._out

    # From edges

    def _hear(self, sender: NodeId, frame: EdgeFrame, now: float) -> None:
        if not self.ruling and sender != self.me:
            return  # Not the one to ask; that edge will hear who is, and ask there.
        known = self._open.get(frame.request.id if isinstance(frame, Ask | Carrying) else frame.id)
        if known is not None and frame.attempt < known.attempt:
            return  # Late, of an attempt that is over.
        if known is not None:
            known.silent_at = None
        match frame:
            case Ask():
                self._ask(sender, frame, known, now)
            case Carrying():
                self._carry(sender, frame, known, now)
            case Taken():
                if known is not None and known.attempt == frame.attempt:
                    self._take(known, now)
            case First(_, attempt, cached_tokens):
                if known is not None and known.attempt == attempt:
                    self._take(known, now)
                    known.first = True
                    self._tell(FirstToken(frame.id, cached_tokens), now)
            case Done(id=request, attempt=attempt, outcome=outcome, usage=usage):
                self._end(request, attempt, outcome, usage, now)
            case CancelAsk(id=request, attempt=attempt):
                self._end(request, attempt, "cancelled", Usage(), now)
            case _:
                assert_never(frame)

    def _ask(self, sender: NodeId, frame: Ask, known: Open | None, now: float) -> None:
        request = frame.request
        if (request.id, frame.attempt) in self._ended:
            return
        if known is not None and known.attempt < frame.attempt:
            self._end(request.id, known.attempt, frame.last_outcome or "failed", Usage(), now)
            known = None
        if known is None and len(self._open) >= self._settings.open_limit:
            text = f"{len(self._open)} requests are open in the mesh, that is its limit"
            error = Refusal(ErrorCode.MESH_SATURATED, text, self._settings.retry_after_s)
            why = self._scheduler.denial(request, error, frame.age_s, now)
            self._out.append(Say(sender, Refused(request.id, frame.attempt, error, why)))
            return
        deadline = None if request.deadline is None else now + request.deadline
        request = structs.replace(request, deadline=deadline)
        if known is None:
            known = self._open[request.id] = Open(request, frame.attempt, sender, now - max(0.0, frame.age_s))
            self._submit(known, now)
        elif known.place is Place.GRANTED:
            known.granted_at = now  # The grant was lost with its link: said again, and it has its time again.
            self._say_grant(known)
        elif known.place is not Place.RUNNING:
            known.request = request
            self._submit(known, now, hears_at=now)

    def _submit(self, known: Open, now: float, hears_at: float | None = None) -> None:
        """`hears_at`: when it is told its place, if it waits then; None: after a while, most are granted before."""
        known.place, known.spot, known.queued = Place.WAITING, None, None
        known.news_at = now + self._settings.queued_after_s if hears_at is None else hears_at
        self._waiting[known.request.id] = known
        self._say_at = min(self._say_at, known.news_at)
        self._foreign.changed(known.request.id)
        self._tell(Submit(known.request, age_s=now - known.since), now)

    def _carry(self, sender: NodeId, frame: Carrying, known: Open | None, now: float) -> None:
        request = frame.request
        if (request.id, frame.attempt) in self._ended:
            return
        deadline = None if request.deadline is None else now + request.deadline
        request = structs.replace(request, deadline=deadline)
        if known is not None and known.runs(frame.attempt, frame.node, frame.model):
            known.seen_at = now
            return
        since = known.since if known is not None else now - frame.sent_s_ago
        self._open[request.id] = fresh = Open(request, frame.attempt, sender, since)
        fresh.first = frame.first_token
        self._adopt(fresh, Spot(frame.node, frame.model), now - frame.sent_s_ago, now)

    def _adopt(self, known: Open, spot: Spot, granted_at: float, now: float) -> None:
        """It runs there, whoever granted it."""
        self._waiting.pop(known.request.id, None)
        self._foreign.changed(known.request.id)
        known.place, known.spot, known.withdrawn = Place.RUNNING, spot, None
        known.granted_at, known.seen_at = granted_at, now
        ago_s = max(0.0, now - granted_at)
        self._tell(Adopt(known.request, spot.node, ago_s, known.first, spot.model), now)

    def _take(self, known: Open, now: float) -> None:
        if known.place is Place.GRANTED:
            known.place, known.seen_at = Place.RUNNING, now  # To the scheduler it is as before: it has had its slot.
        elif known.place in (Place.WAITING, Place.PARKED) and known.withdrawn is not None:
            self._adopt(known, known.withdrawn, known.granted_at, now)  # Taken after all, just too late for our clock.

    def _end(self, request: RequestId, attempt: int, outcome: Outcome, usage: Usage, now: float) -> None:
        self._ended[request, attempt] = now
        while len(self._ended) > self._settings.done_limit:
            self._ended.popitem(last=False)
        self._foreign.changed(request)
        if self._open.pop(request, None) is not None:
            self._waiting.pop(request, None)
            self._tell(Finished(request, outcome, usage), now)

    def _park(self, edge: NodeId, now: float) -> None:
        for known in [k for k in self._open.values() if k.edge == edge and k.silent_at is None]:
            known.silent_at = now
            if known.place in (Place.WAITING, Place.GRANTED):
                self._unplace(known, Place.PARKED, now)

    def _unplace(self, known: Open, place: Place, now: float) -> None:
        """Takes it out of the queue, or its grant back."""
        known.place, known.withdrawn = place, known.spot or known.withdrawn
        known.spot = None
        self._waiting.pop(known.request.id, None)
        self._foreign.changed(known.request.id)
        self._tell(Cancel(known.request.id), now)

    # From nodes

    def _know(self, status: NodeStatus, now: float) -> None:
        fresh = status.node not in self._status
        self._status[status.node] = status
        event = self._with_foreign(status)
        self._tell(NodeUp(event) if fresh else NodeChanged(event), now)
        for known in list(self._open.values()) if fresh else []:
            if known.place is Place.LOST and known.spot is not None and known.node == status.node:
                self._adopt(known, known.spot, known.granted_at, now)  # It was not down, or it came back at once.

    def _lose(self, node: NodeId, now: float) -> None:
        self._status.pop(node, None)
        self._foreign.drop(node)
        there = [k for k in self._open.values() if k.holds and k.node == node]
        self._tell(NodeDown(node), now)
        for known in there:
            if known.place is Place.GRANTED:
                self._submit(known, now)  # Nobody has begun it.
            else:
                known.place, known.seen_at = Place.LOST, now
        self._park(node, now)

    def _reconcile(self, node: NodeId, running: tuple[RunningReport, ...], now: float) -> None:
        self._foreign.reported(node, running)
        there = {(r.id, r.attempt) for r in running}
        for known in [k for k in self._open.values() if k.place is Place.RUNNING and k.node == node]:
            if (known.request.id, known.attempt) in there:
                known.seen_at = now
            elif now - known.seen_at > self._settings.unreported_s:
                self._drop(known, now)

    def _drop(self, known: Open, now: float) -> None:
        """Forgotten without a word from its edge: should the edge still have it open, it will say so."""
        self._open.pop(known.request.id, None)
        self._waiting.pop(known.request.id, None)
        self._foreign.changed(known.request.id)
        self._tell(Finished(known.request.id, "cancelled"), now)

    def _ours_until(self, node: NodeId, report: RunningReport) -> float:
        """A request that a node reports is ours while it is open here, and for a while after its end."""
        known = self._open.get(report.id)
        if known is not None and known.attempt == report.attempt and known.node == node:
            return inf
        ended_at = self._ended.get((report.id, report.attempt))
        return -inf if ended_at is None else ended_at + self._settings.zombie_s

    def _with_foreign(self, status: NodeStatus) -> NodeStatus:
        counts = self._foreign.counts(status.node)
        models = tuple(structs.replace(m, foreign_in_flight=counts.get(m.name, 0)) for m in status.models)
        return structs.replace(status, models=models, foreign_in_flight=sum(counts.values()))

    # From the scheduler

    def _tell(self, event: SchedulerEvent, now: float) -> None:
        self._perform(self._scheduler.step(event, now), now)

    def _perform(self, effects: list[SchedulerEffect], now: float) -> None:
        for effect in effects:
            known = self._open[effect.id]
            match effect:
                case Grant():
                    del self._waiting[effect.id]
                    known.place, known.withdrawn = Place.GRANTED, None
                    known.spot = Spot(effect.node, effect.model, effect.why)
                    known.granted_at = known.seen_at = now
                    self._foreign.changed(effect.id)
                    self._say_grant(known)
                case Refuse(request, error, decision):
                    del self._open[request], self._waiting[request]
                    self._foreign.changed(request)
                    self._out.append(Say(known.edge, Refused(request, known.attempt, error, decision)))

    def _say_grant(self, known: Open) -> None:
        spot = known.spot
        assert spot is not None
        assert spot.why is not None, "only what this scheduler granted is in place GRANTED"
        frame = Granted(known.request.id, known.attempt, spot.node, spot.model, spot.why)
        self._out.append(Say(known.edge, frame))

    # By the clock

    def _keep_house(self, now: float) -> None:
        """Every bound that silence runs into."""
        bounds = self._settings
        self._keep_at = now + bounds.housekeeping_s
        for known in list(self._open.values()):
            if known.given_up(bounds, now):
                self._drop(known, now)
            elif known.place is Place.GRANTED and now - known.granted_at >= bounds.untaken_s:
                self._withdraw(known, now)
        while self._ended and next(iter(self._ended.values())) < now - bounds.done_memory_s:
            self._ended.popitem(last=False)

    def _withdraw(self, known: Open, now: float) -> None:
        """Its edge has not taken the grant: the slot goes to whoever is next, and it is planned again."""
        withdrawn = known.spot
        self._unplace(known, Place.WAITING, now)
        self._submit(known, now)
        if known.place is Place.WAITING:
            known.withdrawn = withdrawn

    def _say_places(self, now: float) -> None:
        """A request that is not granted soon hears its place, and again when that has changed much."""
        due = [k for k in self._waiting.values() if k.news_at <= now]
        places = {request: (position, wait_s) for request, position, wait_s in self._scheduler.waiting()} if due else {}
        for known in due:
            position, wait_s = places[known.request.id]
            queued = Queued(known.request.id, known.attempt, position, round(wait_s, 3))
            if known.queued is None or _changed_much(known.queued, queued, self._settings.queued_change):
                known.queued = queued
                self._out.append(Say(known.edge, queued))
            known.news_at = now + self._settings.queued_every_s
        self._say_at = min((k.news_at for k in self._waiting.values()), default=inf)


def _changed_much(said: Queued, is_now: Queued, part: float) -> bool:
    change = abs(is_now.wait_s - said.wait_s)
    return is_now.position != said.position or change > max(0.5, part * said.wait_s)
