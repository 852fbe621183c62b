"""mesh/name_rules.py: any story of events, and a few nodes on one made-up wire that loses packets."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from election.messages import Role
from mesh.name_events import (
    Ask,
    AskGateway,
    Event,
    Foreign,
    GatewayAnswered,
    Known,
    Opened,
    Rival,
    Ruled,
    Said,
    Swap,
    Tick,
)
from mesh.name_rules import NameRules
from tests.mesh.naming import ALONE, FALLBACK, HOSTS, NODES, STRANGER, F, L, One, S

EVENTS = st.one_of(
    st.builds(Ruled, st.sampled_from(list(Role)), st.sampled_from(["a", "b", None])),
    st.builds(lambda h, a, alive: Said(((h, a, alive),)),
              st.sampled_from([*HOSTS, FALLBACK, "x.local."]),
              st.sampled_from(["10.0.0.1", "10.0.0.2", STRANGER, "10.0.0.0"]), st.booleans()),
    st.builds(Known, st.sampled_from([(), ("10.0.0.1",), ("10.0.0.7", "10.0.0.8")]), st.sampled_from([{}, NODES])),
    st.builds(Foreign, st.floats(90, 110)),
    st.builds(Rival, st.sampled_from(["b", "c", "zz"])),
    st.sampled_from([Opened(), GatewayAnswered(), Tick()]),
)  # fmt: skip


@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 0.3, 1.0, 6.0, 40.0])), max_size=40))
def test_it_never_spins_and_followers_announce_nothing(story: list[tuple[Event, float]]) -> None:
    one = One()
    for event, then_s in story:
        effects = one.do(event)
        for _ in range(12):
            if one.rules.deadline > one.now:
                break
            effects += one.do(Tick())
        assert one.rules.deadline > one.now, "it would spin"
        if not one.rules._may:
            assert not [e for e in effects if isinstance(e, Swap | Ask)]
        before = len(one.all)
        one.let(then_s)
        assert len(one.all) - before < 20 * then_s + 20
        if not one.rules._mine:
            assert one.rules.held == ()


class Wire:
    """Nodes that hear each other's packets after `delay_s`, each losing some as `lost` says."""

    def __init__(self, ids: str, delay_s: float, lost: Callable[[], bool]) -> None:
        self.now, self.delay_s, self.lost, self.count = 100.0, delay_s, lost, 0
        self.address = {n: f"10.0.0.{i + 1}" for i, n in enumerate(ids)}
        self.nodes = {n: NameRules(n, HOSTS, FALLBACK, S, self.now) for n in ids}
        self.heap: list[tuple[float, int, str, Event]] = []
        self.client: dict[str, str] = {}  # what a resolver on the wire believes
        for n in ids:
            others = {o: (a,) for o, a in self.address.items() if o != n}
            self.do(n, Known((self.address[n],), others))
            self.do(n, Opened())
            self.do(n, GatewayAnswered())

    def do(self, node: str, event: Event) -> None:
        for effect in self.nodes[node].step(event, self.now):
            if isinstance(effect, Swap):
                gone = [(h, a, False) for h in effect.hosts for a in effect.old]
                self.send(node, Said((*gone, *((h, self.address[node], True) for h in effect.hosts))))
                self.client.update(dict.fromkeys(effect.hosts, self.address[node]))
            elif isinstance(effect, Ask):
                for other, rules in self.nodes.items():
                    held = [h for h in effect.hosts if h in rules.held]
                    if other != node and held and not self.lost():
                        self.send(other, Said(tuple((h, self.address[other], True) for h in held)))
                        self.client.update(dict.fromkeys(held, self.address[other]))
            elif isinstance(effect, AskGateway):
                self.at(0.002, node, GatewayAnswered())

    def send(self, sender: str, said: Said) -> None:
        for node in self.nodes:
            if node != sender and not self.lost():
                self.at(self.delay_s, node, said)

    def at(self, after_s: float, node: str, event: Event) -> None:
        self.count += 1
        heapq.heappush(self.heap, (self.now + after_s, self.count, node, event))

    def let(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due, node = min((max(r.deadline, self.now), n) for n, r in self.nodes.items())
            if self.heap and self.heap[0][0] <= min(due, end):
                self.now, _, to, event = heapq.heappop(self.heap)
                self.do(to, event)
            elif due <= end:
                self.now = due
                self.do(node, Tick())
            else:
                break
        self.now = end

    def owners(self) -> list[str]:
        return [n for n, rules in self.nodes.items() if rules.held]


@given(
    reigns=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.05, 0.4, 5.0])), min_size=1, max_size=8),
    losses=st.lists(st.booleans(), max_size=20), delay_s=st.sampled_from([0.0005, 0.05]),
)  # fmt: skip
def test_when_the_election_has_settled_one_node_holds_the_names_and_clients_know_it(
    reigns: list[tuple[str, float]], losses: list[bool], delay_s: float
) -> None:
    rest = iter(losses)
    wire = Wire("abc", delay_s, lambda: next(rest, False))
    for holder, lasts_s in reigns:
        for node in wire.nodes:
            wire.do(node, Ruled(L if node == holder else F, holder))
        wire.let(lasts_s)
    wire.let(S.lost_s + S.question_s + 0.2)
    assert wire.owners() == [reigns[-1][0]]
    wire.let(4.0)
    assert wire.client == dict.fromkeys(HOSTS, wire.address[reigns[-1][0]])


@given(st.permutations("abc"), st.integers(0, 30), st.sampled_from([0.0005, 0.02]))
def test_lone_nodes_that_hear_each_others_mdns_leave_the_names_to_one(order: list[str], gap: int, delay: float) -> None:
    wire = Wire("abc", delay, lambda: False)
    for node in order:
        wire.do(node, Ruled(ALONE, node))
        wire.let(gap / 100)
    wire.let(10)
    assert len(wire.owners()) == 1


def test_a_split_that_heals_leaves_one_owner_and_clients_follow_it() -> None:
    wire = Wire("ab", 0.001, lambda: cut)
    cut = True
    for node in "ab":
        wire.do(node, Ruled(L, node))
    wire.let(20)
    assert wire.owners() == ["a", "b"]
    cut = False
    for node, rival in ("ab", "ba"):
        wire.do(node, Rival(rival))
    wire.let(0.1)
    wire.do("b", Ruled(F, "a"))
    wire.let(1.5)
    assert wire.owners() == ["a"]
    assert set(wire.client.values()) == {"10.0.0.1"}
