"""Nodes of this mesh's name that are no members: seen, shown as `waiting` with what to do, given nothing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mesh.member import incompatible
from mesh.settings import MembershipSettings
from mesh.wire import PeerSeen
from node.types import NodeId, NodeReport
from router.view import NodeState, NodeView

UNKNOWN = "it is no member of this mesh"


class Outside:
    """`why` is what to say of each, `hidden` are those of whom nothing is to be said. Times in seconds."""

    def __init__(self, settings: MembershipSettings) -> None:
        self._settings = settings
        self._seen: dict[NodeId, tuple[PeerSeen, float]] = {}
        self._why: Mapping[NodeId, str] = {}
        self._hidden: Collection[NodeId] = ()

    def see(self, seen: PeerSeen, now: float) -> bool:
        """True: what is shown may be another. The one that was seen first gives way when there are too many."""
        before = self._seen.pop(seen.id, None)
        self._seen[seen.id] = seen, now
        if len(self._seen) > self._settings.strangers_max:
            told = (node for node in self._seen if node not in self._why)
            del self._seen[next(told, next(iter(self._seen)))]
        return before is None or before[0] != seen

    def explain(self, why: Mapping[NodeId, str], hidden: Collection[NodeId]) -> bool:
        before = self._why, self._hidden
        self._why, self._hidden = dict(why), frozenset(hidden)
        return before != (self._why, self._hidden)

    def take(self, node: NodeId) -> PeerSeen | None:
        """It is none of them any more; where it was seen."""
        found = self._seen.pop(node, None)
        return found[0] if found else None

    def expire(self, now: float) -> bool:
        """Whom nobody has told of for long is forgotten, unless there is something to say of it."""
        old = [
            node
            for node, (_, at) in self._seen.items()
            if node not in self._why and now >= at + self._settings.stranger_kept_s
        ]
        for node in old:
            del self._seen[node]
        return bool(old)

    def due(self) -> float | None:
        """When `expire` may change something."""
        times = [at for node, (_, at) in self._seen.items() if node not in self._why]
        return min(times) + self._settings.stranger_kept_s if times else None

    def clear(self) -> None:
        self._seen.clear()

    def shown(self) -> list[NodeView]:
        return [self._view(seen) for node, (seen, _) in sorted(self._seen.items()) if node not in self._hidden]

    def _view(self, seen: PeerSeen) -> NodeView:
        unfit = incompatible(seen.protocol, seen.version)
        report = NodeReport(
            id=seen.id, boot=seen.boot, name=seen.name, version=seen.version, protocol=seen.protocol,
            priority=seen.priority, uptime_s=0.0, port=seen.port, peer_port=seen.peer_port,
        )  # fmt: skip
        return NodeView(
            report=report, state=NodeState.INCOMPATIBLE if unfit else NodeState.WAITING, far=seen.far, via=seen.via,
            reason=unfit or self._why.get(seen.id, UNKNOWN), addresses=seen.addresses, reachable=False, member=False,
        )  # fmt: skip
