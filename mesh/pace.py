"""When a node says again what nobody has asked about: the less there is to tell, the less often. Pure."""

from __future__ import annotations

from mesh.settings import PublishSettings
from node.types import NodeId


class Pace:
    """A report is due at once on a change; each second while something is open here, or while peers come and go, since
    a report that crosses with a new link may be dropped; else every few seconds, for what only time changes."""

    def __init__(self, settings: PublishSettings, now: float) -> None:
        self._settings = settings
        self._peers: frozenset[NodeId] = frozenset()
        self._met_at = now
        self._said_at = float("-inf")

    def due(self, peers: frozenset[NodeId], *, changed: bool, busy: bool, now: float) -> bool:
        """Asked each second, and on each change. True: it is said now."""
        s = self._settings
        if peers != self._peers:
            self._peers, self._met_at = peers, now
        if not (changed or busy or now < self._met_at + s.met_s or now >= self._said_at + s.quiet_every_s):
            return False
        self._said_at = now
        return True

    def pause_s(self, took_s: float) -> float:
        """Before the next one may be due, when the last took so much processor time: with each request something
        changes, and a report costs many times a request."""
        s = self._settings
        return min(max(s.gap_s, took_s / s.part), s.gap_max_s)
