"""A TCP connection to the first of several addresses that takes one, tried in their order, beside each other."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
SocketFactory = Callable[[tuple[Any, ...]], socket.socket]  # given one entry of getaddrinfo


class Origin(NamedTuple):
    """Where connections go. `host` is an address (IPv6 may have a scope) or a name. With `tls` that is the name in a
    certificate that this system trusts; with a context, whoever that one believes: two contexts make two origins."""

    host: str
    port: int
    tls: bool | ssl.SSLContext = False


class NoneConnectedError(Exception):
    """`failures` says why, address by address, in the order in which they failed."""

    def __init__(self, failures: Sequence[tuple[str, OSError]]) -> None:
        super().__init__(", ".join(f"{name} ({reason(error)})" for name, error in failures))
        self.failures = tuple(failures)


def reason(error: OSError) -> str:
    """Why a connection could not be made, in a few words."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no answer"
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # without what asyncio puts around it
    return error.strerror or str(error) or type(error).__name__


async def race(
    tries: Sequence[T], connect: Callable[[T], Awaitable[socket.socket]], beside_s: float
) -> tuple[T, socket.socket]:
    """The first of `tries` whose `connect` succeeds. Each is begun when the one before it has failed, or has taken
    `beside_s` seconds; whoever comes late is closed. Raises NoneConnectedError (RFC 8305 with an order of our own)."""
    running: dict[asyncio.Future[socket.socket], T] = {}
    failures: list[tuple[str, OSError]] = []
    left, first = list(tries), None
    try:
        while first is None and (left or running):
            if left:
                tried = left.pop(0)
                running[asyncio.ensure_future(connect(tried))] = tried
            done, _ = await asyncio.wait(
                running, timeout=beside_s if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in [task for task in running if task in done]:
                error = task.exception()
                if error is None:
                    first = task
                    break
                if not isinstance(error, OSError):
                    raise error
                failures.append((_name(running.pop(task)), error))
    except BaseException:
        await _given_up(running)
        raise
    if first is None:
        raise NoneConnectedError(failures)
    won = running.pop(first), first.result()
    try:
        await _given_up(running)
    except BaseException:
        won[1].close()
        raise
    return won


async def _given_up(running: Collection[asyncio.Future[socket.socket]]) -> None:
    for task in running:
        task.cancel()
        task.add_done_callback(_closed)
    if running:
        await asyncio.wait(running)


def _closed(task: asyncio.Future[socket.socket]) -> None:
    """It connected, but nobody waits for that any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _name(tried: object) -> str:
    return tried.host if isinstance(tried, Origin) else str(tried)


async def dial(
    origins: Sequence[Origin], *, limit_s: float, beside_s: float, make: SocketFactory
) -> tuple[Origin, socket.socket]:
    """A connected socket and where it goes. No address is given more than `limit_s`. Raises NoneConnectedError."""

    async def one(origin: Origin) -> socket.socket:
        async with asyncio.timeout(limit_s):
            infos = await _resolved(origin)
            try:
                return (await race(infos, lambda info: _connected(info, make), beside_s))[1]
            except NoneConnectedError as error:
                raise error.failures[-1][1] from error

    return await race(origins, one, beside_s)


async def _resolved(origin: Origin) -> list[tuple[Any, ...]]:
    """As getaddrinfo has it; it is asked (in a thread) for names and scopes only."""
    loop = asyncio.get_running_loop()
    with suppress(ValueError):
        ip = ipaddress.ip_address(origin.host)
        if "%" not in origin.host:
            family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
            there = (origin.host, origin.port) if ip.version == 4 else (origin.host, origin.port, 0, 0)
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", there)]
    try:
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("that cannot be a name") from error
    if not found:
        raise OSError("the name has no address")
    return list(found)


async def _connected(info: tuple[Any, ...], make: SocketFactory) -> socket.socket:
    made = make(info)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small writes do not wait for the ACK before them
        await asyncio.get_running_loop().sock_connect(made, info[4])
    except BaseException:
        made.close()
        raise
    return made


def plain_socket(info: tuple[Any, ...]) -> socket.socket:
    """A SocketFactory that keeps nothing in mind."""
    return socket.socket(info[0], info[1], info[2])
