"""Scheduler: the mesh's one queue. Late binding: a request is granted only when its best node can start it now.

On every event the queue is walked in order. Each request takes its cheapest candidate (`filters`, `cost`); if that one
can start it, it is granted, else it holds a place there that the requests behind it see, and stays in the queue. What
this scheduler sent out itself (`ledger`) counts at once; reports of nodes only add what others sent.
"""

from __future__ import annotations

from functools import partial
from random import Random

from node.types import NodeId, RequestId, Usage
from router import explain
from router.cost import Held, Price, price
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
    Why,
)
from router.fair import Queue, Waiting
from router.fleet import Fleet, Options
from router.ledger import Flight, Ledger
from router.lessons import Lessons
from router.reasons import Reasons
from router.settings import RouterSettings
from router.shortcut import Found, Seen, quickest
from router.speed import Rates
from router.walk import Choice, Kind, Walk

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


class Scheduler:
    """`step(event, now) -> effects`; wake it with a Tick at `deadline` (None: only events). `now` never goes back."""

    def __init__(self, settings: RouterSettings, rng: Random) -> None:
        self._settings, self._rng = settings, rng
        self._ledger = Ledger(settings)
        self._fleet = Fleet(settings, self._ledger)
        self._lessons = Lessons(settings, self._fleet, self._ledger)
        self._queue = Queue(settings.low_priority_s)
        self._walked = 0.0  # when
        self._passed: dict[tuple[str, str], float] = {}  # lane -> since when it could start a waiting request
        self._pauses: dict[tuple[str, str], float] = {}  # lane -> until when it gets nothing after `node_busy`

    # What can be asked

    @property
    def deadline(self) -> float | None:
        first = self._ledger.lost_at
        if not len(self._queue):
            return first
        times = [t for t in (first, self._queue.deadline) if t is not None]
        times += self._pauses.values()
        times += self._ledger.wakes(self._walked)
        times += [self._walked + self._settings.recheck_s] if self._passed else []
        return min(times, default=None)

    def waiting(self) -> list[tuple[RequestId, int, float]]:
        """(id, position from 1, expected seconds until a grant), in the queue's order."""
        return [(w.request.id, i, w.wait_s) for i, w in enumerate(self._queue.ordered(self._walked), 1)]

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
        self._fleet.changed()

    # What happens

    def step(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        effects: list[SchedulerEffect] = []
        match event:
            case Submit():
                effects += self._submit(event.request, now - max(0.0, event.age_s), now)
            case Started():
                pass  # It holds its slot since the grant.
            case FirstToken(request, cached):
                self._first(request, cached, now)
            case Finished(request, outcome, usage):
                self._finish(request, outcome, usage, now)
            case NodeUp(status) | NodeChanged(status):
                self._fleet.put(status, now)
            case NodeDown(node):
                self._fleet.drop(node, now)
                self._ledger.drop(node)
            case Cancel(request):
                self._finish(request, "cancelled", Usage(), now)
            case Adopt():
                self._adopt(event, now)
            case Loaded(node, model, took_s):
                self._fleet.loaded(node, model, took_s)
            case Tick():
                for flight in self._ledger.lost(now):
                    self._finish(flight.request.id, "cancelled", Usage(), now)
        self._walk(effects, now)
        return effects

    def _submit(self, request: Request, since: float, now: float) -> list[SchedulerEffect]:
        if request.id in self._ledger:
            return []  # Said twice: the grant stands.
        known = self._queue.get(request.id)
        if known is not None:
            self._queue.replace(known, request)  # Said again: it keeps its place, whatever else changed.
            return []
        self._fleet.demand.note(request.models[0], request.prompt_tokens, now)
        if len(self._queue) >= self._settings.queue_limit:
            text = f"the queue is full: {len(self._queue)} requests wait already"
            wait_s = min(max(1.0, self._queue.ordered(now)[0].wait_s), 60.0)
            error = self._refusal(ErrorCode.MESH_SATURATED, text, wait_s)
            return [Refuse(request.id, error, self.denial(request, error, now - since, now))]
        if not len(self._queue) and not self._pauses and (request.deadline is None or request.deadline > now):
            options = self._fleet.options(request, now)
            found = quickest(self._fleet, options, request, self._settings, now)
            if found is not None:
                return [self._grant_at_once(request, found, options, since, now)]
        self._queue.add(request, since, self._fleet.early_s(request, now))
        return []

    def _grant_at_once(self, request: Request, found: Found, options: Options, since: float, now: float) -> Grant:
        here, seen = found.ready[found.best], found.seen[found.best]
        node, name = here.key
        streams = seen.streams if isinstance(seen, Seen) else 0
        flight = Flight(request, node, name, now, self._lost_at(request, now))
        flight.expect(0.0, found.read_s, found.write_s, seen[0], streams)
        self._lessons.granted(flight, here.model)
        self._ledger.add(flight, now)
        settings = self._settings

        def why() -> Reasons:
            return explain.granted_at_once(explain.Case(request, now - since, None, options), found, settings)

        return Grant(request.id, node, name, Why(why))

    def _first(self, request: RequestId, cached_tokens: int, now: float) -> None:
        flight = self._ledger.get(request)
        if flight is not None and flight.first_at is None:
            self._lessons.first(flight, cached_tokens, now)

    def _finish(self, request: RequestId, outcome: Outcome, usage: Usage, now: float) -> None:
        self._queue.remove(request)
        flight = self._ledger.remove(request, now)
        if flight is None:
            return
        if flight.first_at is None:
            self._fleet.ended(flight)
        if outcome == "busy":
            self._pauses[flight.node, flight.model] = now + self._settings.busy_pause_s
        elif outcome == "ok":
            self._lessons.ended(flight, usage, now)

    def _adopt(self, event: Adopt, now: float) -> None:
        """It runs already: a fact, counted even where it goes past the slots."""
        request, node = event.request, event.node
        self._queue.remove(request.id)
        model = event.model or self._fleet.resolve(node, request.models)
        begin = now - max(0.0, event.sent_s_ago)
        flight = Flight(request, node, model, begin, self._lost_at(request, begin))
        found = self._fleet.find(node, model)
        if found is not None:
            lane = self._fleet.lane(*found, self._fleet.spot(found[0], now), {}, now)
            self._begin(flight, price(lane, request, self._fleet.output(model, request), self._settings))
            flight.clean = False
        flight.first_at = now if event.first_token else None
        self._ledger.add(flight, now)
        self._fleet.changed()

    def _lost_at(self, request: Request, granted_at: float) -> float:
        if request.deadline is None:
            return granted_at + self._settings.granted_limit_s
        return max(request.deadline, granted_at) + self._settings.overdue_s

    # The walk

    def _walk(self, effects: list[SchedulerEffect], now: float) -> None:
        self._walked = now
        if self._pauses:
            self._pauses = {lane: until for lane, until in self._pauses.items() if until > now}
        if not len(self._queue):
            if self._passed:
                self._passed.clear()
            return
        walk = Walk(self._fleet, self._settings, self._pauses, self._passed, now)
        ahead = 0
        for waiting in self._queue.ordered(now):
            effect = self._place(waiting, walk, ahead, now)
            if effect is not None:
                effects.append(effect)
            else:
                ahead += 1
        for effect in effects:
            self._queue.remove(effect.id, served=isinstance(effect, Grant))  # Maybe an older one than was looked at.
        self._passed = {k: self._passed.get(k, now) for k in sorted(walk.passed) if walk.lanes[k].open}

    def _place(self, waiting: Waiting, walk: Walk, ahead: int, now: float) -> SchedulerEffect | None:
        """Grants, refuses, or (None) leaves it in the queue with a place reserved and `wait_s` known. `ahead` that stay
        in the queue stand before it."""
        request = waiting.request
        kind = walk.kind(request)
        if request.deadline is not None and request.deadline <= now:
            return self._refuse(waiting, self._too_late(kind, now - waiting.since), walk, now)
        if not kind.lanes:
            return self._nobody(waiting, walk, ahead, now)
        if kind.full:
            kind.wait_s += kind.spacing_s  # Nobody of its kind can start now; planning it exactly is dear.
            waiting.wait_s = kind.wait_s
            if waiting.held is None and kind.held is not None:
                waiting.held = kind.held._replace(ahead=ahead)
            return None
        choice = walk.choose(kind, request)
        if not choice.best.lane.open:
            walk.hold(kind, choice, waiting, ahead)
            return None
        first = walk.start(waiting)
        effect = self._grant(first, choice, kind.options, now)
        walk.started(choice)
        return effect

    def _nobody(self, waiting: Waiting, walk: Walk, ahead: int, now: float) -> Refuse | None:
        """Nobody can serve it: it is refused. But a model that failed and is started again before the deadline is worth
        its wait, in its place in the queue; whoever can serve it sooner takes it. Not for a request that bars somebody:
        after a refusal its edge lets in again whom it has tried, and that may be sooner."""
        request, options = waiting.request, walk.kind(waiting.request).options
        back_s = None if options.excluded else options.back_s
        if back_s is not None and (request.deadline is None or now + back_s < request.deadline):
            waiting.wait_s = back_s
            waiting.held = waiting.held or Held(ahead, why=f"nobody could serve it: {'; '.join(options.why)}")
            return None
        code, text = options.refusal()
        retry_s = max(self._settings.retry_after_s, 1.25 * (back_s or 0.0))  # Its spread never says too soon.
        error = self._refusal(code, text, None if code is ErrorCode.MODEL_NOT_FOUND else retry_s)
        return self._refuse(waiting, error, walk, now)

    def _refuse(self, waiting: Waiting, error: Refusal, walk: Walk, now: float) -> Refuse:
        request, kind = waiting.request, walk.kind(waiting.request)
        case = explain.Case(request, now - waiting.since, waiting.held, kind.options)
        return Refuse(request.id, error, self._denial(case, walk, kind, error))

    def denial(self, request: Request, error: Refusal, age_s: float, now: float) -> Decision:
        """Why it is refused with `error`, for a request that is in no queue: what it would have cost without those that
        wait, or why nobody can serve it."""
        walk = Walk(self._fleet, self._settings, self._pauses, self._passed, now)
        kind = walk.kind(request)
        return self._denial(explain.Case(request, age_s, None, kind.options), walk, kind, error)

    def _denial(self, case: explain.Case, walk: Walk, kind: Kind, error: Refusal) -> Decision:
        choice = walk.choose(kind, case.request) if kind.lanes else None
        return explain.refused(case, choice, error, self._settings)

    def _grant(self, waiting: Waiting, choice: Choice, options: Options, now: float) -> Grant:
        request, lane = waiting.request, choice.best.lane
        self._fly(request, choice.best, now)
        self._passed.pop(lane.key, None)
        case = explain.Case(request, now - waiting.since, waiting.held, options)
        why = partial(explain.granted, case, choice, self._settings)
        return Grant(request.id, lane.status.node, lane.model.name, Why(why))

    def _fly(self, request: Request, price: Price, now: float) -> None:
        """It takes its slot."""
        lane = price.lane
        flight = Flight(request, lane.status.node, lane.model.name, now, self._lost_at(request, now))
        self._begin(flight, price)
        self._ledger.add(flight, now)
        if flight.load_s > 0:
            self._fleet.changed()

    def _begin(self, flight: Flight, price: Price) -> None:
        """In the place that `price` told of."""
        flight.expect(price.terms[1], price.read_s, price.write_s, price.cached, price.streams)
        flight.evicts = price.lane.evicts
        self._lessons.granted(flight, price.lane.model)

    def _too_late(self, kind: Kind, waited_s: float) -> Refusal:
        """The deadline passed in the queue: says what it was waiting for."""
        full = [(o.status.name or o.status.node) + (f" ({o.load_why})" if o.load_s > 0 else "") for o in kind.lanes]
        why = "; ".join(kind.options.why)
        what = f"a free slot on {', '.join(full)}" if full else f"a node that can serve it ({why})"
        asked = kind.options.models[0]
        return Refusal(ErrorCode.DEADLINE_EXCEEDED, f"waited {waited_s:.1f} s for {what} to run {asked!r}")

    def _refusal(self, code: ErrorCode, text: str, retry_s: float | None) -> Refusal:
        spread = None if retry_s is None else round(retry_s * self._rng.uniform(0.8, 1.2), 2)
        return Refusal(code, text, spread, "model" if code is ErrorCode.MODEL_NOT_FOUND else None)
