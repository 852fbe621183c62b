"""What daemons wrote into their logs about the mesh, and when a group of them came to agree."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

NOBODY = ""


def monotonic(at: str) -> float:
    """An RFC 3339 time on the clock that all namespaces share, to the millisecond."""
    return datetime.fromisoformat(at).timestamp() - (time.time() - time.monotonic())


class Told(msgspec.Struct, frozen=True):
    """One line of a log. `at` on the monotonic clock that all namespaces share, to the millisecond."""

    at: float
    event: str
    level: str
    message: str = ""
    node: str = ""  # the id of the node that came or went
    coordinator: str = NOBODY  # the id of the new coordinator
    term: int = 0


class _Line(msgspec.Struct, frozen=True):
    at: str
    event: str
    level: str = ""
    message: str = ""
    node: str | None = None
    coordinator: str | None = None
    term: int = 0


class Log:
    """The lines of one daemon's log that are about the mesh, read as they come. A restarted daemon goes on with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read, self._rest = 0, b""
        self._told: list[Told] = []

    def told(self) -> list[Told]:
        """All so far, oldest first."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            self._told += (told for line in lines if (told := _told(line)))
        return self._told

    def rulings(self) -> list[Told]:
        """Each change of coordinator as it saw it."""
        return [told for told in self.told() if told.event == "coordinator"]

    def gone(self, since: float) -> list[Told]:
        """Each node that it took for dead since then (monotonic)."""
        return [t for t in self.told() if t.event == "node" and t.level == "warning" and t.at >= since]


def _told(line: bytes) -> Told | None:
    if b'"event":"coordinator"' not in line and b'"event":"node"' not in line:
        return None
    try:
        found = msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError:
        return None
    return Told(
        monotonic(found.at),
        found.event,
        found.level,
        found.message,
        found.node or "",
        found.coordinator or NOBODY,
        found.term,
    )


@dataclass(frozen=True)
class Agreement:
    """Since `at` (monotonic) they all follow `coordinator` (its id) in `term`."""

    at: float
    coordinator: str
    term: int


def agreement(logs: Iterable[Log], coordinators: Iterable[str]) -> Agreement | None:
    """When the last of them came to what all of them hold now; None while they differ, or follow none of
    `coordinators` (ids)."""
    last = [rulings[-1] if (rulings := log.rulings()) else None for log in logs]
    held = {(told.coordinator, told.term) for told in last if told}
    if None in last or len(held) != 1:
        return None
    coordinator, term = held.pop()
    if coordinator not in coordinators:
        return None
    return Agreement(max(told.at for told in last if told), coordinator, term)
