"""What holds for the machine whatever it hears, in whatever order, however late it is woken."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from election.machine import Election
from election.messages import (
    Effect,
    Event,
    Follow,
    Heard,
    Leave,
    LinkClosed,
    Message,
    PeerForgotten,
    PeerKnown,
    Rank,
    Reign,
    Remember,
    Retune,
    Role,
    Send,
    Tick,
)
from election.settings import ElectionSettings

PEERS = ("a", "b", "c")
ranks = st.builds(
    Rank,
    near=st.booleans(),
    priority=st.sampled_from((0, 100, 200)),
    uptime_steps=st.integers(0, 20),
    id=st.sampled_from((*PEERS, "m")),
    boot=st.sampled_from(("b1", "b2")),
)
reigns = st.builds(Reign, term=st.integers(0, 8), rank=st.none() | ranks)


@st.composite
def heartbeats(draw: st.DrawFn) -> Heard:
    """Mostly sensible datagrams of three peers with two boots each."""
    sender, boot, role = draw(st.sampled_from(PEERS)), draw(st.sampled_from(("b1", "b2"))), draw(st.sampled_from(Role))
    rank = Rank(True, draw(st.sampled_from((0, 100, 200))), draw(st.integers(0, 9)), sender, boot)
    holds = role is Role.COORDINATOR
    message = Message(
        kind=draw(st.sampled_from(("hb", "hb", "ask", "alive", "bye", "yield"))),
        sender=sender,
        boot=boot,
        seq=draw(st.integers(1, 1000)),
        mesh=draw(st.sampled_from(("m", "m", "m", "m", "other"))),
        reign=Reign(draw(st.integers(0, 8)), rank) if holds else draw(reigns),
        coordinator=sender if holds else draw(st.sampled_from((None, *PEERS, "m"))),
        role=role,
        rank=rank,
        uptime_s=draw(st.floats(0, 1000)),
        age_s=draw(st.floats(0, 2)),
        far=draw(st.booleans()),
    )
    return Heard(message)


own_events = st.one_of(
    st.builds(LinkClosed, st.sampled_from(PEERS)),
    st.builds(PeerKnown, st.sampled_from(PEERS), st.booleans()),
    st.builds(PeerForgotten, st.sampled_from(PEERS)),
    st.builds(Retune, st.sampled_from((0, 100, 200))),
)
events = st.one_of(heartbeats(), heartbeats(), heartbeats(), own_events, st.just(Tick()))
histories = st.lists(st.tuples(events, st.floats(0, 0.6)), max_size=60)


def build(priority: int = 100, term: int = 0) -> Election:
    return Election(
        me="m",
        boot="b1",
        mesh="m",
        priority=priority,
        settings=ElectionSettings(),
        term=term,
        now=0.0,
        rng=Random(7),
    )


def play(machine: Election, history: list[tuple[Event, float]]) -> Iterator[tuple[Event, float, list[Effect]]]:
    """Every event after its pause, with the wake-ups that fall between; what each step gave, as it happens."""
    now = 0.0
    for event, pause in history:
        end = now + pause
        while machine.deadline < end:
            now = machine.deadline
            yield Tick(), now, machine.step(Tick(), now)
        now = end
        yield event, now, machine.step(event, now)


def play_out(machine: Election, history: list[tuple[Event, float]]) -> float:
    """The same; returns when it ended."""
    return max((now for _, now, _ in play(machine, history)), default=0.0)


@given(histories, st.sampled_from((0, 100)), st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_a_term_never_goes_back_and_is_remembered_before_it_is_used(
    history: list[tuple[Event, float]], priority: int, term: int
) -> None:
    machine, kept = build(priority, term), term
    for _, _, effects in play(machine, history):
        for effect in effects:
            match effect:
                case Remember(new):
                    assert new > kept
                    kept = new
                case Follow(term=seen):
                    assert seen == kept
                case Send(message):
                    assert message.reign.term <= kept
    assert machine.term == kept


@given(histories, st.floats(0, 3))
@settings(max_examples=200, deadline=None)
def test_a_follower_never_follows_an_older_reign(history: list[tuple[Event, float]], late_s: float) -> None:
    """Nor does one that is woken late."""
    machine, now = build(), 0.0
    newest = machine.reign.key()
    for event, pause in history:
        now = max(now + pause, machine.deadline + late_s)
        machine.step(event, now)
        assert machine.reign.key() >= newest
        newest = machine.reign.key()


@given(histories)
@settings(max_examples=200, deadline=None)
def test_priority_0_never_takes_a_term_or_names_itself(history: list[tuple[Event, float]]) -> None:
    machine = build(priority=0)
    for event, _, effects in play(machine, [(e, p) for e, p in history if not isinstance(e, Retune)]):
        assert machine.role is not Role.COORDINATOR, event
        assert machine.coordinator != "m"
        assert not any(isinstance(e, Send) and e.message.role is Role.COORDINATOR for e in effects)


@given(histories)
@settings(max_examples=200, deadline=None)
def test_what_it_reports_is_what_it_is(history: list[tuple[Event, float]]) -> None:
    machine = build()
    seen = (machine.role, machine.coordinator, machine.term)
    for _, now, effects in play(machine, history):
        follows = [e for e in effects if isinstance(e, Follow)]
        state = (machine.role, machine.coordinator, machine.term)
        assert [(f.role, f.coordinator, f.term) for f in follows] == ([state] if state != seen else [])
        assert all(f.why for f in follows)
        seen = state
        assert machine.deadline > now
        assert (machine.role is Role.COORDINATOR) <= (machine.coordinator == "m")


@given(histories, st.floats(1.0, 30.0))
@settings(max_examples=200, deadline=None)
def test_a_deaf_node_never_deposes_anyone(history: list[tuple[Event, float]], silence_s: float) -> None:
    """However it came there: once nothing is heard for a second, no term is taken. Far peers speak less often and
    are waited for, so with them it takes as long as the most patient suspicion."""
    machine = build()
    far = any((isinstance(e, Heard) and e.message.far) or (isinstance(e, PeerKnown) and e.far) for e, _ in history)
    deaf_since = play_out(machine, history) + (5.0 if far else 0.0)
    while machine.deadline < deaf_since + 1.0:
        machine.step(Tick(), machine.deadline)
    term = machine.term
    while machine.deadline < deaf_since + 1.0 + silence_s:
        machine.step(Tick(), machine.deadline)
        assert machine.term == term
    if silence_s > 10:
        assert machine.alone


@given(histories)
@settings(max_examples=100, deadline=None)
def test_it_can_always_leave(history: list[tuple[Event, float]]) -> None:
    machine = build()
    now = play_out(machine, history)
    machine.step(Leave(), now)
    while not machine.left:
        assert machine.deadline < now + 1.5
        machine.step(Tick(), machine.deadline)
    assert machine.alone
    assert machine.step(Tick(), now + 99.0) == []


@given(reigns, reigns)
def test_reigns_have_one_order_and_the_term_comes_first(one: Reign, other: Reign) -> None:
    assert (one == other) == (one.key() == other.key())
    if one.term > other.term or (one.term == other.term and one.rank is not None and other.rank is None):
        assert one.key() > other.key()
