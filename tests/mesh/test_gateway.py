"""mesh/gateway.py: who is the gateway (from what both systems print), and whether it answers (on loopback)."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from mesh import gateway

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
tailscale0\t00000000\t0100A8C0\t0003\t0\t0\t5\t00000000\t0\t0\t0
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t0202A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00000000\t0300000A\t0003\t0\t0\t0\t00000080\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
NETSTAT = """\
Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.1.1        UGScg                 en0
default            link#21            UCSIg           bridge100      !
default            10.0.8.1           UGScIg              utun4
default            192.168.7.1        UGScIg                en7
127                127.0.0.1          UCS                   lo0
127.0.0.1          127.0.0.1          UH                    lo0
169.254            link#15            UCS                   en0      !
192.168.1          link#15            UCS                   en0      !
192.168.1.1/32     link#15            UCS                   en0      !
192.168.1.1        0:1e:8c:5a:b2:42   UHLWIir               en0   1187
224.0.0/4          link#15            UmCS                  en0      !
255.255.255.255/32 link#15            UCS                   en0      !
"""


# The recorded table is a little-endian machine's, as every Mac and CI are; only such a one can read it.
@pytest.mark.skipif(sys.byteorder != "little", reason="the table is in the byte order of the machine it came from")
def test_linux_prints_gateways_in_hex() -> None:
    assert gateway.in_proc_net_route(ROUTES) == ["10.0.0.1", "192.168.1.1"]
    assert gateway.in_proc_net_route("") == []
    assert gateway.in_proc_net_route("Iface\nshort line\n") == []


def test_macos_prints_gateways_beside_links_and_tunnels() -> None:
    assert gateway.in_netstat(NETSTAT) == ["192.168.1.1", "192.168.7.1"]
    assert gateway.in_netstat("") == []


async def test_whatever_this_machine_has_can_be_found() -> None:
    assert all(socket.inet_aton(address) for address in await gateway.gateways())
    assert await gateway.gateways("another system") in ([], await gateway.gateways())


async def test_a_refused_connection_is_an_answer() -> None:
    """The loopback address stands for a router: it refuses."""
    assert await gateway._any_answers(["127.0.0.1"], 5.0)


async def test_a_router_that_accepts_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(gateway, "_PORTS", (server.getsockname()[1],))
        assert await gateway._any_answers(["127.0.0.1"], 5.0)


async def test_silence_is_no_answer_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a full backlog says nothing at all, as a router behind a cut cable."""

    async def no_echo(_address: str) -> bool:
        raise PermissionError("net.ipv4.ping_group_range")

    monkeypatch.setattr(gateway, "_echo", no_echo)
    loop, more = asyncio.get_running_loop(), list[socket.socket]()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        monkeypatch.setattr(gateway, "_PORTS", (server.getsockname()[1],))
        try:
            for _ in range(8):
                more.append(socket.socket())
                more[-1].setblocking(False)
                more[-1].connect_ex(server.getsockname())
            begin = loop.time()
            assert not await gateway._any_answers(["127.0.0.1"], 0.3)
            assert loop.time() - begin >= 0.29
        finally:
            for sock in more:
                sock.close()


async def test_an_unreachable_router_does_not_answer() -> None:
    assert not await gateway._any_answers(["255.255.255.255"], 0.3)  # the system refuses to try
    assert not await gateway._any_answers([], 0.05)
