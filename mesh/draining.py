"""A drain by hand that holds: over restarts and elections, until its time is over or it is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from mesh.files import read_or_set_aside

LOOK_EVERY_S = 5.0  # the end is a wall-clock time: a sleep or a corrected clock moves it against any timer
UNTIL_MAX = 253_402_300_799.0  # the end of the year 9999, the last that can be shown


class DrainFile(Struct, frozen=True, kw_only=True):
    """node/drain.json: what was last said by hand. `until` Unix seconds; None: until it is ended."""

    version: int = 1
    draining: bool = False
    until: Annotated[float, Meta(ge=0, le=UNTIL_MAX)] | None = None


class Drained(Protocol):
    """The part of Host that this needs."""

    def drain(self, reason: str) -> None: ...
    def undrain(self) -> None: ...


class Draining:
    """`write` is LateWriter's: it neither waits nor raises. `tell` gets a sentence when the file is damaged or a drain
    has ended by itself; `clock` gives Unix seconds."""

    def __init__(
        self,
        file: Path,
        host: Drained,
        *,
        tell: Callable[[str], None],
        write: Callable[[Path, bytes], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._host, self._tell, self._clock = file, host, tell, clock
        self._write = write
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def restore(self) -> None:
        """At the start: what was said before still holds, unless its time was over meanwhile."""
        found = read_or_set_aside(self._file, msgspec.json.Decoder(DrainFile).decode, self._tell)
        if found is None or not found.draining:
            return
        if found.until is not None and found.until <= self._clock():
            self._tell(f"this node takes requests again: its drain ended at {_shown(found.until)}, while it was down")
            self._keep(DrainFile())
        else:
            self._begin(found.until)

    def begin(self, for_s: float | None) -> None:
        """Takes no new requests from now on, for `for_s` seconds or until `end`. A drain that is on is replaced."""
        until = None if for_s is None else self._clock() + for_s
        self._keep(DrainFile(draining=True, until=until))
        self._begin(until)

    def end(self) -> None:
        """Takes requests again. Idempotent."""
        self.pause()
        self._keep(DrainFile())
        self._host.undrain()

    def pause(self) -> None:
        """The node ends: nothing happens by itself any more, and the next start begins where this one was."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, until: float | None) -> None:
        self.pause()
        self._until = until
        self._host.drain("drained by hand" + (f" until {_shown(until)}" if until is not None else ""))
        self._look()

    def _keep(self, file: DrainFile) -> None:
        self._write(self._file, msgspec.json.encode(file))

    def _look(self) -> None:
        self._timer = None
        if self._until is None:
            return
        left_s = self._until - self._clock()
        if left_s <= 0:
            self._tell("this node takes requests again: the time of its drain is over")
            self.end()
        else:
            self._timer = asyncio.get_running_loop().call_later(min(left_s, LOOK_EVERY_S), self._look)


def _shown(until: float) -> str:
    return datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
