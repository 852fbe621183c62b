"""How much multicast DNS one machine reads: anybody on the network may send any amount of it. Pure."""

from __future__ import annotations

from collections import deque

from mesh.settings import FloodSettings


class _Bucket:
    """Fills at `rate` bytes a second up to `burst`."""

    __slots__ = ("at", "burst", "left", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst, self.left, self.at = rate, burst, burst, now

    def fill(self, now: float) -> float:
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        return self.left


class FloodGate:
    """Admits datagrams, each source so much and all together so much. `now` in seconds, never going back."""

    def __init__(self, settings: FloodSettings | None = None, now: float = 0.0) -> None:
        self._settings = settings or FloodSettings()
        s = self._settings
        self._all = _Bucket(s.bytes_per_s, s.burst_bytes, now)
        self._sources: dict[str, _Bucket] = {}
        self._refused: deque[tuple[int, str, int]] = deque()  # (second, source, datagrams), a few at most
        self.refused = 0  # datagrams, since the start

    def admits(self, source: str, size: int, now: float) -> bool:
        """Whether to read a datagram of `size` bytes from this address."""
        s, bucket = self._settings, self._sources.get(source)
        if bucket is None:
            if len(self._sources) >= s.sources_max:
                self._forget(now)
            bucket = self._sources[source] = _Bucket(s.source_bytes_per_s, s.source_burst_bytes, now)
        cost = max(size, s.datagram_bytes)
        if bucket.fill(now) >= cost and self._all.fill(now) >= cost:
            bucket.left -= cost
            self._all.left -= cost
            return True
        self._note(source, int(now))
        return False

    def refused_lately(self, now: float) -> tuple[int, str]:
        """Datagrams not read within the last note_s seconds, and the address most of them came from."""
        while self._refused and self._refused[0][0] < now - self._settings.note_s:
            self._refused.popleft()
        by: dict[str, int] = {}
        for _, source, count in self._refused:
            by[source] = by.get(source, 0) + count
        return sum(by.values()), max(by, key=lambda source: by[source], default="")

    def _note(self, source: str, second: int) -> None:
        self.refused += 1
        last = self._refused[-1] if self._refused else None
        if last is not None and last[0] == second:
            self._refused[-1] = (second, last[1], last[2] + 1)
        else:
            self._refused.append((second, source, 1))
            while self._refused[0][0] < second - self._settings.note_s:
                self._refused.popleft()

    def _forget(self, now: float) -> None:
        """Room for one more source: those whose bucket is full again are as good as new; else the fullest goes."""
        full = [source for source, bucket in self._sources.items() if bucket.fill(now) >= bucket.burst]
        for source in full or [max(self._sources, key=lambda source: self._sources[source].left)]:
            del self._sources[source]
