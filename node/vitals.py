"""Whether a worker that runs also works: progress while it is busy, a probe now and then while it is idle."""

from __future__ import annotations

from node.settings import NodeSettings


class Progress:
    """Watches counters that only grow. A worker that has something to do and lets none of them grow hangs."""

    def __init__(self, now: float) -> None:
        self._counters: tuple[int, ...] = ()
        self._since = now

    def silent_s(self, counters: tuple[int, ...], *, busy: bool, now: float) -> float:
        """Seconds without any progress while there was something to do."""
        if not busy or counters != self._counters:
            self._counters, self._since = counters, now
        return now - self._since


def patience_s(settings: NodeSettings, tokens: int, prefill_tps: float | None, *, tells: bool = True) -> float:
    """How long a busy worker may say nothing: a few times what it takes to read `tokens`, which it may read without a
    word, at its own measured speed; or at a very slow one, until that is known. `tells`: it says how reading goes."""
    tps = prefill_tps or settings.hang_prefill_tps
    return max(settings.hang_floor_s if tells else settings.hang_blind_s, settings.hang_factor * tokens / tps)


class ProbeClock:
    """When an idle worker is probed: after a while, then at growing intervals; from the start again once it has
    answered somebody."""

    def __init__(self, settings: NodeSettings, now: float) -> None:
        self._settings = settings
        self._interval_s = settings.idle_probe_first_s
        self._next = now + self._interval_s

    def due(self, *, idle: bool, now: float) -> bool:
        """True once at each time; an answer to somebody counts as a probe."""
        if not idle:
            self._interval_s = self._settings.idle_probe_first_s
            self._next = now + self._interval_s
        if now < self._next:
            return False
        self._interval_s = min(2 * self._interval_s, self._settings.idle_probe_cap_s)
        self._next = now + self._interval_s
        return True
