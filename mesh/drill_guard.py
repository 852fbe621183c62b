"""What a drill may do to this node: one drill at a time, and only so often. Pure: the time is passed in, in seconds."""

from __future__ import annotations

from collections import deque

from mesh.settings import DrillSettings
from node.types import NodeId


class Guard:
    """Each method answers why not, "" when it may be. `who` asks; `drill` is the name of its drill."""

    def __init__(self, settings: DrillSettings) -> None:
        self._settings = settings
        self._holder: tuple[NodeId, str] | None = None
        self._until = float("-inf")
        self._kills: deque[float] = deque(maxlen=settings.kills_max)
        self._falls: deque[float] = deque(maxlen=settings.falls_max)
        self._last = float("-inf")  # a fault began

    def hold(self, who: NodeId, drill: str, now: float) -> str:
        """From now on, for hold_s, no other drill may touch this node."""
        if now < self._until and self._holder != (who, drill):
            return "another drill runs"
        self._holder, self._until = (who, drill), now + self._settings.hold_s
        return ""

    def release(self, who: NodeId, drill: str) -> str:
        """That drill is over."""
        if self._holder == (who, drill):
            self._until = float("-inf")
        return ""

    def kill(self, who: NodeId, drill: str, now: float) -> str:
        """A model server is killed now, if it may be."""
        return self._fault(self._kills, "model servers killed", who, drill, now)

    def fall(self, who: NodeId, drill: str, now: float) -> str:
        """The node falls out of the mesh now, if it may."""
        return self._fault(self._falls, "falls", who, drill, now)

    def _fault(self, lately: deque[float], what: str, who: NodeId, drill: str, now: float) -> str:
        s = self._settings
        if now >= self._until or self._holder != (who, drill):
            return "no such drill was announced here"
        if now < self._last + s.gap_s:
            return f"something was stopped here less than {s.gap_s:.0f} s ago"
        if len(lately) == lately.maxlen and now < lately[0] + s.window_s:
            return f"{lately.maxlen} {what} within {s.window_s / 60:.0f} minutes are enough"
        lately.append(now)
        self._last, self._until = now, now + s.hold_s
        return ""
