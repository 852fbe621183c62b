"""Reaching one member: all its addresses raced in parallel with a short head start, and why each one failed."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp
from aiohttp import web
from msgspec import Struct
from yarl import URL

from mesh.addresses import plain
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
    forbidden: str = ""  # what a person must allow, on this machine


_PANE = "System Settings > Privacy & Security > Local Network"


def denied(number: int | None, *, near: bool, platform: str = sys.platform) -> str:
    """What to do about this errno of a send or a connect; "" when it says nothing of permissions. `near`: the other
    address is in one of this machine's own networks, where a route always leads.

    Without the permission macOS answers EHOSTUNREACH (Apple's TN3179); a machine that is off is EHOSTDOWN there.
    """
    if near and platform == "darwin" and number == errno.EHOSTUNREACH:
        return f"macOS keeps this program from the local network: allow it under {_PANE}"
    if number in (errno.EPERM, errno.EACCES):
        return "a firewall or a route of this machine forbids it: allow TCP and UDP of the peer port and UDP 5353"
    return ""


def fails(address: str, port: int, error: BaseException, *, near: bool = False) -> Failed:
    """What an exception of a dial means. Only `refused` says that no process listens there. `near` as for `denied`."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed(address, "rejected", f"{where} has another key than this member")
    if isinstance(error, ssl.SSLError):
        return Failed(address, "rejected", f"{where} does not speak TLS as nodes do")
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
    if forbidden := denied(number, near=near):
        return Failed(address, "unreachable", f"{where}: {forbidden}", forbidden)
    match error:
        case _ if near and number == errno.EHOSTUNREACH:
            why = "is in this network, but no way leads there: it is off, or a firewall rejects it"
            return Failed(address, "unreachable", f"{where} {why}")
        case _ if number == errno.ECONNREFUSED:
            return Failed(address, "refused", f"{where} refused the connection")
        case TimeoutError():
            return Failed(address, "timeout", f"{where} did not answer in time")
        case aiohttp.WSServerHandshakeError():
            return Failed(address, "rejected", f"{where} answers HTTP {error.status}, not a mesh link")
        case aiohttp.ServerDisconnectedError() | ConnectionResetError() if number in (None, errno.ECONNRESET):
            return Failed(address, "rejected", f"{where} hung up: this node may be no member there")
        case WireError():
            return Failed(address, "rejected", f"{where}: {error.message}")
        case _:
            return Failed(address, "unreachable", f"{where}: {error}")


def caller(request: web.Request) -> str:
    """The address of the other side, to be dialled from here: IPv6 link-local with its interface."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if name and len(name) == 4 and name[3] and "%" not in name[0]:
        with suppress(OSError):  # the interface is gone, and this caller with it
            return f"{name[0]}%{socket.if_indextoname(name[3])}"
    return plain(request.remote or "")


async def race(
    session: aiohttp.ClientSession,
    addresses: Sequence[str],
    port: int,
    path: str,
    *,
    tls: ssl.SSLContext,
    settings: LinkSettings,
    failed: Callable[[Failed], None],
    near: Callable[[str], bool] = lambda _: False,
) -> Connected | None:
    """The first WebSocket that opens with who `tls` believes; the others are given up before anything is said on them.
    `near` says whether an address is in one of this machine's own networks."""
    waiting, won = list(addresses), None
    tasks: set[asyncio.Task[Connected | None]] = set()
    async with asyncio.TaskGroup() as group:
        pending: set[asyncio.Task[Connected | None]] = set()
        while won is None and (waiting or pending):
            if waiting:
                address = waiting.pop(0)
                told = _open(
                    session, address, port, path, tls=tls, settings=settings, failed=failed, near=near(address)
                )
                task = group.create_task(told)
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
    tls: ssl.SSLContext,
    settings: LinkSettings,
    failed: Callable[[Failed], None],
    near: bool,
) -> Connected | None:
    try:
        url = URL.build(scheme="https", host=address, port=port, path=path)
        async with asyncio.timeout(settings.connect_s):
            ws = await session.ws_connect(
                url,
                ssl=tls,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=settings.close_s),
            )
    except (TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
        failed(fails(address, port, error, near=near))
        return None
    sock = ws.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connected(address, ws)
