"""The system's own word that an address or a cable has changed: rtnetlink on Linux, a routing socket on macOS.

Reading all interfaces again and again costs more than all else an idle node does. Where the system tells, they are read
when it does; where it does not, the caller goes on looking.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from msgspec import Struct

_READ_BYTES = 1 << 16
_READS_MAX = 64  # at one wake-up; the rest waits for the next
_IFF_RUNNING = 0x40  # both systems: the cable is in, the radio is joined
# linux/netlink.h, linux/rtnetlink.h
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_NL_LINK, _NL_ADDRESS = (16, 17), (20, 21)  # RTM_NEWLINK, RTM_DELLINK; RTM_NEWADDR, RTM_DELADDR
_NL_HEAD, _NL_LINK_BODY = struct.Struct("=IHHII"), struct.Struct("=BxHiII")
# net/route.h, net/if.h of macOS
_RT_ADDRESS, _RT_LINK = (0xC, 0xD), 0xE  # RTM_NEWADDR, RTM_DELADDR; RTM_IFINFO
_RT_HEAD, _RT_LINK_BODY = struct.Struct("=HBB"), struct.Struct("=HBBiiH")


class Notice(Struct, frozen=True):
    """An address has changed (`interface` 0), or the cable of interface number `interface` is in (`running`) or out."""

    interface: int = 0
    running: bool = False


def linux_notices(data: bytes) -> Iterator[Notice]:
    """What one read of a netlink socket says. What is cut short or of other kinds says nothing."""
    at = 0
    while at + _NL_HEAD.size <= len(data):
        size, kind, *_ = _NL_HEAD.unpack_from(data, at)
        if size < _NL_HEAD.size or at + size > len(data):
            return
        if kind in _NL_ADDRESS:
            yield Notice()
        elif kind in _NL_LINK and size >= _NL_HEAD.size + _NL_LINK_BODY.size:
            _, _, index, flags, _ = _NL_LINK_BODY.unpack_from(data, at + _NL_HEAD.size)
            yield Notice(index, kind == _NL_LINK[0] and bool(flags & _IFF_RUNNING))
        at += (size + 3) & ~3


def mac_notices(data: bytes) -> Iterator[Notice]:
    """What one read of a routing socket says."""
    at = 0
    while at + _RT_HEAD.size <= len(data):
        size, _, kind = _RT_HEAD.unpack_from(data, at)
        if size < _RT_HEAD.size or at + size > len(data):
            return
        if kind in _RT_ADDRESS:
            yield Notice()
        elif kind == _RT_LINK and size >= _RT_LINK_BODY.size:
            *_, flags, index = _RT_LINK_BODY.unpack_from(data, at)
            yield Notice(index, bool(flags & _IFF_RUNNING))
        at += size


class NetWatch:
    """Calls `changed(interface)` when an address has changed (0) or a cable was plugged in (its interface's number)."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._sock: socket.socket | None = None
        self._running: set[int] = set()  # interfaces whose cable is in
        self._parse = linux_notices if sys.platform == "linux" else mac_notices
        self.trusted = False  # it tells of changes: nobody needs to look

    def open(self) -> None:
        """Listens from now on, if this system can be listened to. Never raises."""
        with suppress(OSError, AttributeError):  # no such family here
            self._sock = _routing_socket()
            asyncio.get_running_loop().add_reader(self._sock, self._readable)
            # On a Mac only after its first word: there this way was never tried by us.
            self.trusted = sys.platform == "linux"

    def close(self) -> None:
        sock, self._sock, self.trusted = self._sock, None, False
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _readable(self) -> None:
        assert self._sock is not None
        for _ in range(_READS_MAX):
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: more happened than it could hold, so anything may have
                self._changed(0)
                return
            self.trusted = True
            for notice in self._parse(data):
                self._take(notice)

    def _take(self, notice: Notice) -> None:
        if notice.interface == 0:
            self._changed(0)
            return
        if not notice.running:
            self._running.discard(notice.interface)
        elif notice.interface not in self._running:
            self._running.add(notice.interface)
            self._changed(notice.interface)


def _routing_socket() -> socket.socket:
    if sys.platform == "linux":
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        address = (0, _GROUPS)
    else:
        sock = socket.socket(socket.AF_ROUTE, socket.SOCK_RAW, 0)
        address = None
    try:
        sock.setblocking(False)
        if address is not None:
            sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
