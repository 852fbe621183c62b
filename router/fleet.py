"""The nodes as the scheduler knows them: what each reported, what has been learned, and who is an option for a request.

Statuses come from nodes; what our own requests prove (a first token: the model is loaded) is believed before the next
report says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus
from router import filters
from router.cost import Lane
from router.errors import ErrorCode, Refusal
from router.events import Candidate, Request
from router.ledger import Flight, Ledger
from router.settings import RouterSettings
from router.speed import Rates, Speeds

LanesByKey = dict[tuple[str, str], Lane]
CAN_ANSWER = (ModelState.READY, ModelState.BUSY)
COMING = (ModelState.LOADING,)


class Options:
    """Who could serve requests of one kind (same names, same excluded nodes) in one walk. `name` is the first of its
    names that anyone can serve, `note` says why it is not the first asked for; `unfit` holds every "no"."""

    def __init__(self, models: tuple[str, ...], existing: list[str], listed: int) -> None:
        self.models, self.name, self.note = models, "", ""
        self.lanes: list[Lane] = []
        self.unfit: list[Candidate] = []
        self.failures: list[bool] = []  # of each holder that cannot: did something break there?
        self.back_s: float | None = None  # until the first of them is started again
        self.excluded = False  # is one of them a node that this request has tried?
        self.gone: list[str] = []  # names whose holder went down a while ago
        self._existing, self._listed = existing, listed
        self._why: list[str] = []
        # What the walk has found out since
        self.full = False
        self.planned = 0
        self.wait_s = self.spacing_s = 0.0

    def refuse(self, status: NodeStatus, model: ModelStatus, no: filters.Unfit) -> None:
        self.unfit.append(Candidate(status.node, model.name, excluded=no.why))
        self.failures.append(no.failed)
        self.excluded = self.excluded or no.excluded
        if no.back_s is not None:
            self.back_s = no.back_s if self.back_s is None else min(self.back_s, no.back_s)
        self._why.append(f"{status.name or status.node}: {no.why}")

    def refusal(self) -> tuple[ErrorCode, str]:
        """Why nobody can: the name is unknown, or everyone who holds it says no."""
        asked = self.models[0] if self.models else ""
        if self._why:
            code = ErrorCode.MODEL_FAILED if all(self.failures) else ErrorCode.NO_NODE_AVAILABLE
            return code, f"no node can serve {asked!r} now: {'; '.join(self._why)}"
        if self.gone:
            return ErrorCode.NO_NODE_AVAILABLE, f"no node can serve {asked!r} now: {'; '.join(self.gone)}"
        more = len(self._existing) - self._listed
        known = ", ".join(self._existing[: self._listed]) + (f" and {more} more" if more > 0 else "")
        return ErrorCode.MODEL_NOT_FOUND, f"no model is called {asked!r}. There are: {known or 'none yet'}"

    def too_late(self, waited_s: float) -> Refusal:
        """The deadline passed in the queue: says what it was waiting for."""
        full = [f"{o.status.name or o.status.node} ({o.load_why})" for o in self.lanes]
        what = f"a free slot on {', '.join(full)}" if full else f"a node that can serve it ({'; '.join(self._why)})"
        return Refusal(ErrorCode.DEADLINE_EXCEEDED, f"waited {waited_s:.1f} s for {what} to run {self.models[0]!r}")


class Fleet:
    """Statuses by node, speeds, and models that went away with their nodes."""

    def __init__(self, settings: RouterSettings, ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self._speeds = Speeds(settings)
        self._nodes: dict[NodeId, NodeStatus] = {}
        self._coming: dict[tuple[NodeId, str], float] = {}  # loading there since
        self._gone: OrderedDict[str, tuple[str, float]] = OrderedDict()  # name -> (node's name, when)

    def put(self, status: NodeStatus, now: float) -> None:
        """A node is there, or reports anew."""
        self._nodes[status.node] = status
        for model in status.models:
            if model.state in COMING:
                self._coming.setdefault((status.node, model.name), now)
        coming = {m.name for m in status.models if m.state in COMING}
        for key in [k for k in self._coming if k[0] == status.node and k[1] not in coming]:
            del self._coming[key]

    def drop(self, node: NodeId, now: float) -> None:
        """It is gone; its models stay known by name for a while."""
        status = self._nodes.pop(node, None)
        if status is None:
            return
        for name in filters.names([status]):
            self._gone.pop(name, None)
            self._gone[name] = status.name or node, now
        while len(self._gone) > self._settings.names_limit:
            self._gone.popitem(last=False)
        for key in [k for k in self._coming if k[0] == node]:
            del self._coming[key]

    def loaded(self, node: NodeId, model: str, took_s: float) -> None:
        self._speeds.loaded(node, model, took_s)
        self._believe(node, model, ModelState.READY)

    def proved(self, flight: Flight, cached_tokens: int, now: float) -> None:
        """First token of `flight`: the model is loaded there, and if nothing disturbed it, this is its speed."""
        self._believe(flight.node, flight.model, ModelState.READY)
        found = self._find(flight.node, flight.model)
        others = [f for f in self._ledger.on(flight.node, flight.model) if f is not flight]
        if found is not None and flight.clean and not others:
            tokens = flight.request.prompt_tokens - cached_tokens
            self._speeds.read(*found, tokens, now - flight.begin - max(0.0, found[0].rtt_s), now)

    def ended(self, flight: Flight, completion: int, now: float) -> None:
        """`flight` ended well after `completion` tokens."""
        found = self._find(flight.node, flight.model)
        if completion <= 0:
            return
        self._speeds.ended(flight.model, completion)
        if found is not None and flight.first_at is not None:
            streams = (flight.streams + 1 + len(self._ledger.on(flight.node, flight.model))) / 2
            self._speeds.wrote(*found, completion - 1, now - flight.first_at, streams=streams, now=now)

    def rates(self, node: NodeId, model: str, now: float) -> Rates | None:
        found = self._find(node, model)
        return None if found is None else self._speeds.rates(*found, now)

    def output(self, model: str, request: Request) -> float:
        """Expected tokens of the answer."""
        return self._speeds.output(model, request.max_tokens)

    def resolve(self, node: NodeId, models: tuple[str, ...]) -> str:
        """What the first of these names that `node` holds is called there; without one, the name itself."""
        status = self._nodes.get(node)
        held = [m for name in models if status and (m := filters.match(status, name))]
        return held[0].name if held else (models[0] if models else "")

    def options(
        self, request: Request, lanes: LanesByKey, pauses: Mapping[tuple[str, str], float], now: float
    ) -> Options:
        """Candidates for the first of the request's names that anyone can serve. `lanes` are this walk's, shared."""
        statuses = [self._nodes[node] for node in sorted(self._nodes)]
        options = Options(request.models, filters.names(statuses), self._settings.names_listed)
        for name in request.models:
            for status in statuses:
                fit = self._fit(options, request, name, status)
                if fit is None:
                    continue
                key = status.node, fit.name
                if key not in lanes:
                    lanes[key] = self._lane(status, fit, now)
                    if key in pauses:
                        lanes[key].steady, lanes[key].pause_s = False, max(0.0, pauses[key] - now)
                options.lanes.append(lanes[key])
            if options.lanes:
                options.name = name
                if name != request.models[0]:
                    options.note = f"no node can serve {request.models[0]!r} now, {name!r} is its fallback"
                break
            gone = self._gone.get(name)
            if gone is not None and now - gone[1] <= self._settings.gone_memory_s:
                options.gone.append(f"{gone[0]} held it and is gone")
        return options

    def _fit(self, options: Options, request: Request, name: str, status: NodeStatus) -> ModelStatus | None:
        """The model that `name` means there, if it can serve the request; else the reason goes into `options`."""
        model = filters.match(status, name)
        if model is None:
            options.unfit.append(Candidate(status.node, name, excluded=filters.ABSENT))
            return None
        promised = self._promised(status, model)
        pending = self._pending_since(status.node, model) is not None
        no = filters.unfit(status, model, request, pending=pending, promised_bytes=promised)
        if no is not None:
            options.refuse(status, model, no)
            return None
        return model

    def lane(self, node: NodeId, model: str, now: float) -> Lane | None:
        """MODEL.name on `node` as it is now; None when it does not hold it."""
        found = self._find(node, model)
        return None if found is None else self._lane(*found, now)

    def _lane(self, status: NodeStatus, model: ModelStatus, now: float) -> Lane:
        rates = self._speeds.rates(status, model, now)
        load_s, why, steady = self._load(status.node, model, now)
        lane = Lane(status, model, rates, load_s, why)
        lane.steady = steady
        unnamed = status.foreign_in_flight - sum(m.foreign_in_flight for m in status.models)
        foreign = max(0, model.foreign_in_flight) + max(0, unnamed)
        mean_s = self._speeds.output(model.name, 0) / rates.decode_tps
        self._ledger.fill(lane, foreign, mean_s, now)
        return lane

    def _load(self, node: NodeId, model: ModelStatus, now: float) -> tuple[float, str, bool]:
        """(seconds until it could begin, why, whether a grant now starts something)."""
        if model.state in CAN_ANSWER:
            return 0.0, "loaded", True
        whole = self._speeds.load_s(node, model)
        since = self._coming.get((node, model.name))
        since = self._pending_since(node, model) if since is None else since
        if since is not None:
            left = max(whole - (now - since), 0.1 * (now - since), 0.05)
            return left, f"{model.state.value} for {now - since:.1f} s, about {left:.1f} s to go", False
        if model.state is ModelState.ABSENT:
            return whole, f"not in memory there, loading takes about {whole:.1f} s", True
        return whole, f"{model.state.value} there, then loading takes about {whole:.1f} s", False

    def _pending_since(self, node: NodeId, model: ModelStatus) -> float | None:
        """When the grant was given that makes an absent model load."""
        if model.state is not ModelState.ABSENT:
            return None
        return min((f.begin for f in self._ledger.on(node, model.name) if f.first_at is None), default=None)

    def _promised(self, status: NodeStatus, model: ModelStatus) -> int:
        """Bytes that loads started by our own grants will take on that node, `model` aside."""
        flying = set(self._ledger.models(status.node)) - {model.name}
        pending = [m for m in status.models if m.name in flying and self._pending_since(status.node, m) is not None]
        return sum(m.size_bytes for m in pending)

    def _find(self, node: NodeId, model: str) -> tuple[NodeStatus, ModelStatus] | None:
        status = self._nodes.get(node)
        found = next((m for m in status.models if m.name == model), None) if status else None
        return (status, found) if status and found else None

    def _believe(self, node: NodeId, model: str, state: ModelState) -> None:
        found = self._find(node, model)
        if found is None or found[1].state not in (ModelState.ABSENT, *COMING):
            return  # What failed or is on its way out since then is not put back by an old proof.
        status, old = found
        new = structs.replace(old, state=state)
        self._nodes[node] = structs.replace(status, models=tuple(new if m is old else m for m in status.models))
        self._coming.pop((node, model), None)
