"""The nodes as the scheduler knows them: what each reported, what has been learned, and who is an option for a request.

Statuses come from nodes; what our own requests prove (a first token: the model is loaded) is believed before the next
report says so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple, TypeAlias

from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus
from router import filters
from router.cost import Lane, Spot, tie_s
from router.errors import ErrorCode
from router.events import Candidate, Request
from router.ledger import Flight, Ledger, Tally
from router.prefix import Mirrors, Weights
from router.settings import RouterSettings
from router.speed import Learner, Rates, Speeds
from router.swap import CAN_ANSWER, IN_MEMORY, Demand, Swaps

COMING = (ModelState.LOADING,)
Found: TypeAlias = tuple[NodeStatus, ModelStatus]


class Ready(NamedTuple):
    """A candidate that has its model in memory and loses nothing by it. `shared`: other models may be placed there."""

    key: tuple[NodeId, str]
    status: NodeStatus
    model: ModelStatus
    learner: Learner
    tally: Tally
    slots: int
    shared: bool
    network_s: float
    tie_s: float


class Options:
    """Who could serve requests of one kind (same names, same excluded nodes). `name` is the first of its names that
    anyone can serve, `note` says why it is not the first asked for; `unfit` holds every "no"."""

    def __init__(self, models: tuple[str, ...], existing: list[str], listed: int) -> None:
        self.models, self.name, self.note = models, "", ""
        self.fits: list[tuple[NodeStatus, ModelStatus]] = []
        self.differ = False  # not all of these have the same weights
        self.ready: tuple[Ready, ...] | None = None  # for the shortcut; None: not looked at yet, (): it is none
        self.unfit: list[Candidate] = []
        self.failures: list[bool] = []  # of each holder that cannot: did something break there?
        self.back_s: float | None = None  # until the first of them is started again
        self.excluded = False  # is one of them a node that this request has tried?
        self.gone: list[str] = []  # names whose holder went down a while ago
        self._existing, self._listed = existing, listed
        self.why: list[str] = []

    def refuse(self, status: NodeStatus, model: ModelStatus, no: filters.Unfit) -> None:
        self.unfit.append(Candidate(status.node, model.name, excluded=no.why))
        self.failures.append(no.failed)
        self.excluded = self.excluded or no.excluded
        if no.back_s is not None:
            self.back_s = no.back_s if self.back_s is None else min(self.back_s, no.back_s)
        self.why.append(f"{status.name or status.node}: {no.why}")

    def refusal(self) -> tuple[ErrorCode, str]:
        """Why nobody can: the name is unknown, or everyone who holds it says no."""
        asked = self.models[0] if self.models else ""
        if self.why:
            code = ErrorCode.MODEL_FAILED if all(self.failures) else ErrorCode.NO_NODE_AVAILABLE
            return code, f"no node can serve {asked!r} now: {'; '.join(self.why)}"
        if self.gone:
            return ErrorCode.NO_NODE_AVAILABLE, f"no node can serve {asked!r} now: {'; '.join(self.gone)}"
        more = len(self._existing) - self._listed
        known = ", ".join(self._existing[: self._listed]) + (f" and {more} more" if more > 0 else "")
        return ErrorCode.MODEL_NOT_FOUND, f"no model is called {asked!r}. There are: {known or 'none yet'}"


class Fleet:
    """Statuses by node, speeds, caches, and models that went away with their nodes."""

    def __init__(self, settings: RouterSettings, ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self.speeds = Speeds(settings)
        self.mirrors = Mirrors(settings)
        self.demand = Demand(settings)
        self._swaps = Swaps(settings, self.speeds, self.demand)
        self._nodes: dict[NodeId, NodeStatus] = {}
        self._models: dict[tuple[NodeId, str], Found] = {}  # of all of them, by MODEL.name
        self._homes: dict[str, int] = {}
        self._coming: dict[tuple[NodeId, str], float] = {}  # loading there since
        self._gone: OrderedDict[str, tuple[str, float]] = OrderedDict()  # name -> (node's name, when)
        self._options: dict[tuple[tuple[str, ...], tuple[NodeId, ...]], Options] = {}

    # What nodes say

    def put(self, status: NodeStatus, now: float) -> None:
        """A node is there, or reports anew."""
        self._swaps.seen(self._nodes.get(status.node), status)
        self._set(status)
        coming = {m.name for m in status.models if m.state in COMING}
        for name in coming:
            self._coming.setdefault((status.node, name), now)
        for key in [k for k in self._coming if k[0] == status.node and k[1] not in coming]:
            del self._coming[key]
        there = {m.name for m in status.models if m.state in IN_MEMORY or self._pending(status.node, m)}
        for model in status.models:
            if model.name not in there:
                self.mirrors.drop(status.node, model.name)

    def drop(self, node: NodeId, now: float) -> None:
        """It is gone; its models stay known by name for a while."""
        status = self._forget(node)
        if status is None:
            return
        self.changed()
        self.mirrors.drop(node)
        self._swaps.drop(node)
        for name in filters.names([status]):
            self._gone.pop(name, None)
            self._gone[name] = status.name or node, now
        while len(self._gone) > self._settings.names_limit:
            self._gone.popitem(last=False)
        for key in [k for k in self._coming if k[0] == node]:
            del self._coming[key]

    def loaded(self, node: NodeId, model: str, took_s: float) -> None:
        self.speeds.loaded(node, model, took_s)
        self.believe(node, model, ModelState.READY)

    def believe(self, node: NodeId, model: str, state: ModelState) -> Found | None:
        """What a request of ours proves, before its node reports it. Returns what `find` does."""
        found = self._models.get((node, model))
        if found is None or found[1].state is state or found[1].state not in (ModelState.ABSENT, *COMING):
            return found  # What failed or is on its way out since then is not put back by an old proof.
        status, old = found
        new = structs.replace(old, state=state)
        self._set(structs.replace(status, models=tuple(new if m is old else m for m in status.models)))
        self._coming.pop((node, model), None)
        return self._models[node, model]

    def ended(self, flight: Flight) -> None:
        """One without a first token. It may have been what made a model load: then who is an option may change."""
        found = self._models.get((flight.node, flight.model))
        if found is None or found[1].state is ModelState.ABSENT:
            self.changed()

    def changed(self) -> None:
        """Who is an option may be another than before."""
        self._options.clear()

    def _set(self, status: NodeStatus) -> None:
        self._forget(status.node)
        self._nodes[status.node] = status
        for model in reversed(status.models):  # The first of a name, should there be two.
            self._models[status.node, model.name] = status, model
        self._homes = Counter(m.name for s in self._nodes.values() if not s.draining for m in s.models if m.own)
        self.changed()

    def _forget(self, node: NodeId) -> NodeStatus | None:
        status = self._nodes.pop(node, None)
        for model in status.models if status is not None else ():
            self._models.pop((node, model.name), None)
        return status

    # What can be asked

    def rates(self, node: NodeId, model: str, now: float) -> Rates | None:
        found = self.find(node, model)
        return None if found is None else self.speeds.rates(*found, now)

    def output(self, model: str, request: Request) -> float:
        """Expected tokens of the answer."""
        return self.speeds.output(model, request.max_tokens)

    def find(self, node: NodeId, model: str) -> Found | None:
        """MODEL.name on `node`; None when it does not hold it."""
        return self._models.get((node, model))

    def resolve(self, node: NodeId, models: tuple[str, ...]) -> str:
        """What the first of these names that `node` holds is called there; without one, the name itself."""
        status = self._nodes.get(node)
        held = [m for name in models if status and (m := filters.match(status, name))]
        return held[0].name if held else (models[0] if models else "")

    def options(self, request: Request, now: float) -> Options:
        """Candidates for the first of the request's names that anyone can serve."""
        kind = request.models, request.excluded
        known = self._options.get(kind)
        if known is not None:
            return known
        statuses = [self._nodes[node] for node in sorted(self._nodes)]
        options = Options(request.models, filters.names(statuses), self._settings.names_listed)
        for name in request.models:
            for status in statuses:
                model = self._fit(options, request, name, status)
                if model is not None:
                    options.fits.append((status, model))
            if options.fits:
                options.name = name
                kinds = {Weights.of(model) for _, model in options.fits}
                options.differ = any(not a.same(b) for a, b in combinations(kinds, 2))
                if name != request.models[0]:
                    options.note = f"no node can serve {request.models[0]!r} now, {name!r} is its fallback"
                break
            gone = self._gone.get(name)
            if gone is not None and now - gone[1] <= self._settings.gone_memory_s:
                options.gone.append(f"{gone[0]} held it and is gone")
        if options.fits:  # Refusals name times that pass.
            if len(self._options) >= self._settings.kinds_limit:
                self._options.clear()
            self._options[kind] = options
        return options

    def early_s(self, request: Request, now: float) -> float:
        """How much earlier `request` counts to have come: most for one that a node could answer at once from its
        cache, 0 for one that nobody knows."""
        settings, least = self._settings, 0.0
        if not request.blocks:
            return 0.0
        for status, model in self.options(request, now).fits:
            held = self.mirrors.of(status.node, model).match(request.blocks) * request.block_tokens
            if held >= settings.early_part * request.prompt_tokens:
                new = max(0, request.prompt_tokens - held)
                read_s = self.speeds.pace(status, model, now).read_s(new, held)
                least = max(least, settings.early_s - settings.early_per_s * read_s)
        return least

    def _fit(self, options: Options, request: Request, name: str, status: NodeStatus) -> ModelStatus | None:
        """The model that `name` means there, if it can serve the request; else the reason goes into `options`."""
        model = filters.match(status, name)
        if model is None:
            options.unfit.append(Candidate(status.node, name, excluded=filters.ABSENT))
            return None
        promised = self._promised(status, model)
        pending = self._pending(status.node, model)
        no = filters.unfit(status, model, request, pending=pending, promised_bytes=promised)
        if no is not None:
            options.refuse(status, model, no)
            return None
        return model

    def ready(self, options: Options, now: float) -> tuple[Ready, ...]:
        """All candidates, if each has its model in memory, loses nothing by it, and runs nothing but our grants; else
        none."""
        if options.ready is None:
            one_name = len({model.name for _, model in options.fits}) == 1
            plain = (
                one_name
                and not options.differ
                and all(
                    model.state in CAN_ANSWER
                    and status.foreign_in_flight <= 0
                    and model.foreign_in_flight <= 0
                    and (model.own or len(status.models) == 1)
                    for status, model in options.fits
                )
            )
            for status, model in options.fits:
                self.mirrors.of(status.node, model)
            options.ready = tuple(
                Ready(
                    (status.node, model.name),
                    status,
                    model,
                    self.speeds.learner(status, model, now),
                    self._ledger.tally(status.node),
                    max(1, model.slots),
                    len(status.models) > 1,
                    max(0.0, status.rtt_s),
                    tie_s(status, self._settings),
                )
                for status, model in (options.fits if plain else ())
            )
        return options.ready

    # One walk's view

    def spot(self, status: NodeStatus, now: float) -> Spot:
        tally = self._ledger.tally(status.node)
        spot = Spot(tally.busy_s(now) if tally.reading else 0.0, tally.streams, quick=tally.quick)
        spot.streams += max(0, status.foreign_in_flight)
        return spot

    def lane(
        self,
        status: NodeStatus,
        model: ModelStatus,
        spot: Spot,
        pauses: Mapping[tuple[str, str], float],
        now: float,
    ) -> Lane:
        """That model as it is now."""
        lane = Lane(status, model, self.speeds.pace(status, model, now), self.mirrors.of(status.node, model), spot)
        tally = self._ledger.tally(status.node)
        self._slots(lane, tally, now)
        if model.state not in CAN_ANSWER or len(status.models) > 1:
            self._load(lane, tally, now)
        until = pauses.get((status.node, model.name))
        if until is not None and until > now:
            lane.steady, lane.pause_s = False, until - now
        return lane

    def _slots(self, lane: Lane, tally: Tally, now: float) -> None:
        flights = tally.flights.get(lane.model.name)
        if flights:
            lane.taken = len(flights)
            lane.lefts = sorted(f.left_s(now) for f in flights.values())
        status, model = lane.status, lane.model
        if status.foreign_in_flight > 0 or model.foreign_in_flight > 0:
            unnamed = status.foreign_in_flight - sum(m.foreign_in_flight for m in status.models)
            mean_s = max(0.05, self.speeds.output(model.name, 0) * lane.pace.step_s / 2)
            for _ in range(max(0, model.foreign_in_flight) + max(0, unnamed)):
                lane.hold(mean_s)

    def _load(self, lane: Lane, tally: Tally, now: float) -> None:
        """When the model could begin, and who leaves memory for it."""
        node, model = lane.status.node, lane.model
        whole = lane.whole_s = self.speeds.load_s(node, model)
        taking = next((f for f in tally.reading.values() if model.name in f.evicts), None)
        if taking is not None and model.state in IN_MEMORY:
            lane.evicts, lane.steady = (taking.model,), False
            lane.drain_s = self._drain_s(tally, lane.evicts, now)
            lane.load_s = lane.drain_s + whole
            lane.load_why = f"it leaves memory for {taking.model!r}, then loading takes about {whole:.1f} s"
        elif model.state in CAN_ANSWER:
            lane.guard = self._swaps.guard(lane, self._homes, now)
        elif (since := self._coming_since(node, model)) is not None:
            left = max(whole - (now - since), 0.1 * (now - since), 0.05)
            lane.coming, lane.steady, lane.load_s = True, False, left
            lane.load_why = f"{model.state.value} for {now - since:.1f} s, about {left:.1f} s to go"
        elif model.state is ModelState.ABSENT:
            lane.evicts = self._swaps.evicts(lane.status, model)
            lane.drain_s = self._drain_s(tally, lane.evicts, now)
            lane.load_s = lane.drain_s + whole
            lane.load_why = f"not in memory there, loading takes about {whole:.1f} s"
            if lane.evicts:
                last = f" once its answers have ended in {lane.drain_s:.1f} s" if lane.drain_s > 0 else ""
                lane.load_why += f"; {', '.join(map(repr, lane.evicts))} has to leave for it{last}"
                lane.back_s = max(self.speeds.load_s(node, m) for m in lane.status.models if m.name in lane.evicts)
                lane.guard = self._swaps.guard(lane, self._homes, now)
        else:
            lane.steady, lane.load_s = False, whole
            lane.load_why = f"{model.state.value} there, then loading takes about {whole:.1f} s"

    def _drain_s(self, tally: Tally, models: tuple[str, ...], now: float) -> float:
        """Seconds until nothing of ours runs on these."""
        return max((f.left_s(now) for m in models for f in tally.flights.get(m, {}).values()), default=0.0)

    def _coming_since(self, node: NodeId, model: ModelStatus) -> float | None:
        """When it began to load, by its node's report or our own grant."""
        since = self._coming.get((node, model.name))
        if since is not None or model.state is not ModelState.ABSENT:
            return since
        return min((f.begin for f in self._ledger.on(node, model.name) if f.first_at is None), default=None)

    def _pending(self, node: NodeId, model: ModelStatus) -> bool:
        """A grant of ours makes it load, though its node does not say so yet."""
        return model.state is ModelState.ABSENT and any(f.first_at is None for f in self._ledger.on(node, model.name))

    def _promised(self, status: NodeStatus, model: ModelStatus) -> int:
        """Bytes that loads started by our own grants will take on that node, `model` aside."""
        flying = set(self._ledger.tally(status.node).flights) - {model.name}
        return sum(m.size_bytes for m in status.models if m.name in flying and self._pending(status.node, m))
