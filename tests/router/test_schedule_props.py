"""What holds for every fleet and every order of events."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, Pressure, RequestId, Usage
from router.events import Outcome
from router.filters import match, unfit
from router.schedule import (
    Adopt,
    Cancel,
    Finished,
    FirstToken,
    Grant,
    NodeChanged,
    NodeDown,
    NodeUp,
    Refuse,
    Request,
    Scheduler,
    SchedulerEvent,
    Submit,
    Tick,
)
from router.settings import RouterSettings

NAMES = ["qwen", "tiny", "big"]
NODES = [NodeId(n) for n in "abcd"]
OUTCOMES: list[Outcome] = ["ok", "busy", "failed", "cancelled"]

models = st.builds(
    ModelStatus,
    name=st.sampled_from(NAMES),
    aliases=st.sampled_from([(), ("standard",), ("fast", "standard")]),
    state=st.sampled_from(list(ModelState)),
    slots=st.integers(1, 3),
    size_bytes=st.sampled_from([0, 4 * 10**9, 40 * 10**9]),
    load_s=st.floats(0, 30),
    own=st.booleans(),
    fingerprint=st.sampled_from(["", "w1", "w2"]),
    cache_seqs=st.integers(0, 2),
    cache_tokens=st.sampled_from([0, 1000, 10_000]),
)
statuses = st.builds(
    NodeStatus,
    node=st.sampled_from(NODES),
    bandwidth=st.sampled_from([0.0, 100.0, 800.0]),
    headroom_bytes=st.sampled_from([0, 8 * 10**9, 100 * 10**9]),
    evictable_bytes=st.sampled_from([None, 0, 40 * 10**9]),
    pressure=st.sampled_from(list(Pressure)),
    draining=st.booleans(),
    rtt_s=st.floats(0, 0.2),
    foreign_in_flight=st.integers(0, 2),
    models=st.lists(models, max_size=3, unique_by=lambda m: m.name).map(tuple),
)
requests = st.builds(
    Request,
    id=st.sampled_from([RequestId(str(i)) for i in range(12)]),
    models=st.lists(st.sampled_from([*NAMES, "standard", "fast"]), min_size=1, max_size=2, unique=True).map(tuple),
    prompt_tokens=st.integers(0, 8000),
    max_tokens=st.sampled_from([0, 1, 500]),
    client=st.sampled_from(["", "x", "y"]),
    blocks=st.lists(st.integers(0, 1), max_size=4).map(lambda p: tuple(hash(tuple(p[: k + 1])) for k in range(len(p)))),
    block_tokens=st.just(500),
    priority=st.sampled_from(["normal", "low"]),
    deadline=st.none() | st.floats(0, 60),
    excluded=st.lists(st.sampled_from(NODES), max_size=2, unique=True).map(tuple),
)
ids = st.sampled_from([RequestId(str(i)) for i in range(12)])
events: st.SearchStrategy[SchedulerEvent] = st.one_of(
    statuses.map(NodeUp),
    statuses.map(NodeChanged),
    st.sampled_from(NODES).map(NodeDown),
    st.builds(Submit, requests, age_s=st.floats(0, 5)),
    st.builds(Submit, requests),
    st.builds(FirstToken, ids, st.integers(0, 100)),
    st.builds(
        Finished,
        ids,
        st.sampled_from(OUTCOMES),
        st.builds(Usage, prompt=st.integers(0, 8000), cached=st.integers(0, 8000), completion=st.integers(0, 500)),
    ),
    st.builds(Cancel, ids),
    st.builds(Adopt, requests, st.sampled_from(NODES), st.floats(0, 9), st.booleans()),
    st.just(Tick()),
)
steps = st.lists(st.tuples(events, st.floats(0, 3)), max_size=50)


class Checked:
    """A scheduler with an account of our own beside it, kept from its effects alone."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(RouterSettings(), random.Random(0))
        self.nodes: dict[str, NodeStatus] = {}
        self.granted: dict[str, tuple[str, str]] = {}  # by its own grants only
        self.adopted: set[str] = set()
        self.places: dict[str, str] = {}  # of adopted ones
        self.asked: dict[str, Request] = {}
        self.now = 0.0

    def step(self, event: SchedulerEvent, after: float) -> None:
        self.now += after
        self._before(event)
        for effect in self.scheduler.step(event, self.now):
            request = self.asked.pop(effect.id)
            if isinstance(effect, Grant):
                self._check_grant(effect, request)
                self.granted[effect.id] = (effect.node, effect.model)
            else:
                assert isinstance(effect, Refuse)
                assert effect.error.message
        assert {name for name, *_ in self.scheduler.waiting()} == set(self.asked)
        assert [position for _, position, _ in self.scheduler.waiting()] == list(range(1, len(self.asked) + 1))
        assert sum(self.scheduler.in_flight().values()) == len(self.granted) + len(self.adopted)

    def _before(self, event: SchedulerEvent) -> None:
        match event:
            case NodeUp(status) | NodeChanged(status):
                self.nodes[status.node] = status
            case NodeDown(node):
                self.nodes.pop(node, None)
                self.granted = {i: place for i, place in self.granted.items() if place[0] != node}
                self.adopted = {i for i in self.adopted if self.places[i] != node}
            case Submit(request):
                if request.id not in self.granted and request.id not in self.adopted:
                    self.asked[request.id] = request
            case Finished(request_id) | Cancel(request_id):
                self.asked.pop(request_id, None)
                self.granted.pop(request_id, None)
                self.adopted.discard(request_id)
            case Adopt(request, node):
                self.asked.pop(request.id, None)
                self.granted.pop(request.id, None)
                self.adopted.add(request.id)
                self.places[request.id] = node
            case _:
                pass

    def live(self, name: str, request: Request) -> list[tuple[NodeStatus, ModelStatus]]:
        """Who could serve `request` under this one of its names, now or later. Uses the statuses the scheduler
        believes (a first token proves a load) and its filter: what is checked is the waiting."""
        held = [(s, m) for s in self.scheduler._fleet._nodes.values() if (m := match(s, name)) is not None]
        return [(s, m) for s, m in held if unfit(s, m, request) is None]

    def _check_grant(self, grant: Grant, request: Request) -> None:
        status = self.nodes[grant.node]
        model = next(m for m in status.models if m.name == grant.model)
        assert grant.node not in request.excluded
        assert not status.draining
        assert model.state is not ModelState.FAILED
        ours = [p for p in self.granted.values() if p == (grant.node, grant.model)]
        assert len(ours) < model.slots, "never more than its slots"
        by_node = {(c.node, c.model): c for c in grant.decision.candidates}
        chosen = by_node[grant.node, grant.model]
        assert chosen.total_s is not None
        for candidate in grant.decision.candidates:
            if candidate.excluded is None:
                assert candidate.total_s == sum(t.seconds for t in candidate.terms)
                assert all(t.seconds >= 0 and t.why for t in candidate.terms)
                assert chosen.total_s <= candidate.total_s or grant.decision.request["idle"]
            else:
                assert candidate.total_s is None
        assert {c.node for c in grant.decision.candidates} == set(self.nodes)


@given(steps)
def test_accounts_agree_and_no_grant_breaks_a_rule(script: list[tuple[SchedulerEvent, float]]) -> None:
    c = Checked()
    for event, after in script:
        c.step(event, after)


@given(steps)
def test_every_request_ends_or_waits_for_a_live_candidate_and_no_slot_leaks(
    script: list[tuple[SchedulerEvent, float]],
) -> None:
    c = Checked()
    for event, after in script:
        c.step(event, after)
    for _ in range(200):  # whatever runs ends, and the clock goes to each deadline: the queue must empty by itself
        running = [*c.granted, *c.adopted]
        if running:
            c.step(Finished(RequestId(running[0]), "ok", Usage(completion=5)), 0.01)
        elif c.scheduler.deadline is not None:
            c.step(Tick(), max(0.0, c.scheduler.deadline - c.now))
        else:
            break
    for name, _, wait_s in c.scheduler.waiting():
        assert wait_s >= 0
        asked = c.asked[name]
        live = next((found for n in asked.models if (found := c.live(n, asked))), [])
        assert live, "it waits for nobody"
        assert not [
            s.node for s, m in live if m.state in (ModelState.READY, ModelState.BUSY) and s.foreign_in_flight < m.slots
        ], "a free node that has it loaded must not stand beside a waiting request"
    assert c.scheduler.in_flight() == {}


@given(st.lists(statuses, max_size=4, unique_by=lambda s: s.node), st.lists(requests, max_size=8), st.randoms())
def test_the_order_of_nodes_and_models_never_matters(
    fleet: list[NodeStatus], asked: list[Request], rng: random.Random
) -> None:
    def effects(order: list[NodeStatus]) -> list[object]:
        s = Scheduler(RouterSettings(), random.Random(0))
        for status in order:
            s.step(NodeUp(status), 0.0)
        return [effect for i, request in enumerate(asked) for effect in s.step(Submit(request), 0.1 * i)]

    shuffled = [structs.replace(s, models=tuple(rng.sample(s.models, len(s.models)))) for s in fleet]
    rng.shuffle(shuffled)
    assert effects(fleet) == effects(shuffled)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 1)), max_size=60), st.integers(1, 3))
def test_first_come_first_served_among_equals(script: list[tuple[bool, float]], slots: int) -> None:
    s = Scheduler(RouterSettings(), random.Random(0))
    for n in NODES[:2]:
        held = ModelStatus(name="qwen", state=ModelState.READY, slots=slots, size_bytes=4 * 10**9)
        s.step(NodeUp(NodeStatus(node=n, bandwidth=200.0, models=(held,))), 0.0)
    now = 0.0
    order: list[int] = []
    running: list[RequestId] = []
    for number, (arrives, after) in enumerate(script):
        now += after
        event: SchedulerEvent | None = None
        if arrives:
            event = Submit(Request(id=RequestId(str(number)), models=("qwen",), prompt_tokens=500, max_tokens=100))
        elif running:
            event = Finished(running.pop(0), "ok", Usage(500, 0, 100))
        for effect in s.step(event or Tick(), now):
            assert isinstance(effect, Grant)
            order.append(int(effect.id))
            running.append(effect.id)
    assert order == sorted(order)
