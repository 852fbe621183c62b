"""The records of who belongs, from member to member: all of them on each new link and after each change, and again to
whom the digest in its gossip shows to hold other ones. So a removal reaches those that were away with their first link.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from mesh import records as words
from mesh.log import event as log_event
from mesh.records import Record
from mesh.trust import Change, Trust
from mesh.wire import Frame, Roster
from node.types import NodeId

_log = logging.getLogger("mesh.members")


class Spreading:
    """One stay in the mesh. `send` puts a frame on a link, `linked` says which there are."""

    def __init__(
        self, trust: Trust, *, send: Callable[[NodeId, Frame], bool], linked: Callable[[], Collection[NodeId]]
    ) -> None:
        self._trust, self._send, self._linked = trust, send, linked
        self._held: dict[NodeId, str] = {}  # the digest of what each has shown to hold
        self._told: dict[NodeId, tuple[str, str]] = {}  # by `compare`: what it held, what this node held

    def met(self, node: NodeId) -> None:
        """There is a new link with it."""
        self._held.pop(node, None)
        self._tell(node)

    def lost(self, node: NodeId) -> None:
        """The link is gone."""
        self._held.pop(node, None)
        self._told.pop(node, None)

    def changed(self, change: Change) -> None:
        """Something is new here. Call it before links with those that are gone end: they are to know why."""
        for node in self._linked():
            if self._held.get(node) != self._trust.digest:
                self._tell(node)
        for text in said(self._trust, change):
            log_event(_log, logging.WARNING, "members", text)

    def take(self, node: NodeId, records: tuple[Record, ...]) -> None:
        """What it holds."""
        digest = self._held[node] = words.digest(records)
        self._trust.merge(records)  # what is new is told on: `changed`
        if node in self._held:  # its link is still there: what it told may have been its own removal
            self.compare(node, digest)

    def compare(self, node: NodeId, digest: str) -> None:
        """Its gossip says which records it holds. Told once for each pair of differing sets: who still holds others
        after that refuses some, and would again."""
        if not digest or not self._trust.mesh_id:
            return
        self._held[node] = digest
        both = digest, self._trust.digest
        if digest != self._trust.digest and self._told.get(node) != both and self._tell(node):
            self._told[node] = both

    def _tell(self, node: NodeId) -> bool:
        return self._trust.mesh_id != "" and self._send(node, Roster(self._trust.records()))


def said(trust: Trust, change: Change) -> list[str]:
    """What became of whom, a sentence each; nothing of this node's own joining, which is told elsewhere."""
    me, texts = trust.identity.id, list[str]()
    if change.mesh:
        return texts
    for node in sorted(change.came - {me}):
        if (member := trust.members.get(node)) is not None:
            texts.append(f"{member.name} ({node}) is a member now: {_shown(trust, member.by)} has let it in")
    for node in sorted(change.gone):
        if (gone := trust.removed.get(node)) is not None:
            who = "this node" if node == me else f"{gone.name} ({node})"
            texts.append(f"{who} was removed from the mesh by {_shown(trust, gone.by)}")
        elif node not in trust.members:
            who = "this node" if node == me else node
            texts.append(f"{who} is no member any more: who had let it in was removed before others knew of it")
    return texts


def _shown(trust: Trust, node: NodeId) -> str:
    if node == trust.identity.id:
        return "this node"
    known = trust.members.get(node) or trust.removed.get(node)
    return known.name if known is not None else node
