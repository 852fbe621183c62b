"""Who may be connected: how many in all and from one address, and who makes way when it is full.

The number of connections is bounded well below what the system would let us open: a server that cannot accept finds
out in a loop, and cannot say so.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from node.crowd import Crowd
from node.http_request import Fault
from node.settings import FrontSettings


class Guest(Protocol):
    """A connection."""

    def abort(self) -> None: ...


class Entrance:
    """`come` and `gone` once each. `limited` hears the name of each limit that was met."""

    def __init__(self, settings: FrontSettings, limited: Callable[[str], None]) -> None:
        self._refused_max, self.limited = settings.refused_max, limited
        self.crowd = Crowd(settings.crowd)
        self.silent: dict[Guest, float] = {}  # have not asked for anything, and since when (loop's time): oldest first
        self.idle: dict[Guest, float] = {}  # have been answered, or refused; longest first
        self.refused: set[Guest] = set()  # hear why, and end
        self.may_cut = 0  # so many more that do not read, at this look

    def come(self, guest: Guest, address: str, now: float) -> Fault | None:
        """Why not, if it has to end; then whether it can be told is `tells`'."""
        if (full := self.crowd.full(address)) == "address":
            self.limited("address_connections")
            most = self.crowd.most(address)
            return Fault(
                429,
                f"{most} connections from your address are open here (`connections-per-address`); close some, or use "
                "them again",
            )
        if full and not self._make_way():
            self.limited("connections")
            return Fault(503, "as many connections are open here as this node can hold; try again soon")
        self.crowd.enter(address)
        self.silent[guest] = now
        return None

    def tells(self, guest: Guest) -> bool:
        """Whether there is a place for one more that hears why it was refused."""
        if len(self.refused) >= self._refused_max:
            return False
        self.refused.add(guest)
        return True

    def gone(self, guest: Guest, address: str) -> None:
        """It has ended."""
        self.asks(guest)
        if guest in self.refused:
            self.refused.discard(guest)
        else:
            self.crowd.leave(address)

    def asks(self, guest: Guest) -> None:
        """A request has begun."""
        if self.silent.pop(guest, None) is None:
            self.idle.pop(guest, None)

    def rests(self, guest: Guest, now: float) -> None:
        """Its answer is over, or all that it will hear."""
        if guest not in self.refused:  # That one holds no place, and none is won by its end.
            self.asks(guest)
            self.idle[guest] = now

    def cuts(self) -> bool:
        """Whether one that does not read is cut off now. Many at once would keep the others waiting."""
        if not self.may_cut:
            return False
        self.may_cut -= 1
        self.limited("slow_reader")
        return True

    def _make_way(self) -> bool:
        """The one that has said nothing for longest ends, else the one that was idle for longest."""
        for quiet in (self.silent, self.idle):
            if quiet:
                guest = next(iter(quiet))
                del quiet[guest]
                guest.abort()
                self.limited("made_way")
                return True
        return False


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection so that the system forgets what it holds for it: else it goes on offering that to a client
    which does not read, for minutes."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class HandedOver(asyncio.Protocol):
    """A connection of another protocol, whose end is told."""

    def __init__(self, other: asyncio.Protocol, gone: Callable[[], None]) -> None:
        self._other, self._gone = other, gone
        # The event loop looks these up on the instance: nothing is called in between.
        self.data_received = other.data_received  # type: ignore[method-assign]  # see above
        self.eof_received = other.eof_received  # type: ignore[method-assign]  # see above
        self.pause_writing = other.pause_writing  # type: ignore[method-assign]  # see above
        self.resume_writing = other.resume_writing  # type: ignore[method-assign]  # see above

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self._other.connection_lost(exc)
