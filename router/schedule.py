"""Scheduler: the mesh's one queue. Late binding: a request is granted only when its best node can start it now.

On every event the queue is walked in order. Each request takes its cheapest candidate (`filters`, `cost`); if that one
can start it, it is granted, else it holds a place there that the requests behind it see, and stays in the queue. What
this scheduler sent out itself (`ledger`) counts at once; reports of nodes only add what others sent.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Hashable
from random import Random

from node.types import NodeId, RequestId
from router.cost import Lane, explain, seconds, service_s
from router.errors import ErrorCode, Refusal
from router.events import (
    Adopt,
    Cancel,
    Candidate,
    Decision,
    Finished,
    FirstToken,
    Grant,
    Loaded,
    NodeChanged,
    NodeDown,
    NodeUp,
    Outcome,
    Refuse,
    Request,
    SchedulerEffect,
    SchedulerEvent,
    Started,
    Submit,
    Term,
    Tick,
)
from router.fleet import Fleet, Options
from router.ledger import Flight, Ledger
from router.settings import RouterSettings
from router.speed import Rates

__all__ = [
    "Adopt",
    "Cancel",
    "Candidate",
    "Decision",
    "Finished",
    "FirstToken",
    "Grant",
    "Loaded",
    "NodeChanged",
    "NodeDown",
    "NodeUp",
    "Outcome",
    "Refuse",
    "Request",
    "Scheduler",
    "SchedulerEffect",
    "SchedulerEvent",
    "Started",
    "Submit",
    "Term",
    "Tick",
]


class Waiting:
    """One request in the queue. `order` is its place: when it came, later for low priority; `wait_s` the expected
    seconds until its grant, as of the last walk."""

    __slots__ = ("order", "request", "since", "wait_s")

    def __init__(self, request: Request, since: float, order: tuple[float, int]) -> None:
        self.request, self.since, self.order = request, since, order
        self.wait_s = 0.0

    @property
    def equality(self) -> Hashable:
        """Requests with the same are interchangeable for placing."""
        r = self.request
        return r.models, r.excluded, r.prompt_tokens, r.max_tokens


class Walk:
    """What one walk of the queue knows: lanes as placing has changed them, and who could have been served but chose
    to wait for better (`passed`)."""

    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.options: dict[tuple[tuple[str, ...], tuple[NodeId, ...]], Options] = {}
        self.passed: set[tuple[str, str]] = set()
        self.held: dict[Hashable, deque[Waiting]] = {}  # placed, but not to start now: equal requests, oldest first


class Scheduler:
    """`step(event, now) -> effects`; wake it with a Tick at `deadline` (None: only events). `now` never goes back."""

    def __init__(self, settings: RouterSettings, rng: Random) -> None:
        self._settings, self._rng = settings, rng
        self._ledger = Ledger(settings)
        self._fleet = Fleet(settings, self._ledger)
        self._queue: list[Waiting] = []
        self._walked = 0.0  # when
        self._count = 0  # of requests ever queued: ties keep the order they came in
        self._passed: dict[tuple[str, str], float] = {}  # lane -> since when it could start a waiting request
        self._pauses: dict[tuple[str, str], float] = {}  # lane -> until when it gets nothing after `node_busy`

    # What can be asked

    @property
    def deadline(self) -> float | None:
        times = [f.lost_at for f in self._ledger]
        if self._queue:
            times += [w.request.deadline for w in self._queue if w.request.deadline is not None]
            times += self._pauses.values()
            times += [self._walked + self._settings.recheck_s] if self._passed else []
        return min(times, default=None)

    def waiting(self) -> list[tuple[RequestId, int, float]]:
        """(id, position from 1, expected seconds until a grant), in the queue's order."""
        return [(w.request.id, i, w.wait_s) for i, w in enumerate(self._queue, 1)]

    def in_flight(self) -> dict[tuple[NodeId, str], int]:
        """Granted and not ended, by (node, model)."""
        counts: dict[tuple[NodeId, str], int] = {}
        for f in self._ledger:
            counts[f.node, f.model] = counts.get((f.node, f.model), 0) + 1
        return counts

    def rates(self, node: NodeId, model: str, now: float) -> Rates | None:
        """Speeds expected of MODEL.name there; None when the node does not hold it."""
        return self._fleet.rates(node, model, now)

    def forget(self) -> None:
        """Drops every request, waiting or granted; nodes and what was learned stay."""
        self._queue.clear()
        self._ledger.clear()
        self._passed.clear()
        self._pauses.clear()

    # What happens

    def step(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        effects: list[SchedulerEffect] = []
        match event:
            case NodeUp(status) | NodeChanged(status):
                self._fleet.put(status, now)
            case NodeDown(node):
                self._fleet.drop(node, now)
                self._drop([f for f in self._ledger if f.node == node])
            case Submit():
                effects += self._submit(event.request, now - max(0.0, event.age_s))
            case Started():
                pass  # It holds its slot since the grant.
            case FirstToken(request, cached):
                self._first(request, cached, now)
            case Finished(request, outcome, usage):
                self._unqueue(request)
                self._finish(request, outcome, usage.completion, now)
            case Cancel(request):
                self._unqueue(request)
                self._ledger.remove(request)
            case Adopt():
                self._adopt(event, now)
            case Loaded(node, model, took_s):
                self._fleet.loaded(node, model, took_s)
            case Tick():
                self._drop(self._ledger.lost(now))
        self._walk(effects, now)
        return effects

    def _drop(self, flights: list[Flight]) -> None:
        for flight in flights:
            self._ledger.remove(flight.request.id)

    def _submit(self, request: Request, since: float) -> list[SchedulerEffect]:
        if request.id in self._ledger:
            return []  # Said twice: the grant stands.
        for known in self._queue:
            if known.request.id == request.id:
                known.request = request  # Said again: it keeps its place, whatever else changed.
                return []
        if len(self._queue) >= self._settings.queue_limit:
            text = f"the queue is full: {len(self._queue)} requests wait already"
            wait_s = min(max(1.0, self._queue[0].wait_s), 60.0)
            return [Refuse(request.id, self._refusal(ErrorCode.MESH_SATURATED, text, wait_s))]
        self._count += 1
        later = self._settings.low_priority_s if request.priority == "low" else 0.0
        bisect.insort(self._queue, Waiting(request, since, (since + later, self._count)), key=lambda w: w.order)
        return []

    def _unqueue(self, request: RequestId) -> None:
        self._queue = [w for w in self._queue if w.request.id != request]

    def _first(self, request: RequestId, cached_tokens: int, now: float) -> None:
        flight = self._ledger.get(request)
        if flight is None or flight.first_at is not None:
            return
        flight.first_at = now
        self._fleet.proved(flight, cached_tokens, now)

    def _finish(self, request: RequestId, outcome: Outcome, completion: int, now: float) -> None:
        flight = self._ledger.remove(request)
        if flight is None:
            return
        if outcome == "busy":
            self._pauses[flight.node, flight.model] = now + self._settings.busy_pause_s
        elif outcome == "ok":
            self._fleet.ended(flight, completion, now)

    def _adopt(self, event: Adopt, now: float) -> None:
        """It runs already: a fact, counted even where it goes past the slots."""
        self._unqueue(event.request.id)
        model = event.model or self._fleet.resolve(event.node, event.request.models)
        begin = now - max(0.0, event.sent_s_ago)
        flight = Flight(event.request, event.node, model, begin, self._lost_at(event.request, begin))
        lane = self._fleet.lane(event.node, model, now)
        if lane is not None:
            output = self._fleet.output(model, event.request)
            flight.read_s, flight.write_s = service_s(lane, event.request, output, self._settings)
        flight.first_at = now if event.first_token else None
        self._ledger.add(flight)

    def _lost_at(self, request: Request, granted_at: float) -> float:
        if request.deadline is None:
            return granted_at + self._settings.granted_limit_s
        return max(request.deadline, granted_at) + self._settings.overdue_s

    # The walk

    def _walk(self, effects: list[SchedulerEffect], now: float) -> None:
        self._walked = now
        self._pauses = {lane: until for lane, until in self._pauses.items() if until > now}
        walk, gone = Walk(), set()
        for waiting in self._queue:
            effect = self._place(waiting, walk, now)
            if effect is not None:
                effects.append(effect)
                gone.add(effect.id)  # Maybe an older one than `waiting`.
        if gone:
            self._queue = [w for w in self._queue if w.request.id not in gone]
        self._passed = {k: self._passed.get(k, now) for k in sorted(walk.passed) if walk.lanes[k].open}

    def _place(self, waiting: Waiting, walk: Walk, now: float) -> SchedulerEffect | None:
        """Grants, refuses, or (None) leaves it in the queue with a place reserved and `wait_s` known."""
        request = waiting.request
        options = self._options(walk, request, now)
        if request.deadline is not None and request.deadline <= now:
            return Refuse(request.id, options.too_late(now - waiting.since))
        if not options.lanes:
            return self._nobody(waiting, options, now)
        if options.full:
            options.wait_s += options.spacing_s  # Nobody of its kind can start now; planning it exactly is dear.
            waiting.wait_s = options.wait_s
            return None
        lane = self._choose(options, request, now)
        output = self._fleet.output(lane.model.name, request)
        read_s, write_s = service_s(lane, request, output, self._settings)
        equals = walk.held.setdefault(waiting.equality, deque())
        if lane.open:
            # Among equals the oldest goes first: it hoped for better, this one takes its place.
            equals.append(waiting)
            first = equals.popleft()
            waiting.wait_s = first.wait_s
            effect = self._grant(first, lane, options, now)
            lane.reading_s += read_s
            lane.streams += 1
            lane.occupy(lane.load_s + read_s + write_s)
            lane.steady = lane.steady and lane.load_s <= 0  # One grant starts a load; the others wait for it.
            self._passed.pop(lane.key, None)
            return effect
        equals.append(waiting)
        waiting.wait_s = max(lane.wait_s(), lane.load_s)
        lane.occupy((lane.load_s if lane.free[0] <= 0 else 0.0) + read_s + write_s)
        walk.passed.update(other.key for other in options.lanes if other.open and other.load_s <= 0)
        options.planned += 1
        options.wait_s = max(options.wait_s, waiting.wait_s)
        options.spacing_s = (read_s + write_s) / sum(len(other.free) for other in options.lanes)
        options.full = options.planned >= self._settings.look_ahead or not any(o.open for o in options.lanes)
        return None

    def _nobody(self, waiting: Waiting, options: Options, now: float) -> Refuse | None:
        """Nobody can serve it: it is refused. But a model that failed and is started again before the deadline is worth
        its wait, in its place in the queue; whoever can serve it sooner takes it. Not for a request that bars somebody:
        after a refusal its edge lets in again whom it has tried, and that may be sooner."""
        request, back_s = waiting.request, None if options.excluded else options.back_s
        if back_s is not None and (request.deadline is None or now + back_s < request.deadline):
            waiting.wait_s = back_s
            return None
        code, text = options.refusal()
        retry_s = max(self._settings.retry_after_s, 1.25 * (back_s or 0.0))  # Its spread never says too soon.
        return Refuse(request.id, self._refusal(code, text, None if code is ErrorCode.MODEL_NOT_FOUND else retry_s))

    def _options(self, walk: Walk, request: Request, now: float) -> Options:
        kind = request.models, request.excluded
        options = walk.options.get(kind)
        if options is None:
            options = walk.options[kind] = self._fleet.options(request, walk.lanes, self._pauses, now)
        return options

    def _choose(self, options: Options, request: Request, now: float) -> Lane:
        """The cheapest; but no node that could start it now stands idle for longer than `idle_bound_s`."""

        def price(lane: Lane) -> tuple[float, tuple[str, str]]:
            output = self._fleet.output(lane.model.name, request)
            return sum(seconds(lane, request, output, self._settings)), lane.key

        best = min(options.lanes, key=price)
        if best.open:
            return best
        idle_since = now - self._settings.idle_bound_s
        overdue = [o for o in options.lanes if o.open and self._passed.get(o.key, now) <= idle_since]
        return min(overdue, key=price) if overdue else best

    def _grant(self, waiting: Waiting, lane: Lane, options: Options, now: float) -> Grant:
        request, node, model = waiting.request, lane.status.node, lane.model.name
        flight = Flight(request, node, model, now, self._lost_at(request, now))
        output = self._fleet.output(model, request)
        flight.read_s, flight.write_s = service_s(lane, request, output, self._settings)
        flight.load_s = lane.load_s
        flight.clean = lane.load_s <= 0 and lane.streams == 0
        flight.streams = lane.streams + 1.0
        decision = self._decision(waiting, lane, options, now)
        self._ledger.add(flight)
        return Grant(request.id, node, model, decision)

    def _decision(self, waiting: Waiting, chosen: Lane, options: Options, now: float) -> Decision:
        request = waiting.request
        priced = [explain(o, request, self._fleet.output(o.model.name, request), self._settings) for o in options.lanes]
        priced.sort(key=lambda c: (c.total_s, c.node))
        facts: dict[str, str | int | float | list[str] | None] = {
            "id": request.id,
            "models": list(request.models),
            "model": options.name,
            "fallback": options.note,
            "idle": self._idle_note(chosen, priced[0], now),
            "prompt_tokens": request.prompt_tokens,
            "max_tokens": request.max_tokens,
            "expected_tokens": round(self._fleet.output(chosen.model.name, request)),
            "priority": request.priority,
            "excluded": list(request.excluded),
        }
        return Decision(
            request=facts,
            chosen=chosen.status.node,
            waited_ms=max(0.0, now - waiting.since) * 1000,
            candidates=(*priced, *options.unfit),
        )

    def _idle_note(self, chosen: Lane, cheapest: Candidate, now: float) -> str | None:
        """Why it is not the cheapest that was chosen: the one exception there is."""
        if (chosen.status.node, chosen.model.name) == (cheapest.node, cheapest.model):
            return None
        idle_s = now - self._passed.get(chosen.key, now)
        return f"it stood idle for {idle_s:.0f} s while requests it can serve waited for a better node"

    def _refusal(self, code: ErrorCode, text: str, retry_s: float | None) -> Refusal:
        spread = None if retry_s is None else round(retry_s * self._rng.uniform(0.8, 1.2), 2)
        return Refusal(code, text, spread, "model" if code is ErrorCode.MODEL_NOT_FOUND else None)
