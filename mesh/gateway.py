"""Does the router of this network answer? Whoever hears nothing else learns from that whether it is deaf."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

from mesh.addresses import is_tunnel

_PORTS = (53, 80, 9)  # a router listens on one of these or refuses it; either is an answer
_IS_UP, _HAS_GATEWAY = 0x1, 0x2  # Linux: RTF_UP, RTF_GATEWAY
_NETSTAT_S = 2.0


async def answers(timeout_s: float) -> bool:
    """One of the gateways of this machine answers now: an echo, a TCP connection or its refusal. Takes at most
    `timeout_s`, and a little longer on macOS for finding them. Raises nothing."""
    found = await gateways()
    return bool(found) and await _any_answers(found, timeout_s)


async def gateways(platform: str = sys.platform) -> list[str]:
    """IPv4 addresses of the default routes, those through tunnels left out: they say nothing of this network."""
    if platform == "darwin":
        with suppress(OSError, TimeoutError):
            return in_netstat(await _output("/usr/sbin/netstat", "-rn", "-f", "inet"))
    with suppress(OSError):
        return in_proc_net_route(Path("/proc/net/route").read_text())  # noqa: ASYNC240 - the kernel's memory, no disk
    return []


def in_proc_net_route(text: str) -> list[str]:
    """Gateways in Linux's /proc/net/route: numbers in hex, addresses in the byte order of the machine."""
    found = []
    for fields in (line.split() for line in text.splitlines()[1:]):
        if len(fields) < 8 or is_tunnel(fields[0]) or (fields[1], fields[7]) != ("00000000", "00000000"):
            continue
        if int(fields[3], 16) & (_IS_UP | _HAS_GATEWAY) == _IS_UP | _HAS_GATEWAY:
            found.append(socket.inet_ntoa(struct.pack("=I", int(fields[2], 16))))
    return list(dict.fromkeys(found))


def in_netstat(text: str) -> list[str]:
    """Gateways in what macOS's `netstat -rn -f inet` prints: destination, gateway, flags, interface, expiry."""
    found = []
    for fields in (line.split() for line in text.splitlines()):
        if len(fields) >= 4 and fields[0] == "default" and "G" in fields[2] and not is_tunnel(fields[3]):
            with suppress(OSError):
                found.append(socket.inet_ntoa(socket.inet_aton(fields[1])))
    return list(dict.fromkeys(found))


async def _output(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_NETSTAT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode(errors="replace")


async def _any_answers(addresses: list[str], timeout_s: float) -> bool:
    answered = asyncio.Event()

    async def ask(question: Coroutine[None, None, bool]) -> None:
        with suppress(OSError):
            if await question:
                answered.set()

    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            questions = [q for address in addresses for q in (_echo(address), *(_knock(address, p) for p in _PORTS))]
            asking = [group.create_task(ask(question)) for question in questions]
            await answered.wait()
            for task in asking:
                task.cancel()
    return answered.is_set()


async def _echo(address: str) -> bool:
    """ICMP without privileges: macOS always, Linux where net.ipv4.ping_group_range allows it (else OSError)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.setblocking(False)
        sock.connect((address, 0))
        sock.send(struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1))  # echo request, its checksum, identifier 0, number 1
        return bool(await asyncio.get_running_loop().sock_recv(sock, 1024))


async def _knock(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with suppress(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return True
