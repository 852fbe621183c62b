"""mesh/dial.py: why a dial failed, and what a person must allow. Sockets that fail stand in for a Mac's."""

from __future__ import annotations

import errno
import os
import socket
import sys

import aiohttp
import pytest
from aiohttp import web

from mesh import dial
from mesh.dial import Failed, caller, denied, fails, race
from mesh.settings import LinkSettings
from tests.keys import Circle
from tests.mesh.linking import A, B

PANE = "System Settings > Privacy & Security > Local Network"


def test_a_mac_without_the_local_network_permission_names_the_pane() -> None:
    assert PANE in denied(errno.EHOSTUNREACH, near=True, platform="darwin")
    assert denied(errno.EHOSTUNREACH, near=False, platform="darwin") == "", "beyond a router there may be no way"
    assert denied(errno.EHOSTDOWN, near=True, platform="darwin") == "", "that one is off"
    assert denied(errno.EHOSTUNREACH, near=True, platform="linux") == "", "there a machine that is off looks like this"
    for platform in ("linux", "darwin"):
        for number in (errno.EPERM, errno.EACCES):
            assert "firewall" in denied(number, near=False, platform=platform)
        assert denied(errno.ECONNREFUSED, near=True, platform=platform) == ""
        assert denied(None, near=True, platform=platform) == ""


def failure(number: int, *, near: bool) -> Failed:
    return fails("10.0.0.2", 4001, OSError(number, os.strerror(number)), near=near)


def test_on_linux_the_same_errno_speaks_of_firewalls() -> None:
    found = failure(errno.EHOSTUNREACH, near=True)
    if sys.platform == "linux":
        assert (
            found.why == "10.0.0.2:4001 is in this network, but no way leads there: it is off, or a firewall rejects it"
        )
        assert found.forbidden == ""
    assert failure(errno.EHOSTUNREACH, near=False).why.endswith(os.strerror(errno.EHOSTUNREACH))
    assert failure(errno.ECONNREFUSED, near=True).kind == "refused"
    assert failure(errno.EACCES, near=True).forbidden in failure(errno.EACCES, near=True).why


async def test_the_errno_of_the_socket_is_what_a_person_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac: the connect fails at once, and the address is in this machine's own network."""

    def refuse(_self: object, _address: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    async def sock_connect(_sock: object, _address: object) -> None:
        refuse(None, None)

    import asyncio  # noqa: PLC0415 - the loop of this test

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect, raising=False)
    monkeypatch.setattr(dial, "denied", lambda number, near: denied(number, near=near, platform="darwin"))
    failed: list[Failed] = []
    async with aiohttp.ClientSession() as session:
        won = await race(
            session,
            ["10.9.9.9"],
            4001,
            "/x",
            tls=Circle(A, B).client(A, B),
            settings=LinkSettings(),
            failed=failed.append,
            near=lambda _: True,
        )
    assert won is None
    assert [f.kind for f in failed] == ["unreachable"]
    assert PANE in failed[0].forbidden
    assert failed[0].why == f"10.9.9.9:4001: {failed[0].forbidden}"


class Transport:
    def __init__(self, name: tuple[object, ...]) -> None:
        self._name = name

    def get_extra_info(self, _what: str) -> tuple[object, ...]:
        return self._name


class Request:
    def __init__(self, *name: object) -> None:
        self.transport, self.remote = Transport(name), str(name[0])


def test_a_link_local_caller_is_known_with_the_interface_it_came_by() -> None:
    def of(*name: object) -> str:
        request: web.Request = Request(*name)  # type: ignore[assignment]  # the part that is read
        return caller(request)

    index, interface = socket.if_nameindex()[0]
    assert of("fe80::1", 5, 0, index) == f"fe80::1%{interface}"
    assert of("fe80::1", 5, 0, 99999) == "fe80::1"
    assert of("::ffff:10.0.0.2", 5, 0, 0) == "10.0.0.2"
    assert of("10.0.0.2", 5) == "10.0.0.2"
