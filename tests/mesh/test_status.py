"""`mesh status`: the contract's JSON from a View and an account."""

from __future__ import annotations

from typing import Any

from mesh.status import differing_names, mesh_json, model_json, node_json
from node.types import Memory, ModelReport, ModelState, NodeId, NodeReport
from router.account import Account, NodeAccount
from router.view import NodeState, NodeView, View

A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)


def report(id_: NodeId, *models: ModelReport) -> NodeReport:
    return NodeReport(
        id=id_, boot="1", name=id_[0], version="1", protocol=1, priority=100, uptime_s=12.345, addresses=("10.0.0.1",),
        memory=Memory(budget_bytes=10, used_bytes=4, headroom_bytes=6), models=models,
    )  # fmt: skip


def model(name: str, fingerprint: str = "f", **fields: Any) -> ModelReport:
    return ModelReport(name=name, fingerprint=fingerprint, state=ModelState.READY, **fields)


def view(*nodes: NodeView, coordinator: NodeId | None = A) -> View:
    return View(self_id=A, enabled=True, coordinator=coordinator, term=3, alone=False, url="http://x", nodes=nodes)


NAMES = {A: "ada", B: "bob", C: "cyd"}


def test_every_open_request_is_in_exactly_one_number() -> None:
    three = view(*(NodeView(report=report(n)) for n in (A, B, C)))
    account = Account(queue_depth=5, nodes={A: NodeAccount(0, 4), B: NodeAccount(2, 3)})
    found = mesh_json(three, NAMES, account)
    mesh, nodes = found["mesh"], found["nodes"]
    assert (mesh["queue_depth"], mesh["in_flight"]) == (5, 9)
    assert [(n["queue_depth"], n["in_flight"]) for n in nodes] == [(0, 4), (2, 3), (0, 0)]
    assert mesh["queue_depth"] + mesh["in_flight"] == account.total == 14


def test_the_coordinator_is_named_and_marked() -> None:
    two = view(NodeView(report=report(B)), NodeView(report=report(A)))
    found = mesh_json(two, NAMES, Account(0, {}))
    assert (found["self"], found["mesh"]["coordinator"], found["mesh"]["term"]) == ("ada", "ada", 3)
    assert [(n["name"], n["coordinator"]) for n in found["nodes"]] == [("ada", True), ("bob", False)]
    nobody = view(NodeView(report=report(A)), coordinator=None)
    assert mesh_json(nobody, NAMES, Account(0, {}))["mesh"]["coordinator"] is None


def test_without_an_account_a_nodes_own_count_stands() -> None:
    node = NodeView(report=report(A, model("m", in_flight=2, queue_depth=1), model("n", in_flight=1)))
    found = node_json(node, view(node), "ada", None)
    assert (found["queue_depth"], found["in_flight"]) == (1, 3)
    assert node_json(node, view(node), "ada", NodeAccount(0, 1))["in_flight"] == 1


def test_a_nodes_facts() -> None:
    node = NodeView(
        report=report(A), state=NodeState.DEAD, reason="silent", rtt_s=0.0012345, addresses=("10.9.9.9",), via="static"
    )
    found = node_json(node, view(node), "ada", None)
    assert (found["state"], found["reason"], found["via"]) == ("dead", "silent", "static")
    assert (found["rtt_ms"], found["uptime_s"]) == (1.23, 12.3)
    assert found["addresses"] == ["10.9.9.9"], "in the order they are dialled"
    assert node_json(NodeView(report=report(A)), view(node), "ada", None)["addresses"] == ["10.0.0.1"]
    assert node_json(NodeView(report=report(A)), view(node), "ada", None)["rtt_ms"] is None
    assert found["memory"] == {"budget_bytes": 10, "used_bytes": 4, "headroom_bytes": 6, "pressure": "normal"}


def test_a_models_fields_for_peers_stay_between_peers() -> None:
    found = model_json(model("m", aliases=("x",), load_s=3.0, fallback=("n",)))
    assert (found["name"], list(found["aliases"]), found["state"]) == ("m", ["x"], "ready")
    assert not {"own", "load_s", "cache_tokens", "fallback", "paths"} & set(found)


def test_a_name_of_different_weights_is_noted() -> None:
    one = NodeView(report=report(A, model("m", "f1", aliases=("standard",))))
    two = NodeView(report=report(B, model("n", "f2", aliases=("standard",))))
    assert [note.split("'")[1] for note in differing_names(view(one, two))] == ["standard"]
    same = NodeView(report=report(B, model("m", "f1", aliases=("standard",))))
    assert differing_names(view(one, same)) == []
    dead = NodeView(report=two.report, state=NodeState.DEAD)
    assert differing_names(view(one, dead)) == [], "what nobody serves now confuses nobody"
    assert mesh_json(view(one, two), NAMES, Account(0, {}), ["no multicast"])["notes"][0] == "no multicast"
