"""View: the immutable picture of the mesh that one decision, one status and one `/v1/models` read."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from node.types import NodeId, NodeReport


class NodeState(StrEnum):
    """A node as seen from here. Only `ok` and `suspect` nodes get work; `draining` ones finish theirs."""

    OK = "ok"
    SUSPECT = "suspect"
    DEAD = "dead"
    DRAINING = "draining"
    WAITING = "waiting"  # found, but not (yet) a member
    INCOMPATIBLE = "incompatible"


class NodeView(Struct, frozen=True, kw_only=True):
    """One node: what it last reported, and what is known of it from here. `rtt_s` seconds there and back."""

    report: NodeReport
    state: NodeState = NodeState.OK
    reason: str = ""
    far: bool = False
    via: str = "mdns"  # mdns | static | tailscale | gossip
    rtt_s: float | None = None
    addresses: tuple[str, ...] = ()  # dial order: what answered last comes first
    reachable: bool = True  # a link is up, or it is this node


class View(Struct, frozen=True, kw_only=True):
    """`nodes` holds this node too (`self_id`), always. `coordinator` None: nobody is known to coordinate."""

    self_id: NodeId
    mesh_name: str = "default"
    mesh_id: str = ""
    enabled: bool = False
    coordinator: NodeId | None = None
    term: int = 0
    alone: bool = True
    url: str = ""
    nodes: tuple[NodeView, ...] = ()

    def node(self, node: NodeId) -> NodeView | None:
        """The node with this id, or None."""
        return next((n for n in self.nodes if n.report.id == node), None)

    def serving(self) -> tuple[NodeView, ...]:
        """Nodes whose models count: alive, reachable and not draining."""
        return tuple(n for n in self.nodes if n.reachable and n.state in (NodeState.OK, NodeState.SUSPECT))

    def names(self) -> dict[NodeId, str]:
        """Each node as people know it: its name, or `name~id4` where another node has the same one."""
        named: dict[str, int] = {}
        for node in self.nodes:
            named[node.report.name] = named.get(node.report.name, 0) + 1
        return {
            n.report.id: n.report.name if named[n.report.name] == 1 else f"{n.report.name}~{n.report.id[:4]}"
            for n in self.nodes
        }
