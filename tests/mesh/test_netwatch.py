"""mesh/netwatch.py: what the system says when an address or a cable changes. Messages as <linux/rtnetlink.h> and
macOS's <net/route.h> lay them out; the lab has the kernel's own."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import netwatch
from mesh.netwatch import NetWatch, Notice, linux_notices, mac_notices

RUNNING, UP = 0x40, 0x1


def netlink(kind: int, body: bytes = b"") -> bytes:
    size = 16 + len(body)
    return struct.pack("=IHHII", size, kind, 0, 0, 0) + body + bytes(-size % 4)


def ifinfo(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"\x05\0\3\0e"  # and an attribute


def route(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("=HBB", 4 + len(body), 5, kind) + body


def if_msghdr(index: int, flags: int) -> bytes:
    return struct.pack("=iiH", 0, flags, index) + bytes(96)


def test_linux_addresses_and_cables() -> None:
    said = (
        netlink(16, ifinfo(2, UP | RUNNING)) + netlink(20, bytes(8)) + netlink(24, bytes(12))
        + netlink(16, ifinfo(3, UP)) + netlink(21) + netlink(17, ifinfo(4, UP | RUNNING))
    )  # fmt: skip
    assert list(linux_notices(said)) == [Notice(2, True), Notice(), Notice(3, False), Notice(), Notice(4, False)]


def test_mac_addresses_and_cables() -> None:
    said = (
        route(0xE, if_msghdr(4, UP | RUNNING)) + route(0xC, bytes(16)) + route(0x1, bytes(88)) + route(0xD, bytes(16))
    )
    assert list(mac_notices(said)) == [Notice(4, True), Notice(), Notice()]
    assert list(mac_notices(route(0xE, if_msghdr(11, UP)))) == [Notice(11, False)]


@given(st.binary(max_size=200), st.integers(0, 100))
def test_whatever_comes_is_read_to_its_end(noise: bytes, cut: int) -> None:
    for parse, said in ((linux_notices, netlink(16, ifinfo(2, RUNNING))), (mac_notices, route(0xE, if_msghdr(2, 0)))):
        list(parse(noise))
        list(parse(said[:cut]))
        list(parse(said + noise))


class System:
    """The other end of the socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
        here, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here.setblocking(False)
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(netwatch, "_routing_socket", lambda: here)
        self.told: list[int] = []
        self.watch = NetWatch(self.told.append)
        self.watch.open()

    async def says(self, *said: bytes) -> list[int]:
        """What was told by the time all this has been read."""
        for each in said:
            self.kernel.send(each)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(0.01, done.set)
        await done.wait()
        found, self.told[:] = list(self.told), []
        return found

    def close(self) -> None:
        self.watch.close()
        self.kernel.close()


async def test_a_cable_that_is_plugged_in_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, "linux")
    assert system.watch.trusted
    out, in_ = netlink(16, ifinfo(2, UP)), netlink(16, ifinfo(2, UP | RUNNING))
    assert await system.says(out) == []
    assert await system.says(in_) == [2]
    assert await system.says(in_, in_) == [], "a radio scans: it tells of itself, and nothing has changed"
    assert await system.says(out, in_, netlink(20)) == [2, 0]
    system.close()
    assert not system.watch.trusted


async def test_on_a_mac_it_is_trusted_after_its_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, "darwin")
    assert not system.watch.trusted
    assert await system.says(route(0xC)) == [0]
    assert system.watch.trusted
    system.close()


async def test_a_system_that_cannot_be_listened_to_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> socket.socket:
        raise OSError

    monkeypatch.setattr(netwatch, "_routing_socket", refuse)
    watch = NetWatch(pytest.fail)
    watch.open()
    assert not watch.trusted
    watch.close()


# Any other system is asked in another way, and believed later: the tests above play both systems everywhere.
@pytest.mark.skipif(sys.platform != "linux", reason="the socket is Linux' own")
async def test_linux_lets_anybody_listen() -> None:
    told: Callable[[int], None] = [].append
    watch = NetWatch(told)
    watch.open()
    assert watch.trusted
    watch.close()
    watch.close()
