"""What an independent mDNS listener hears on the loopback interface."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from zeroconf import AddressResolverIPv4, DNSQuestionType, RecordUpdateListener  # type: ignore[attr-defined]  # not in __all__
from zeroconf.asyncio import AsyncZeroconf

from mesh.mdns import SERVICE

A, TXT = 1, 16  # RFC 1035, 3.2.2


class Wire(RecordUpdateListener):
    """Each record that was said, with the time at which it was heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, Any]] = []

    def async_update_records(self, _zc: Any, now: float, records: list[Any]) -> None:
        self.heard += [(asyncio.get_running_loop().time(), r.new) for r in records]

    def addresses(self, host: str) -> list[tuple[str, int]]:
        """(address, TTL) as they were said of this name."""
        return [(str(ipaddress.ip_address(r.address)), r.ttl) for _, r in self.heard if r.type == A and r.name == host]

    def texts(self, node: str) -> list[tuple[float, bytes]]:
        """(when, what) this node advertised."""
        return [(at, r.text) for at, r in self.heard if r.type == TXT and r.name == f"{node}.{SERVICE}"]


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[AsyncZeroconf, Wire]]:
    zc, wire = AsyncZeroconf(interfaces=["127.0.0.1"]), Wire()
    await zc.zeroconf.async_wait_for_start()
    zc.zeroconf.async_add_listener(wire, None)
    try:
        yield zc, wire
    finally:
        await zc.async_close()


async def resolved(host: str) -> set[str]:
    """What a client's resolver is told that knows nothing yet: asked on the wire. What was said within the last second
    is not said again at once, so it may take one."""
    async with listener() as (zc, _):
        resolver = AddressResolverIPv4(host)
        await resolver.async_request(zc.zeroconf, 3000, question_type=DNSQuestionType.QM)
        return set(resolver.parsed_addresses())
