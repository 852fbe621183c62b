"""What the rail knows of one model: its room, its use, how likely it is asked for again."""

from __future__ import annotations

from msgspec import Struct

from node.rail_events import FOREVER
from node.victims import Candidate


class Resident(Struct):
    """Changed by the rail only. Times are seconds on its clock."""

    name: str
    size_bytes: int = 0  # reserved, or wanted while it waits
    pinned: bool = False
    keep_s: float = FOREVER
    load_s: float = 1.0
    session_keep_s: float | None = None  # the last keep_alive asked for, until it is unloaded
    reserved: bool = False
    ready_at: float | None = None  # None: not loaded, or loading
    used: bool = False  # it has answered since it was loaded
    in_flight: int = 0
    idle_since: float = 0.0
    ending: bool = False  # Evict was said
    yielding: bool = False  # takes no new request: somebody waits for its room
    waits_since: float = 0.0
    told: str = ""  # the last Held
    demand: float = 0.0  # requests, each worth half after a half-life
    demand_at: float = 0.0

    @property
    def idle(self) -> bool:
        """Could be unloaded now without harm to any request."""
        return self.reserved and self.ready_at is not None and not self.ending and self.in_flight == 0

    def cold(self, gap_s: float, now: float) -> bool:
        """Idle, and quiet for the gap."""
        return self.idle and now >= self.idle_since + gap_s

    @property
    def kept_s(self) -> float:
        """Seconds of disuse after which it goes by itself."""
        return self.keep_s if self.session_keep_s is None else self.session_keep_s

    @property
    def unused(self) -> str:
        """Why it goes by itself."""
        return f"unused for {self.kept_s:g} s" if self.kept_s else "keep_alive 0: unloaded after the answer"

    @property
    def expires_at(self) -> float | None:
        """When it goes by itself; None: not while it is busy, pinned or kept for ever. "After the answer" (0) needs an
        answer: what was loaded before anybody asked stays for the first one."""
        if not self.idle or self.pinned or self.kept_s == FOREVER or not (self.kept_s or self.used):
            return None
        return self.idle_since + self.kept_s

    def wanted(self, half_life_s: float, now: float) -> float:
        """How often it was asked for of late: requests, each forgotten with time."""
        return float(self.demand * 0.5 ** ((now - self.demand_at) / half_life_s))

    def candidate(self, half_life_s: float, now: float) -> Candidate:
        """It as one that may go: bringing it back costs its load time, as likely as it was asked for of late."""
        cost = self.load_s * self.wanted(half_life_s, now)
        return Candidate(self.name, self.size_bytes, not self.idle, cost, -self.idle_since)

    def released(self) -> None:
        """Its process is gone."""
        self.reserved = self.ending = self.yielding = self.used = False
        self.ready_at = self.session_keep_s = None
        self.in_flight = 0

    def doing(self, gap_s: float, now: float) -> str:
        """Why its room cannot be had, for people."""
        if self.ending:
            return "is being unloaded"
        if self.pinned:
            return "pinned"
        if self.ready_at is None:
            return "loading"
        if self.in_flight:
            return "answering, takes no more" if self.yielding else "answering"
        return "idle" if self.cold(gap_s, now) else f"used less than {gap_s:g} s ago"
