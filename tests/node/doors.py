"""An application of the raw front on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from node.io.front import Application, Fronts
from node.settings import FrontSettings
from node.types import NodeId


class _Nobody(asyncio.Protocol):
    """What is not carried finds nobody."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


EDGE = NodeId("0123456789abcdef")  # who is at the other end, as TLS would say


@asynccontextmanager
async def opened(application: Application, member: NodeId | None = EDGE) -> AsyncIterator[int]:
    """Its port."""
    fronts = Fronts(
        application, _Nobody, settings=FrontSettings(), carries_at=lambda _: True, member_at=lambda _: member
    )
    server = await asyncio.get_running_loop().create_server(fronts, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await fronts.close(0.1)
