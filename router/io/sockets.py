"""The TCP connections of this process to others, so that those to or from an address that is gone can be ended.

The system would keep one for minutes, and whoever waits for an answer on it would wait as long as silence is borne.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp


class PeerSockets:
    """Addresses are without port and scope."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[socket.socket, str] = WeakKeyDictionary()  # each, and where it goes to

    def connector(self) -> aiohttp.TCPConnector:
        """Its connections are kept in mind here."""
        return aiohttp.TCPConnector(limit=0, socket_factory=self.make)

    def end_to(self, addresses: Collection[str]) -> int:
        """Ends connections to these addresses, and dials; how many. Who waits on one learns it at once."""
        there = {bare(a) for a in addresses}
        return sum(_ended(made) for made, to in list(self._made.items()) if to in there)

    def end_from(self, mine: Collection[str]) -> int:
        """Ends connections from addresses that are not among `mine`, this machine's."""
        here = {bare(a) for a in mine}
        return sum(_ended(made) for made in list(self._made) if _local(made) not in here)

    def make(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for this entry of getaddrinfo, kept in mind here."""
        family, kind, protocol, _, (to, *_) = info
        made = socket.socket(family, kind, protocol)
        self._made[made] = bare(to)
        return made


def _ended(made: socket.socket) -> bool:
    """False: it was over already."""
    try:
        made.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


def _local(made: socket.socket) -> str:
    try:
        return bare(str(made.getsockname()[0]))
    except OSError:
        return ""


def bare(address: str) -> str:
    """Without scope, and an IPv4 address as such."""
    text = address.partition("%")[0]
    with suppress(ValueError):
        ip = ipaddress.ip_address(text)
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return str(mapped or ip)
    return text
