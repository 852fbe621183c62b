"""What membership is told and what it asks for; the daemon carries both. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from msgspec import Struct

from mesh.wire import Hello, PeerSeen
from node.types import NodeId, NodeReport

TryKind: TypeAlias = Literal["refused", "timeout", "unreachable", "rejected"]

# Events


class Seen(Struct, frozen=True):
    """mDNS, gossip, the cache or a static address says where a node is."""

    peer: PeerSeen


class Added(Struct, frozen=True):
    """`mesh add`: like Seen, and kept at once."""

    peer: PeerSeen


class Removed(Struct, frozen=True):
    """`mesh remove` of one that is not there: it is forgotten until it is seen again. Who belongs, `Belong` says."""

    node: NodeId


class Beat(Struct, frozen=True):
    """A datagram of this node's process `boot` arrived. `deaf`: it says that nothing of this node reaches it."""

    node: NodeId
    boot: str
    deaf: bool = False


class LinkUp(Struct, frozen=True):
    hello: Hello
    address: str  # of the other side, without port
    far: bool = False  # that address is in none of our subnets


class Framed(Struct, frozen=True):
    """Any frame arrived on this node's link."""

    node: NodeId


class Reported(Struct, frozen=True):
    report: NodeReport


class Rtt(Struct, frozen=True):
    node: NodeId
    rtt_s: float


class SaidBye(Struct, frozen=True):
    """It leaves, by its own word (never for `duplicate`)."""

    node: NodeId
    reason: str


class LinkClosed(Struct, frozen=True):
    """`eof`: the other side's process or kernel ended it, without a bye."""

    node: NodeId
    why: str
    eof: bool


class Tried(Struct, frozen=True):
    """Dialling one address has failed. `last_good`: the address of the link before."""

    node: NodeId
    address: str
    kind: TryKind
    why: str
    last_good: bool


class Unfit(Struct, frozen=True):
    """A node that answered a dial, or dialled us, but is none of ours."""

    hello: Hello
    code: Literal["other_version", "other_mesh"]


class Ruled(Struct, frozen=True):
    """What the election says now."""

    coordinator: NodeId | None
    term: int
    alone: bool
    url: str = ""


class SelfChanged(Struct, frozen=True):
    report: NodeReport


class Switch(Struct, frozen=True):
    """`mesh enable` and `disable`, and a new `mesh-name`: starts again with nobody known."""

    enabled: bool
    mesh_name: str
    mesh_id: str = ""
    why: str = "mesh disabled"


class Belong(Struct, frozen=True):
    """The other members of this mesh, now. Until it is told everybody counts as one."""

    nodes: frozenset[NodeId]


class Outsiders(Struct, frozen=True):
    """What to say of nodes that are no members; of those `hidden`, nothing."""

    why: Mapping[NodeId, str]
    hidden: frozenset[NodeId] = frozenset()


class Tick(Struct, frozen=True):
    pass


OfPeer: TypeAlias = (
    Seen | Added | Removed | Beat | LinkUp | Framed | Reported | Rtt | SaidBye | LinkClosed | Tried | Unfit
)  # fmt: skip
Own: TypeAlias = Ruled | SelfChanged | Switch | Belong | Outsiders | Tick
Event: TypeAlias = OfPeer | Own

# Effects


class Known(Struct, frozen=True):
    """A new peer: heartbeats go to it from now on. `last`: it is far and on the added side, so it ranks last."""

    node: NodeId
    last: bool


class Moved(Struct, frozen=True):
    """`last` of a known peer is another now: it was far and is near, or the other way round, or it was added."""

    node: NodeId
    last: bool


class Forgotten(Struct, frozen=True):
    node: NodeId


class Dial(Struct, frozen=True):
    """Keep a link to `peer`; its addresses are now these, best first. `at_once`: no back-off for the next try."""

    peer: PeerSeen
    at_once: bool


class HangUp(Struct, frozen=True):
    """Close the link, if any, with a bye, and dial no more."""

    node: NodeId
    reason: str


class Up(Struct, frozen=True):
    """It can be given work: linked, alive, and its report is in the view."""

    node: NodeId


class Down(Struct, frozen=True):
    node: NodeId
    why: str


class GaveUp(Struct, frozen=True):
    """It says that it has given this node up: it waits no more for anything that runs here."""

    node: NodeId


class Withdrew(Struct, frozen=True):
    """It has these addresses no more, nor has another peer: nothing that is on its way to or from them arrives."""

    node: NodeId
    addresses: tuple[str, ...]


class Gone(Struct, frozen=True):
    """Its process has ended or left for certain: no need to wait for its silence."""

    node: NodeId
    why: str


class Changed(Struct, frozen=True):
    """The view differs."""


class Save(Struct, frozen=True):
    """`to_keep()` differs: write it to disk."""


Effect: TypeAlias = Known | Moved | Forgotten | Dial | HangUp | Up | Down | GaveUp | Withdrew | Gone | Changed | Save


@dataclass(slots=True)
class Out:
    """The effects of one step; `changed`: the view is another."""

    effects: list[Effect] = field(default_factory=list)
    changed: bool = False

    def add(self, *effects: Effect) -> None:
        self.effects.extend(effects)
