"""What a drill plans to stop, and how what happened is judged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh import drill
from mesh.answers import Attempt, Mesh, MeshStatus, Model, Node, Route, Seen
from mesh.drill import Asked, Fault, Step
from mesh.errors import MeshError

WALL_S = 1_700_000_000.0  # the wall clock when the monotonic one says 0
SMOL = Model(name="smol", aliases=("fast",), state="ready", engine="mlx-lm", size_bytes=100)


def node(name: str, *models: Model, state: str = "ok", **more: Any) -> Node:
    return Node(name=name, id=f"{name}-id-0123", state=state, models=models, **more)


def mesh(*nodes: Node, own: str = "a", enabled: bool = True) -> MeshStatus:
    coordinator = next((n.name for n in nodes if n.coordinator), None)
    return MeshStatus(mesh=Mesh(enabled=enabled, coordinator=coordinator), self_name=own, nodes=nodes)


THREE = mesh(node("a", SMOL), node("b", SMOL, coordinator=True), node("c", SMOL))


def steps(status: MeshStatus, *named: str, **of: Any) -> list[tuple[str, str]]:
    """(what, where or why not) of each."""
    return [(s.what, s.node or s.left_out) for s in drill.plan(status, named, **of).steps]


def test_each_is_stopped_where_it_shows_most() -> None:
    assert steps(THREE, "b", "c") == [("worker", "c"), ("node", "c"), ("coordinator", "b")]
    assert steps(THREE, "c-id-0123", "B") == steps(THREE, "b", "c"), "by id, or however it is written"


def test_only_what_is_named_is_touched_and_never_the_node_that_runs_it() -> None:
    assert steps(THREE, "b") == [
        ("worker", "b"),
        ("node", "no node is named but the coordinator"),
        ("coordinator", "b"),
    ]
    assert steps(THREE, "c")[2] == ("coordinator", "b coordinates, and was not named")
    assert steps(THREE, "a", "c")[:2] == [("worker", "c"), ("node", "c")]
    ours = mesh(node("a", SMOL, coordinator=True), node("c", SMOL))
    assert steps(ours, "a", "c")[2] == ("coordinator", "this node coordinates")
    assert steps(THREE, "b", "c", only="coordinator") == [("coordinator", "b")]


def test_a_node_without_the_model_may_be_stopped_but_one_with_it_rather() -> None:
    status = mesh(node("a", SMOL), node("b", coordinator=True), node("c"), node("d", SMOL))
    assert steps(status, "b", "c") == [
        ("worker", "no node that is named serves the model with a process of its own"),
        ("node", "c"),
        ("coordinator", "b"),
    ]
    assert steps(status, "c", "d")[:2] == [("worker", "d"), ("node", "d")]
    external = Model(name="smol", state="ready", engine="external")
    status = mesh(node("a", SMOL, coordinator=True), node("b", external))
    assert steps(status, "b")[:2] == [
        ("worker", "no node that is named serves the model with a process of its own"),
        ("node", "b"),
    ]


@pytest.mark.parametrize(
    ("status", "named", "of", "said"),
    [
        (mesh(enabled=False), ["a"], {}, "the mesh is off on this node .*mesh enable"),
        (THREE, ["a"], {}, "this node runs the drill.*name another node"),
        (THREE, ["x"], {}, "no node 'x' in this mesh; there is: a, b, c"),
        (THREE, ["b"], {"model": "none"}, "no node answers for 'none'"),
        (mesh(node("a", SMOL), node("b", coordinator=True)), ["b"], {}, "only a answers for 'smol'.*another node"),
        (mesh(node("a"), node("b")), ["b"], {}, "no node has a model ready .*models load"),
        (THREE, ["c"], {"only": "coordinator"}, "b coordinates, and was not named.*name other nodes"),
        (mesh(node("a", SMOL), node("b", SMOL), node("c", state="dead")), ["c"], {}, "nothing of what is named"),
    ],
)
def test_what_cannot_be_drilled_is_refused_with_what_to_do(
    status: MeshStatus, named: list[str], of: dict[str, Any], said: str
) -> None:
    with pytest.raises(MeshError, match=said) as caught:
        drill.plan(status, named, **of)
    assert len(str(caught.value).splitlines()) == 1


def test_two_nodes_of_one_name_are_told_apart_by_id() -> None:
    status = mesh(node("a", SMOL), Node(name="s", id="1234aa"), Node(name="s", id="1234bb"))
    assert drill.found(status, "1234b").id == "1234bb"
    with pytest.raises(MeshError, match="no node 's'"):
        drill.found(status, "s")
    with pytest.raises(MeshError, match="no node '1234'"):
        drill.found(status, "1234")


def test_the_model_most_nodes_serve_is_asked_for_and_the_smallest_of_those() -> None:
    big, small = Model(name="big", state="ready", size_bytes=9), Model(name="tiny", state="busy", size_bytes=1)
    assert drill.plan(mesh(node("a", big, small), node("b", big, small)), ["b"]).model == "tiny"
    assert drill.plan(mesh(node("a", big, small), node("b", big)), ["b"]).model == "big"
    assert drill.plan(THREE, ["b"], model="fast").steps[0].model == "smol", "the name it has there"


def test_it_says_what_it_will_do_to_which_node() -> None:
    said = [drill.announced(step, 10.0) for step in drill.plan(THREE, ["b", "c"]).steps]
    assert "kill the model server of smol on c" in said[0]
    assert "cut c off the mesh for 10 s" in said[1]
    assert "cut b, which coordinates, off" in said[2]


def test_a_step_is_not_taken_when_things_have_changed() -> None:
    plan = drill.plan(THREE, ["b", "c"])
    worker, stopped, coordinator = plan.steps
    assert [drill.impossible(step, plan, THREE) for step in plan.steps] == ["", "", ""]
    alone = mesh(node("a"), node("b", coordinator=True), node("c", SMOL))
    assert drill.impossible(worker, plan, alone) == "no other node would answer for smol"
    assert drill.impossible(coordinator, plan, alone) == ""
    assert drill.impossible(stopped, plan, mesh(node("a", SMOL), node("c", SMOL, state="dead"))) == "c is dead"
    assert drill.impossible(stopped, plan, mesh(node("a", SMOL))) == "c is gone"
    moved = mesh(node("a", SMOL), node("b", SMOL), node("c", SMOL, coordinator=True))
    assert drill.impossible(stopped, plan, moved) == "c coordinates now"
    assert drill.impossible(coordinator, plan, moved) == "b does not coordinate any more"
    loading = mesh(node("a", SMOL), node("b", SMOL), node("c", Model(name="smol", state="loading")))
    assert drill.impossible(worker, plan, loading) == "smol is not ready on c"


def test_a_step_follows_its_part_to_where_the_same_was_announced() -> None:
    plan = drill.plan(THREE, ["b", "c"])
    swapped = mesh(node("a", SMOL), node("b", SMOL), node("c", SMOL, coordinator=True))
    assert [(s.what, s.node, s.left_out) for s in (drill.afresh(step, plan, swapped) for step in plan.steps)] == [
        ("worker", "c", ""),
        ("node", "b", ""),
        ("coordinator", "c", ""),
    ]
    ours = mesh(node("a", SMOL, coordinator=True), node("b", SMOL), node("c", SMOL))
    found = drill.afresh(plan.steps[2], plan, ours)
    assert (found.node, found.left_out) == ("b", "b does not coordinate any more")
    only = drill.plan(THREE, ["b", "c"], only="node")
    assert drill.afresh(only.steps[0], only, swapped).left_out == "c coordinates now", "of b nothing was announced"
    without = mesh(node("a", SMOL), node("b", SMOL, coordinator=True), node("c"))
    assert drill.afresh(plan.steps[0], plan, without).left_out == "smol is not ready on c"


def test_it_waits_for_something_to_run_where_it_strikes() -> None:
    step = Step(what="node", node="c", id="c-id-0123", model="smol")
    busy = mesh(node("c", Model(name="smol", in_flight=1)))
    assert drill.runs_on(step, busy)
    assert not drill.runs_on(step, mesh(node("c", SMOL, Model(name="other", in_flight=1))))
    assert not drill.runs_on(step, mesh(node("b", Model(name="smol", in_flight=1))))


def test_all_is_as_before_when_nothing_that_was_there_is_missing() -> None:
    assert drill.missing(THREE, THREE) == ()
    other = mesh(node("a", SMOL, coordinator=True), node("b", SMOL), node("c", SMOL), node("d"))
    assert drill.missing(THREE, other) == ()
    assert drill.changed(THREE, other) == ("a coordinates now, b did before",)
    assert drill.changed(THREE, THREE) == ()
    now = mesh(node("a", Model(name="smol", state="failed")), node("b", SMOL, state="suspect"))
    assert drill.missing(THREE, now) == ("nobody coordinates", "smol on a is failed", "b is suspect", "c is gone")
    idle = mesh(node("a", SMOL), node("b", SMOL, coordinator=True), node("c", Model(name="smol", state="absent")))
    assert drill.missing(THREE, idle) == (), "unloaded because nobody asked"
    was_dead = mesh(node("a", SMOL, coordinator=True), node("b", state="dead"))
    assert drill.missing(was_dead, mesh(node("a", SMOL, coordinator=True))) == ()


# Judging


def asked(name: str, ended: float, **more: Any) -> Asked:
    return Asked(**{"id": name, "began": ended - 1.0, "ended": ended, "stream": True, **more})


def route(name: str, ended: float, *tries: tuple[str, str, float], outcome: str = "ok") -> Route:
    """`tries`: (node, outcome, seconds); the request took as long as they did, and a tenth more between them."""
    total_s = sum(t[2] for t in tries) + 0.1 * (len(tries) - 1)
    at = datetime.fromtimestamp(WALL_S + ended - total_s, UTC).isoformat(timespec="milliseconds")
    attempts = tuple(Attempt(node=n, outcome=o, ms=s * 1e3) for n, o, s in tries)
    return Route(id=name, at=at, outcome=outcome, total_ms=total_s * 1e3, attempts=attempts)


def judged(
    what: Any, requests: list[Asked], routes: list[Route], seen: list[Seen], next_at: float = 200.0
) -> drill.Stopped:
    """Of the first of two faults, at 100 s on c; the other one is on b."""
    step = Step(what=what, node="c", id="c-id", model="smol")
    first = Fault(step=step, at=100.0, back_at=112.0, ran=True)
    other = Fault(step=Step(what="node", node="b", id="b-id"), at=next_at)
    found = drill.judge([first, other], requests, {r.id: r for r in routes}, seen, WALL_S)
    assert len(found) == 2
    return found[0]


def test_a_request_counts_with_what_broke_it_off_however_late_it_ends() -> None:
    steps = [Step(what="worker", node="c"), Step(what="node", node="c"), Step(what="coordinator", node="b")]
    faults = [Fault(step=step, at=at) for step, at in zip(steps, (100.0, 130.0, 160.0), strict=True)]
    requests = [
        asked("slow", 170.0, began=99.0),  # broken off by the first
        asked("later", 165.0, began=120.0),  # by the second, of which a route tells the same node
        asked("whole", 168.0, began=99.0),
        asked("between", 140.0, lost="gone"),
        asked("before", 99.5),
    ]
    routes = {
        "slow": route("slow", 170.0, ("c", "failed", 1.0), ("a", "ok", 69.9), outcome="resumed"),
        "later": route("later", 165.0, ("c", "failed", 10.0), ("a", "ok", 34.0)),
        "whole": route("whole", 168.0, ("a", "ok", 69.0)),
    }
    found = drill.judge(faults, requests, routes, [], WALL_S)
    assert [(s.requests, s.lost, s.resumed, s.retried) for s in found] == [(1, 0, 1, 0), (2, 1, 0, 1), (1, 0, 0, 0)]
    assert drill.judge([], requests, routes, [], WALL_S) == []


def test_what_was_handed_over_is_counted_and_timed() -> None:
    requests = [
        asked("r1", 103.0, pause_s=0.6),
        asked("r2", 104.0, stream=False),
        asked("r3", 101.0),
        asked("r0", 99.0),
    ]
    routes = [
        route("r1", 103.0, ("c", "failed", 1.0), ("a", "ok", 2.5), outcome="resumed"),
        route("r2", 104.0, ("c", "failed", 1.0), ("a", "ok", 3.2)),
        route("r3", 101.0, ("b", "busy", 0.1), ("a", "ok", 0.9)),
        route("r0", 99.0, ("c", "failed", 0.1), ("a", "ok", 0.9)),
    ]
    seen = [
        Seen(at=100.3, kind="gone", node="c"),
        Seen(at=90.0, kind="gone", node="c"),
        Seen(at=100.1, kind="gone", node="b"),
    ]
    found = judged("node", requests, routes, seen)
    assert (found.requests, found.lost, found.resumed, found.retried) == (3, 0, 1, 1), "busy is no failure"
    assert found.detected_s == 0.3
    assert found.handed_over_s == 0.8
    assert found.pause_s == 0.6
    assert found.back_s == 12.0


def test_a_request_that_went_on_shows_that_the_fault_was_noticed() -> None:
    routes = [route("r1", 103.0, ("c", "failed", 1.0), ("a", "ok", 2.8), outcome="resumed")]
    found = judged("worker", [asked("r1", 103.0)], routes, [Seen(at=100.9, kind="lost", node="c", model="smol")])
    assert found.detected_s == found.handed_over_s == 0.2


def test_what_was_lost_is_counted_by_its_reason() -> None:
    requests = [
        asked("r1", 101.0, lost="stream_lost"),
        asked("r2", 102.0, lost="stream_lost"),
        asked("r3", 103.0, lost="broken off"),
        asked("r4", 99.9, lost="before it"),
        asked("r5", 150.0, lost="after the next one"),
    ]
    found = judged("worker", requests, [], [Seen(at=100.5, kind="lost", node="c", model="other")], next_at=150.0)
    assert (found.lost, found.why_lost) == (3, {"stream_lost": 2, "broken off": 1})
    assert (found.detected_s, found.handed_over_s) == (None, None), "another model's trouble is no sign"


def test_with_the_coordinator_the_hand_over_is_over_when_another_one_has_taken_over() -> None:
    seen = [
        Seen(at=100.1, kind="coordinator", node="", text="nobody"),
        Seen(at=100.9, kind="coordinator", node="b"),
        Seen(at=140.0, kind="coordinator", node="c"),
    ]
    found = judged("coordinator", [], [], seen)
    assert (found.detected_s, found.handed_over_s) == (0.1, 0.9)
    routes = [route("r1", 103.0, ("c", "failed", 1.0), ("a", "ok", 1.5))]
    assert judged("coordinator", [asked("r1", 103.0)], routes, seen).handed_over_s == 1.5
    assert judged("node", [], [], seen).detected_s is None, "who coordinates says nothing of another node"


def test_an_attempt_that_broke_off_elsewhere_or_before_is_not_this_faults() -> None:
    routes = [
        route("r1", 103.0, ("b", "failed", 1.0), ("a", "ok", 1.0)),
        route("r2", 103.0, ("c", "failed", 1.0), ("a", "failed", 1.0), outcome="failed"),
        route("r3", 101.0, ("c", "failed", 1.0), ("a", "ok", 1.5)),
        Route(id="r4"),
    ]
    requests = [asked("r1", 103.0), asked("r2", 103.0), asked("r3", 101.0), asked("r4", 103.0)]
    assert judged("node", requests, routes, []).handed_over_s is None


def test_a_drill_is_good_when_nothing_was_lost_and_nothing_is_missing() -> None:
    good = drill.Report(model="m", edge="a", clients=1, seconds=5.0, steps=(), requests=9, lost=0)
    assert good.good
    assert not drill.Report(model="m", edge="a", clients=1, seconds=5.0, steps=(), requests=9, lost=1).good
    bad = drill.Report(
        model="m", edge="a", clients=1, seconds=5.0, steps=(), requests=9, lost=0, missing=("b is dead",)
    )
    assert not bad.good
