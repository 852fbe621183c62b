"""View: the immutable picture of the mesh that one decision, one status and one `/v1/models` read."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from functools import cached_property
from typing import Any

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
    member: bool = True  # of this mesh; else it is only shown


class View(Struct, frozen=True, kw_only=True, dict=True):  # a dict for what is worked out once
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
        """Each node as people know it, unique in this view: its name, or `name~id4` where another has the same one
        (but for capitals), with as much of the id as tells them apart. Not to be changed: each request asks for it."""
        return self._names

    @cached_property
    def wanted(self) -> dict[tuple[str, str, bool], Any]:
        """Kept by router/catalog.py: what a name means in this view. Only for names that are there, so bounded."""
        return {}

    @cached_property
    def _names(self) -> dict[NodeId, str]:
        count = Counter(n.report.name.lower() for n in self.nodes)
        return {
            n.report.id: n.report.name if count[n.report.name.lower()] == 1 else self.long_name(n.report)
            for n in self.nodes
        }

    def long_name(self, node: NodeReport) -> str:
        """`name~id4`, or more of the id where another node's begins alike."""
        others = [n.report.id for n in self.nodes if n.report.id != node.id]
        lengths = (n for n in range(4, len(node.id)) if not any(o.startswith(node.id[:n]) for o in others))
        return f"{node.name}~{node.id[: next(lengths, len(node.id))]}"
