"""Reaching one peer: all its addresses raced in parallel with a short head start, and why each one failed."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp
from aiohttp import web
from msgspec import Struct
from yarl import URL

from mesh.events import TryKind
from mesh.settings import LinkSettings
from mesh.wire import FRAME_BYTES_MAX, WireError


class Connected(Struct, frozen=True):
    address: str
    ws: web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Failed(Struct, frozen=True):
    address: str
    kind: TryKind
    why: str  # with address and port, for people


def fails(address: str, port: int, error: BaseException) -> Failed:
    """What an exception of a dial means. Only `refused` says that no process listens there."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
    match error:
        case _ if number == errno.ECONNREFUSED:
            return Failed(address, "refused", f"{where} refused the connection")
        case TimeoutError():
            return Failed(address, "timeout", f"{where} did not answer in time")
        case aiohttp.WSServerHandshakeError():
            return Failed(address, "rejected", f"{where} answers HTTP {error.status}, not a mesh link")
        case WireError():
            return Failed(address, "rejected", f"{where}: {error.message}")
        case _:
            return Failed(address, "unreachable", f"{where}: {error}")


async def race(
    session: aiohttp.ClientSession,
    addresses: Sequence[str],
    port: int,
    path: str,
    *,
    settings: LinkSettings,
    failed: Callable[[Failed], None],
) -> Connected | None:
    """The first WebSocket that opens; the others are given up before anything is said on them."""
    waiting, won = list(addresses), None
    tasks: set[asyncio.Task[Connected | None]] = set()
    async with asyncio.TaskGroup() as group:
        pending: set[asyncio.Task[Connected | None]] = set()
        while won is None and (waiting or pending):
            if waiting:
                task = group.create_task(_open(session, waiting.pop(0), port, path, settings=settings, failed=failed))
                tasks.add(task)
                pending.add(task)
            head_start_s = settings.head_start_s if waiting else None
            done, pending = await asyncio.wait(pending, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED)
            won = next((found for task in done if (found := task.result())), None)
        for task in pending:
            task.cancel()
    for task in tasks:
        other = None if task.cancelled() else task.result()
        if other is not None and other is not won:
            await other.ws.close()
    return won


async def _open(
    session: aiohttp.ClientSession,
    address: str,
    port: int,
    path: str,
    *,
    settings: LinkSettings,
    failed: Callable[[Failed], None],
) -> Connected | None:
    try:
        url = URL.build(scheme="http", host=address, port=port, path=path)
        async with asyncio.timeout(settings.connect_s):
            ws = await session.ws_connect(
                url,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=settings.close_s),
            )
    except (TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
        failed(fails(address, port, error))
        return None
    sock = ws.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connected(address, ws)
