"""One membership under a virtual clock, and what peers say to it."""

from __future__ import annotations

from typing import Any, TypeVar

from mesh.events import Beat, Effect, Event, LinkUp, Reported, Seen, Tick
from mesh.membership import Membership
from mesh.settings import MembershipSettings
from mesh.wire import PROTOCOL, Hello, PeerSeen
from node.types import NodeId, NodeReport
from router.view import NodeView

ME, A, B = NodeId("00" * 8), NodeId("aa" * 8), NodeId("bb" * 8)
T = TypeVar("T", bound=Effect)


def report(id_: NodeId = A, boot: str = "b1", name: str = "mini", **more: Any) -> NodeReport:
    return NodeReport(
        id=id_, boot=boot, name=name, version="0.1", protocol=PROTOCOL, priority=100, uptime_s=1.0, **more
    )


def seen(id_: NodeId = A, **more: Any) -> PeerSeen:
    return PeerSeen(**{"id": id_, "name": "mini", "addresses": ("10.0.0.2",), **more})


def hello(id_: NodeId = A, boot: str = "b1", **more: Any) -> Hello:
    base: dict[str, Any] = {"mesh": "default", "mesh_id": "", "version": "0.1", "protocol": PROTOCOL}
    return Hello(**{**base, "id": id_, "boot": boot, "name": "mini", "peer_port": 4001, "port": 4000, **more})


class World:
    """One membership under a virtual clock, woken at its deadlines as the driver does."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.log: list[tuple[float, Effect]] = []
        self.m = Membership(report(ME, name="me"), enabled=True, settings=MembershipSettings(**settings))

    def tell(self, *events: Event) -> list[Effect]:
        effects = [effect for event in events for effect in self.m.step(event, self.now)]
        self.log += [(self.now, e) for e in effects]
        return effects

    def wait(self, seconds: float, *, beats: tuple[NodeId, ...] = (), every: float = 0.1, boot: str = "b1") -> None:
        """Time passes; the nodes in `beats` are heard `every` seconds."""
        end, beat = self.now + seconds, self.now + every
        while True:
            due = self.m.deadline
            self.now = min([end, *([beat] if beats else []), *([due] if due is not None else [])])
            if due is not None and due <= self.now:
                self.tell(Tick())
            if beats and beat <= self.now:
                self.tell(*(Beat(node, boot) for node in beats))
                beat += every
            if self.now >= end:
                return

    def join(self, id_: NodeId = A, boot: str = "b1") -> None:
        self.tell(Seen(seen(id_)), LinkUp(hello(id_, boot), "10.0.0.2"), Reported(report(id_, boot)), Beat(id_, boot))

    def node(self, id_: NodeId = A) -> NodeView:
        node = self.m.view().node(id_)
        assert node is not None
        return node

    def times(self, kind: type[T]) -> list[tuple[float, T]]:
        return [(at, e) for at, e in self.log if isinstance(e, kind)]
