"""Whatever the network says, in whatever order: the list stays whole, and work goes only where it can be done."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.events import (
    Added,
    Beat,
    Down,
    Event,
    Forgotten,
    Framed,
    Gone,
    Known,
    LinkClosed,
    LinkUp,
    Moved,
    Removed,
    Reported,
    SaidBye,
    Seen,
    Switch,
    Tick,
    Tried,
    Unfit,
    Up,
)
from mesh.liveness import Liveness
from mesh.membership import Membership
from mesh.names import resolve
from mesh.settings import MembershipSettings
from mesh.wire import Hello, PeerSeen
from node.types import NodeId, NodeReport
from router.view import NodeState

IDS = [NodeId(d * 16) for d in "0abc"]  # the first is this node
nodes = st.sampled_from(IDS)
boots = st.sampled_from(["b1", "b2"])
meshes = st.sampled_from(["default", "default", "default", "lab"])
protocols = st.sampled_from([1, 1, 1, 2])
peers = st.builds(
    PeerSeen,
    id=nodes,
    name=st.sampled_from(["mini", "studio"]),
    mesh=meshes,
    protocol=protocols,
    addresses=st.lists(st.sampled_from(["10.0.0.2", "10.0.0.3", "fe80::1%en0"]), max_size=3).map(tuple),
    boot=st.just("") | boots,
    via=st.sampled_from(["mdns", "static", "gossip"]),
    far=st.booleans(),
    added=st.booleans(),
)


def _report(id_: NodeId, boot: str, draining: bool) -> NodeReport:
    return NodeReport(
        id=id_, boot=boot, name="mini", version="", protocol=1, priority=1, uptime_s=1.0, draining=draining
    )


def _hello(id_: NodeId, boot: str, mesh: str, protocol: int) -> Hello:
    return Hello(id=id_, boot=boot, name="mini", mesh=mesh, mesh_id="", version="", protocol=protocol,
                 peer_port=4001, port=4000)  # fmt: skip


hellos = st.builds(_hello, nodes, boots, st.just("default"), st.just(1))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Seen, peers),
    st.builds(Added, peers),
    st.builds(Removed, nodes),
    st.builds(Beat, nodes, boots, st.booleans()),
    st.builds(LinkUp, hellos, st.just("10.0.0.2"), st.booleans()),
    st.builds(Framed, nodes),
    st.builds(Reported, st.builds(_report, nodes, boots, st.booleans())),
    st.builds(SaidBye, nodes, st.just("bye")),
    st.builds(LinkClosed, nodes, st.just("why"), st.booleans()),
    st.builds(
        Tried, nodes, st.just("10.0.0.2"), st.sampled_from(["refused", "timeout"]), st.just("why"), st.booleans()
    ),
    st.builds(
        Unfit, st.builds(_hello, nodes, boots, meshes, protocols), st.sampled_from(["other_version", "other_mesh"])
    ),
    st.builds(Switch, st.sampled_from([True, True, False]), st.just("default")),
    st.just(Tick()),
)
steps = st.lists(st.tuples(events, st.floats(0, 3)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_the_list_is_whole_after_every_step(steps: list[tuple[Event, float]]) -> None:
    m, now = Membership(_report(IDS[0], "b0", False), enabled=True), 0.0
    up: set[NodeId] = set()
    known: dict[NodeId, bool] = {}  # and whether the election was told that it ranks last
    for event, later in steps:
        now += later
        before = m.view()
        effects = m.step(event, now)
        for effect in effects:
            match effect:
                case Up(node):
                    assert node not in up
                    up.add(node)
                case Down(node):
                    up.remove(node)  # raises if it never was up
                case Known(node, last):
                    assert node not in known
                    known[node] = last
                case Moved(node, last):
                    assert known[node] is not last
                    known[node] = last
                case Forgotten(node):
                    del known[node]
                case Gone(node):
                    assert node not in up or Down in {type(e) for e in effects}
        view = m.view()
        assert [n.report.id for n in view.nodes].count(view.self_id) == 1
        assert len({n.report.id for n in view.nodes}) == len(view.nodes)
        assert {n.report.id for n in view.nodes} == known.keys() | {view.self_id}
        assert up == m.alive() == {n.report.id for n in view.nodes if n.reachable} - {view.self_id}
        assert all(m.ranks_last(node) is last for node, last in known.items())
        for shown in view.nodes:
            assert shown.state is NodeState.OK or shown.reason or shown.state is NodeState.DRAINING
            assert not (shown.reachable and shown.state in (NodeState.DEAD, NodeState.WAITING, NodeState.INCOMPATIBLE))
        if not view.enabled:
            assert not known
        names = view.names()
        assert len(set(names.values())) == len(names)
        assert all(resolve(view, name) == id_ for id_, name in names.items())
        if before == view:
            assert m.view() == before


@settings(deadline=None)
@given(steps=steps)
def test_everybody_who_falls_silent_is_dead_in_bounded_time(steps: list[tuple[Event, float]]) -> None:
    m, now = Membership(_report(IDS[0], "b0", False), enabled=True), 0.0
    for event, later in steps:
        now += later
        m.step(event, now)
    linked_at = now
    for _ in range(100):  # woken at its deadlines only; each of them leads somewhere
        if m.deadline is None or m.deadline > linked_at + 11:
            break
        now = max(now, m.deadline)
        m.step(Tick(), now)
    else:
        raise AssertionError("deadlines that change nothing")
    states = {n.state for n in m.view().nodes[1:]}
    assert states <= {NodeState.DEAD, NodeState.INCOMPATIBLE}, [(n.state, n.reason) for n in m.view().nodes]
    assert m.alive() == set()


@given(gaps=st.lists(st.floats(0.01, 5), min_size=1, max_size=100), far=st.booleans())
def test_patience_follows_its_rule_and_its_memory_is_bounded(gaps: list[float], far: bool) -> None:
    s, now = MembershipSettings(), 0.0
    life = Liveness(s, far=far)
    life.beat(now)
    for gap in gaps:
        now += gap
        life.beat(now)
    floor, cap = (s.far_patience_floor_s, s.far_patience_cap_s) if far else (s.patience_floor_s, s.patience_cap_s)
    longest = min(max(gaps), s.patience_cap_s)
    assert abs(life.patience_s() - min(max(1.5 * longest + 0.1, floor), cap)) < 0.02
    assert len(life._gaps) <= 151
