"""How long one peer may be silent before that means something: learned from its own longest gaps. Pure."""

from __future__ import annotations

from collections import deque

from mesh.settings import MembershipSettings


class Liveness:
    """Signs of life of one process: heartbeats (datagrams) and frames of its link. Times in seconds on one clock."""

    def __init__(self, settings: MembershipSettings, *, far: bool) -> None:
        self.far = far
        self.heard: float | None = None  # the last sign of either kind; None: never
        self._settings, self._beat = settings, None  # type: MembershipSettings, float | None
        self._gaps: deque[tuple[float, float]] = deque()  # (when, gap), gaps falling: the first is the longest
        self._small_s = (settings.patience_floor_s - settings.gap_extra_s) / settings.gap_factor  # teaches nothing

    def beat(self, now: float) -> None:
        """A heartbeat has arrived."""
        if self._beat is not None:
            self._remember(now - self._beat, now)
        self._beat = self.heard = now

    def frame(self, now: float) -> None:
        """A frame has arrived on its link: it lives, but TCP's gaps say nothing about datagrams'."""
        self.heard = now

    def forgive(self, now: float) -> None:
        """We were stalled ourselves: its silence until now is not its own."""
        self.heard = None if self.heard is None else now
        self._beat = None if self._beat is None else now

    def _remember(self, gap_s: float, now: float) -> None:
        gaps, old = self._gaps, now - self._settings.gap_window_s
        if gap_s >= self._small_s:
            gap_s = min(round(gap_s, 2), self._settings.patience_cap_s)  # 10 ms steps bound the memory to 150 entries
            while gaps and gaps[-1][1] <= gap_s:
                gaps.pop()
            gaps.append((now, gap_s))
        while gaps and gaps[0][0] < old:
            gaps.popleft()

    @property
    def datagrams_missing(self) -> bool:
        """Its link talks, its heartbeats do not arrive (UDP blocked?)."""
        if self.heard is None:
            return False
        return self._beat is None or self.heard - self._beat > self._settings.datagrams_missing_s

    @property
    def answer_s(self) -> float:
        """A heartbeat of ours has been answered by one of its own within this, as a rule."""
        return self._settings.far_patience_floor_s if self.far else self._settings.patience_floor_s

    def patience_s(self) -> float:
        """Silence of this length is suspect: clamp(factor x longest gap + extra, floor, cap)."""
        s = self._settings
        wanted = s.gap_factor * (self._gaps[0][1] if self._gaps else 0.0) + s.gap_extra_s
        if self.far or self.datagrams_missing:
            return min(max(wanted, s.far_patience_floor_s), s.far_patience_cap_s)
        return min(max(wanted, s.patience_floor_s), s.patience_cap_s)
