"""The TCP connections of this process to others, so that those to or from an address that is gone can be ended.

The system would keep one for minutes, and whoever waits for an answer on it would wait as long as silence is borne.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import aiohttp


class PeerSockets:
    """Addresses are without port and scope."""

    def __init__(self) -> None:
        self._made: WeakSet[socket.socket] = WeakSet()

    def connector(self) -> aiohttp.TCPConnector:
        """Its connections are kept in mind here."""
        return aiohttp.TCPConnector(limit=0, socket_factory=self._make)

    def end_to(self, addresses: Collection[str]) -> int:
        """Ends connections to these addresses; how many. Who waits on one learns it at once."""
        there = {bare(a) for a in addresses}
        return self._end(socket.socket.getpeername, lambda address: address in there)

    def end_from(self, mine: Collection[str]) -> int:
        """Ends connections from addresses that are not among `mine`, this machine's."""
        here = {bare(a) for a in mine}
        return self._end(socket.socket.getsockname, lambda address: address not in here)

    def _make(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = info
        made = socket.socket(family, kind, protocol)
        self._made.add(made)
        return made

    def _end(self, name: Callable[[socket.socket], tuple[Any, ...]], gone: Callable[[str], bool]) -> int:
        ended = 0
        for made in list(self._made):
            with suppress(OSError):  # closed, or not connected yet
                if gone(bare(str(name(made)[0]))):
                    made.shutdown(socket.SHUT_RDWR)
                    ended += 1
        return ended


def bare(address: str) -> str:
    """Without scope, and an IPv4 address as such."""
    text = address.partition("%")[0]
    with suppress(ValueError):
        ip = ipaddress.ip_address(text)
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return str(mapped or ip)
    return text
