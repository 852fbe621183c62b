"""One walk of the queue: each request takes its cheapest lane as those before it have left the mesh.

If that lane can start it, it is granted; else it holds a place there, which the requests behind it see, and stays in
the queue. Nothing outlives a walk but what the Scheduler keeps of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence

from node.types import ModelStatus, NodeId, NodeStatus
from router.cost import Held, Lane, Price, Spot, place, price
from router.events import Request
from router.fair import Waiting
from router.fleet import Fleet, Options
from router.prefix import Weights
from router.settings import RouterSettings
from router.speed import guessed

LaneKey = tuple[str, str]


class Kind:
    """Requests of one kind in one walk: who could serve them, and how far the walk has planned them."""

    def __init__(self, options: Options, lanes: list[Lane]) -> None:
        self.options, self.lanes = options, lanes
        self.full = False  # nobody could start one more of them now
        self.held: Held | None = None  # what kept the first of them
        self.planned = 0
        self.wait_s = self.spacing_s = 0.0


class Choice:
    """Where one request goes in this walk: `best` of `prices`. `idle_s` when the cheapest was passed over because this
    lane had stood idle for so long."""

    __slots__ = ("best", "idle_s", "others", "prices")

    def __init__(self, best: Price, prices: list[Price]) -> None:
        self.best, self.prices = best, prices
        self.idle_s: float | None = None
        self.others: list[Lane] = []  # that hold other weights than the conversation began with


class Walk:
    """`passed`: lanes that could have started a request that waits for a better one instead."""

    def __init__(
        self,
        fleet: Fleet,
        settings: RouterSettings,
        pauses: Mapping[LaneKey, float],
        idle: Mapping[LaneKey, float],
        now: float,
    ) -> None:
        self._fleet, self._settings, self._pauses, self._idle, self._now = fleet, settings, pauses, idle, now
        self.lanes: dict[LaneKey, Lane] = {}
        self.passed: set[LaneKey] = set()
        self._spots: dict[NodeId, Spot] = {}
        self._kinds: dict[tuple[tuple[str, ...], tuple[NodeId, ...]], Kind] = {}
        self._held: dict[Hashable, deque[Waiting]] = {}  # placed, but not to start now: equal requests, oldest first

    def kind(self, request: Request) -> Kind:
        key = request.models, request.excluded
        kind = self._kinds.get(key)
        if kind is None:
            options = self._fleet.options(request, self._now)
            kind = self._kinds[key] = Kind(options, [self._lane(*fit) for fit in options.fits])
        return kind

    def _lane(self, status: NodeStatus, model: ModelStatus) -> Lane:
        key = status.node, model.name
        lane = self.lanes.get(key)
        if lane is None:
            spot = self._spots.get(status.node)
            if spot is None:
                spot = self._spots[status.node] = self._fleet.spot(status, self._now)
            lane = self.lanes[key] = self._fleet.lane(status, model, spot, self._pauses, self._now)
        return lane

    def choose(self, kind: Kind, request: Request) -> Choice:
        """The cheapest; but no node that could start it now stands idle for longer than `idle_bound_s`; and one whose
        speed nobody knows has a try soon, or it would never be known."""
        lanes, others = self._same_weights(kind, request)
        fleet, settings = self._fleet, self._settings
        name = lanes[0].model.name
        output, again_s = fleet.output(name, request), self._again_s(lanes, request)
        prices = [
            price(
                o,
                request,
                output if o.model.name == name else fleet.output(o.model.name, request),
                settings,
                again_s=again_s,
            )
            for o in lanes
        ]
        choice = Choice(cheapest(prices), prices)
        choice.others = others
        if not choice.best.lane.open and self._idle:
            overdue = [p for p in prices if p.lane.open and self._overdue(p.lane)]
            if overdue:
                choice.best = cheapest(overdue)
                choice.idle_s = self._now - self._idle[choice.best.lane.key]
        return choice

    def _again_s(self, lanes: Sequence[Lane], request: Request) -> float:
        """Expected seconds of reading if this turn goes to a guest: once the machine's own model is back, the next one
        is read anew where the model is at home, but for what that holds already."""
        if not request.blocks or all(o.model.own for o in lanes):
            return 0.0
        home = [(o, o.cached(request)) for o in lanes if o.model.own]
        least = min((o.pace.read_s(request.prompt_tokens - cached, cached) for o, cached in home), default=0.0)
        return least * self._fleet.speeds.goes_on(lanes[0].model.name)

    def _overdue(self, lane: Lane) -> bool:
        settings, idle_s = self._settings, self._now - self._idle.get(lane.key, self._now)
        untried = lane.pace.learned == 0 and guessed(lane.status, lane.model, settings)
        return idle_s >= (settings.untried_s if untried else settings.idle_bound_s)

    def _same_weights(self, kind: Kind, request: Request) -> tuple[list[Lane], list[Lane]]:
        """Where a name means different weights, a conversation stays on those it began with, as long as they live."""
        if kind.options.differ and request.knows:
            began = self._fleet.mirrors.began(request.knows)
            same = [o for o in kind.lanes if began is not None and began.same(Weights.of(o.model))]
            if same:
                return same, [o for o in kind.lanes if o not in same]
        return kind.lanes, []

    def start(self, waiting: Waiting) -> Waiting:
        """It can start now: the oldest of its equals does, which hoped for better, and this one takes its place."""
        equals = self._held.setdefault(waiting.equality, deque())
        equals.append(waiting)
        first = equals.popleft()
        waiting.wait_s = first.wait_s
        return first

    def started(self, choice: Choice) -> None:
        """After the grant: the rest of the walk sees it."""
        place(choice.best)
        lane = choice.best.lane
        lane.steady = lane.steady and choice.best.terms[1] <= 0  # One grant starts a load; the others wait for it.

    def hold(self, kind: Kind, choice: Choice, waiting: Waiting, ahead: int) -> None:
        """It waits for its place, and so do `ahead` before it."""
        best, lane = choice.best, choice.best.lane
        if waiting.held is None:
            free = [p for p in choice.prices if p.lane.open]
            waiting.held = Held(ahead, best, cheapest(free) if free else None)
        kind.held = kind.held or waiting.held
        self._held.setdefault(waiting.equality, deque()).append(waiting)
        waiting.wait_s = best.terms[0] + (best.terms[1] if lane.coming or lane.drain_s > 0 else 0.0)
        self.passed.update(p.lane.key for p in choice.prices if p.lane.open)
        place(best)
        if waiting.request.blocks:
            lane.spot.ahead.update(waiting.request.blocks)
        kind.planned += 1
        kind.wait_s = max(kind.wait_s, waiting.wait_s)
        kind.spacing_s = (best.read_s + best.write_s) / sum(o.slots for o in kind.lanes)
        kind.full = kind.planned >= self._settings.look_ahead or not any(o.open for o in kind.lanes)


def cheapest(prices: Sequence[Price]) -> Price:
    """Ties by id: every node agrees."""
    best = prices[0]
    for other in prices[1:]:
        if other.total < best.total or (other.total == best.total and other.lane.key < best.lane.key):
            best = other
    return best
