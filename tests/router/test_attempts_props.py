"""Whatever happens, in whatever order: one end, one upstream at a time, nothing twice to the client, bounded work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.errors import NodeErrorCode
from node.types import NodeId, RequestId, Usage
from router.attempt_events import (
    AskFor,
    Broke,
    ClientLeft,
    CloseUpstream,
    Comfort,
    Completed,
    Denied,
    Effect,
    Event,
    Fail,
    Finish,
    FirstByte,
    Hopeless,
    Joined,
    Mismatch,
    NodeLost,
    Open,
    Placed,
    Tick,
    Unkept,
)
from router.attempts import Attempts
from router.errors import ErrorCode, Refusal
from router.events import Decision, Why
from router.facts import Mode
from router.frames import CancelAsk, Done, First, Taken
from router.settings import EdgeSettings

SETTINGS = EdgeSettings()
DECISION = Why(Decision(request={}, chosen=None, waited_ms=0.0, candidates=()))
ROUND = SETTINGS.failures_limit + 2 * SETTINGS.busy_limit + SETTINGS.rounds + 3  # three nodes may say that they cannot
MOST_ASKS = 1 + ROUND * (2 + SETTINGS.cuts_limit)

attempts = st.integers(1, 6)
nodes = st.sampled_from([NodeId(c * 16) for c in "abc"])
events = st.one_of(
    st.builds(Placed, st.just(0), nodes, st.just("m"), st.just(DECISION)),
    st.builds(Denied, st.just(0), st.builds(Refusal, st.sampled_from(ErrorCode), st.just("no")), st.booleans()),
    st.builds(FirstByte, st.just(0)),
    st.builds(Joined, st.just(0)),
    st.builds(Joined, st.just(0)),
    st.builds(Mismatch, st.just(0), st.just("other")),
    st.builds(Unkept, st.just("too much")),
    st.builds(Hopeless, st.just(0), st.just("engine"), st.just("no")),
    st.builds(Broke, st.just(0), st.sampled_from(NodeErrorCode), st.just("broke")),
    st.builds(Completed, st.just(0), st.just(Usage())),
    st.builds(NodeLost, nodes),
    st.just(ClientLeft()),
    st.just(Tick()),
)
# Mostly for the attempt that runs, else the walk would never get far; some for another one.
walks = st.lists(st.tuples(events, st.sampled_from([0, 0, 0, 0, -1, 1]), st.floats(0, 3)), max_size=120)


class Watcher:
    """The client's and the coordinator's side of it, with what must never happen."""

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.mode: Mode = "start"
        self.joined = False
        self.ends = self.asks = self.attempt = 0
        self.waiting = self.upstream = self.first = self.begun = False

    @property
    def flows(self) -> bool:
        """The client gets something new from the upstream that is open."""
        return self.upstream and self.first and (self.mode == "start" or self.joined)

    def saw(self, effect: Effect) -> None:
        assert self.ends == 0, "something after the end"
        match effect:
            case AskFor(attempt, begun=begun):
                assert attempt == self.attempt + 1
                assert not self.waiting
                assert not self.upstream
                assert begun == self.begun, "what goes on and what begins anew are not the same question"
                self.attempt, self.waiting, self.asks = attempt, True, self.asks + 1
            case Taken(_, attempt):
                assert self.waiting
                assert attempt == self.attempt
                self.waiting = False
            case Open(attempt, mode=mode):
                assert not self.upstream
                assert not self.waiting
                assert attempt == self.attempt
                self.upstream, self.first, self.joined, self.mode = True, False, False, mode
            case First():
                assert self.upstream
                assert not self.first
                self.first = True
                self.begun = True
            case CloseUpstream():
                assert self.upstream
                self.upstream = False
            case Done():
                assert not self.waiting
            case CancelAsk():
                assert self.waiting
                self.waiting = False
            case Comfort():
                assert self.streamed
                assert not self.flows, "comfort in the middle of an answer that flows"
            case Finish() | Fail():
                assert not self.waiting
                assert not self.upstream
                self.ends += 1


def with_attempt(event: Event, attempt: int, watcher: Watcher) -> Event:
    match event:
        case Placed():
            mode: Mode = "start" if not watcher.begun else "replay" if event.node == "b" * 16 else "continue"
            return Placed(attempt, event.node, event.model, event.why, mode)
        case Joined():
            return Joined(attempt)
        case Mismatch():
            return Mismatch(attempt, event.message)
        case Hopeless():
            return Hopeless(attempt, event.lost, event.why)
        case Denied():
            return Denied(attempt, event.refusal, event.lately)
        case FirstByte():
            return FirstByte(attempt)
        case Broke():
            return Broke(attempt, event.code, event.message)
        case Completed():
            return Completed(attempt, event.usage)
        case _:
            return event


def apply(machine: Attempts, watcher: Watcher, event: Event, now: float) -> None:
    effects = machine.step(event, now)
    mine = not isinstance(event, NodeLost | ClientLeft | Tick | Unkept) and event.attempt == watcher.attempt
    running = isinstance(event, Broke | Completed | Mismatch) and mine
    if isinstance(event, Joined) and mine and watcher.upstream and watcher.first:
        watcher.joined = True
    if running and effects:  # the shell says these when the upstream has closed by itself
        watcher.upstream = False
    if isinstance(event, Denied | Hopeless) and event.attempt == watcher.attempt and not machine._asking:
        watcher.waiting = False
    for effect in effects:
        watcher.saw(effect)


@given(walk=walks, streamed=st.booleans())
def test_every_walk_ends_once_and_breaks_no_rule(walk: list[tuple[Event, int, float]], streamed: bool) -> None:
    now = 0.0
    machine = Attempts(RequestId("r"), settings=SETTINGS, streamed=streamed, deadline_s=60.0, now=now)
    watcher = Watcher(streamed)
    apply(machine, watcher, Tick(), now)
    for event, off, pause in walk:
        now += pause
        if not isinstance(event, Tick) and now >= machine.deadline:
            apply(machine, watcher, Tick(), now)
        apply(machine, watcher, with_attempt(event, watcher.attempt + off, watcher), now)
    ticks = 0
    while not machine.over:
        assert machine.deadline >= now or ticks == 0
        now = max(now, machine.deadline)
        apply(machine, watcher, Tick(), now)
        ticks += 1
        assert ticks < 100, "a machine that is woken at its deadline gets somewhere"
    assert watcher.ends == 1
    assert watcher.asks <= MOST_ASKS
    assert now <= max(60.0, sum(pause for _, _, pause in walk))


@given(codes=st.lists(st.sampled_from([c for c in NodeErrorCode if c is not NodeErrorCode.BAD_REQUEST])))
def test_a_mesh_that_only_fails_is_left_after_a_bounded_number_of_grants(codes: list[NodeErrorCode]) -> None:
    now = 0.0
    machine = Attempts(RequestId("r"), settings=SETTINGS, streamed=True, deadline_s=1e6, now=now)
    (ask,) = machine.step(Tick(), now)
    grants = 0
    script = iter(codes)
    while not machine.over:
        assert isinstance(ask, AskFor)
        if len(ask.excluded) < 2:
            node = next(NodeId(c * 16) for c in "ab" if c * 16 not in ask.excluded)
            machine.step(Placed(ask.attempt, node, "m", DECISION), now)
            grants += 1
            code = next(script, NodeErrorCode.NODE_BUSY)
            effects = machine.step(Broke(ask.attempt, code, "broke"), now)
        else:
            refusal = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody")
            effects = machine.step(Denied(ask.attempt, refusal), now)
        while not effects:
            now = machine.deadline
            effects = [e for e in machine.step(Tick(), now) if not isinstance(e, Comfort)]
        ask = effects[0]
    assert grants <= SETTINGS.failures_limit + SETTINGS.busy_limit
    assert now < 120.0, "pauses are bounded too"
