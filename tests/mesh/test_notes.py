"""mesh/notes.py: what a person is told of nodes that cannot be found or reached."""

from __future__ import annotations

from mesh.notes import forbidden, listed, unheard
from node.types import NodeId, NodeReport
from router.view import NodeState, NodeView, View

NAMES = ("here", "mini", "studio", "site2")
IDS = {name: NodeId(f"{number:x}" * 16) for number, name in enumerate(NAMES, 1)}


def view(uptime_s: float = 100.0) -> View:
    def node(name: str) -> NodeView:
        report = NodeReport(
            id=IDS[name], boot="b", name=name, version="1", protocol=1, priority=100, uptime_s=uptime_s, addresses=(),
            port=4000, peer_port=4001,
        )  # fmt: skip
        return NodeView(report=report, state=NodeState.OK, far=name == "site2")

    return View(self_id=IDS["here"], mesh_name="m", mesh_id="i", enabled=True, nodes=tuple(map(node, NAMES)))


ALIVE = frozenset(IDS.values()) - {IDS["here"]}


def test_near_nodes_that_mdns_never_told_of_are_named_with_what_to_do() -> None:
    (note,) = unheard(view(), ALIVE, {IDS["studio"]}, 20.0)
    assert note.startswith("mini: found by address, never by mDNS.")
    assert "`mlx-stack mesh add HOST`" in note


def test_nothing_is_said_of_those_that_were_heard_are_new_far_or_gone() -> None:
    assert unheard(view(), ALIVE, {IDS["mini"], IDS["studio"]}, 20.0) == []
    assert unheard(view(uptime_s=5.0), ALIVE, set(), 20.0) == []
    assert unheard(view(), {IDS["site2"]}, set(), 20.0) == []
    assert unheard(view(), set(), set(), 20.0) == []


def test_one_line_for_each_permission() -> None:
    why = {IDS["mini"]: "allow it", IDS["studio"]: "allow it", NodeId("f" * 16): "open it"}
    assert forbidden(view(), why) == ["mini, studio cannot be reached: allow it", "ffff cannot be reached: open it"]
    assert forbidden(view(), {}) == []


def test_a_long_list_is_cut() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed([f"mac{i}" for i in range(1, 10)]) == "mac1, mac2, mac3, mac4, mac5 and 4 more"
