"""How many there are at a time, in all and from each address: of connections, and of requests that are open. Pure.

Nobody's place depends on others' restraint: the last part of all places is for addresses that hold few, so that some
machines which hold many cannot shut out one that asks for its first.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Literal, TypeAlias

from node.settings import CrowdSettings

Full: TypeAlias = Literal["all", "address"]


class Crowd:
    """`enter` and `leave` in pairs, with an address as the socket gives it; "" stands for a local socket."""

    def __init__(self, settings: CrowdSettings) -> None:
        self._settings = settings
        self._held: dict[str, int] = {}
        self.count = 0

    def of(self, address: str) -> int:
        """So many of its own are inside."""
        return self._held.get(address, 0)

    def most(self, address: str) -> int:
        """So many it may have inside at a time."""
        return self._settings.loopback_max if is_loopback(address) else self._settings.address_max

    def full(self, address: str) -> Full | None:
        """Why it may not enter."""
        s, held = self._settings, self._held.get(address, 0)
        if held >= self.most(address):
            return "address"
        return "all" if self.count >= (s.all_max if held < s.few else s.all_max - s.kept) else None

    def enter(self, address: str) -> None:
        """It is inside, whether or not there is room."""
        self.count += 1
        self._held[address] = self._held.get(address, 0) + 1

    def leave(self, address: str) -> None:
        self.count -= 1
        left = self._held[address] - 1
        if left:
            self._held[address] = left
        else:
            del self._held[address]


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """This machine itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return not address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback
