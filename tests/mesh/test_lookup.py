"""mesh/lookup.py: from what a person types to a node, and every way in which that can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bench.ports import free_port
from mesh import values
from mesh.addresses import Address, Addresses
from mesh.errors import MeshError
from mesh.lookup import WELL_KNOWN, Lookup, bare_address, body_of, split_address
from mesh.settings import PeersSettings
from mesh.tailnet import Machine, Tailnet, Tailscale
from mesh.wire import PROTOCOL, PeerSeen, WellKnown
from node.types import NodeId

ME, A, B = NodeId("00" * 8), NodeId("aa" * 8), NodeId("bb" * 8)
QUICK = PeersSettings(connect_s=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mini", ("mini", 4000)),
        ("mini.local:4100", ("mini.local", 4100)),
        ("10.0.0.2", ("10.0.0.2", 4000)),
        ("::1", ("::1", 4000)),
        ("[::1]", ("::1", 4000)),
        ("[fe80::1%en0]:4100", ("fe80::1%en0", 4100)),
        ("http://mini:4000/v1", ("mini", 4000)),
        ("http://mini:4100/v1/", ("mini", 4100)),
        (" mini ", ("mini", 4000)),
    ],
)
def test_addresses_as_people_write_them(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, 4000) == expected
    assert values.hosts([bare_address(text)]), "`mesh add` keeps it in `mesh-peers`"


@pytest.mark.parametrize(
    "text", ["", ":4000", "mini:", "mini:x", "mini:0", "mini:70000", "[::1", "[::1]x", "a b", "a/b:1"]
)
def test_what_is_no_address_is_said(text: str) -> None:
    if text in ("mini:", "[::1"):  # generous: a forgotten number or bracket
        assert split_address(text, 4000)[1] == 4000
        return
    with pytest.raises(MeshError, match="no address") as caught:
        split_address(text, 4000)
    assert caught.value.code == "bad_address"


@given(text=st.text(max_size=40))
def test_any_text_is_an_address_or_a_mesh_error(text: str) -> None:
    try:
        host, port = split_address(text, 4000)
    except MeshError:
        return
    assert host
    assert 1 <= port <= 65535


@asynccontextmanager
async def edge(
    answer: web.Response | None = None, *, ip: str = "127.0.0.1", port: int = 0, **known: Any
) -> AsyncIterator[int]:
    """Another node's edge (and, unless said otherwise, its peer port) on loopback; yields the edge's port."""
    port = port or free_port()
    body = WellKnown(**{
        "id": A, "name": "mini", "mesh_id": "m", "version": "0.1", "protocol": PROTOCOL, "peer_port": port, **known,
    })  # fmt: skip

    async def handler(_request: web.Request) -> web.Response:
        if answer is not None:  # a copy: one object answers one request
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    app = web.Application()
    app.router.add_get(WELL_KNOWN, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, ip, port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


class FakeTailscale(Tailscale):
    """A tailnet of these machines, or why there is none."""

    def __init__(self, *machines: Machine, problem: MeshError | None = None) -> None:
        super().__init__()
        self._tailnet, self._why = Tailnet(machines, "tail1.ts.net"), problem

    async def tailnet(self) -> Tailnet:
        if self._why is not None:
            raise self._why
        return self._tailnet


def machine(name: str, *addresses: str, **more: Any) -> Machine:
    return Machine(f"{name}.tail1.ts.net", name, addresses, **{"online": True, **more})


MISSING = FakeTailscale(problem=MeshError("tailscale_missing", "Tailscale is not installed here"))


@asynccontextmanager
async def looking(**more: Any) -> AsyncIterator[Lookup]:
    async with aiohttp.ClientSession() as session:
        yield Lookup(session, **{"me": ME, "settings": QUICK, "tailscale": MISSING, **more})


async def resolve(text: str, **more: Any) -> PeerSeen:
    async with looking(**more) as lookup:
        return await lookup.node(text)


async def failure(text: str, **more: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await resolve(text, **more)
    return caught.value


async def test_a_node_is_found_by_its_address() -> None:
    async with edge() as port:
        peer = await resolve(f"127.0.0.1:{port}")
    assert peer == PeerSeen(id=A, name="mini", addresses=("127.0.0.1",), port=port, peer_port=port, version="0.1",
                            via="static", added=True, mesh_id="m")  # fmt: skip


async def test_a_host_name_gives_all_its_addresses() -> None:
    async with edge() as port:
        peer = await resolve(f"localhost:{port}")
    assert peer.addresses[0] == "127.0.0.1"


async def test_another_protocol_is_found_and_left_to_membership() -> None:
    async with edge(protocol=PROTOCOL + 1) as port:
        assert (await resolve(f"127.0.0.1:{port}")).protocol == PROTOCOL + 1


async def test_every_failure_has_a_name_and_a_way_out() -> None:
    error = await failure("no-such-host.invalid")
    assert error.code == "cannot_resolve"
    assert "no-such-host.invalid" in error.message
    assert "Tailscale is not installed here" in error.message
    assert "give the IP address" in error.hint
    assert (await failure("x" * 300)).code == "cannot_resolve"
    port = free_port()
    error = await failure(f"127.0.0.1:{port}")
    assert (error.code, error.message) == ("refused", f"nothing listens at 127.0.0.1:{port}")
    assert "mlx-stack up" in error.hint
    async with edge(id=ME) as port:
        assert (await failure(f"127.0.0.1:{port}")).code == "self"
    async with edge(mesh="lab") as port:
        error = await failure(f"127.0.0.1:{port}")
        assert (error.code, "mesh 'lab'" in error.message) == ("other_mesh", True)
        assert "mesh enable --name lab" in error.hint
    async with edge(peer_port=free_port()) as port:
        error = await failure(f"127.0.0.1:{port}")
        assert (error.code, "peer port 127.0.0.1:" in error.message) == ("peer_port_unreachable", True)
        assert "mesh enable" in error.hint


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404),
        web.Response(text="<html>"),
        web.Response(text='{"id": "x"}'),
        web.Response(body=b"x" * 200_000),
        web.Response(text='{"x": ' + "[" * 30_000),
        web.Response(status=301, headers={"location": "http://127.0.0.1:1/"}),
    ],
)
async def test_http_that_is_no_node_is_said(answer: web.Response) -> None:
    async with edge(answer) as port:
        error = await failure(f"127.0.0.1:{port}")
    assert error.code == "not_a_node"
    assert "answers HTTP but is no mlx-stack node" in error.message


async def test_an_answer_in_pieces_is_read_whole() -> None:
    body = msgspec.json.encode(
        WellKnown(id=A, name="mini", mesh_id="m", version="0.1", protocol=PROTOCOL, peer_port=4001)
    )

    asked_for_more = asyncio.Semaphore(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:9])
        await writer.drain()
        await asked_for_more.acquire()  # else the kernel would join the two
        writer.write(body[9:])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            asked_for_more.release()
            assert await body_of(answer, 1 << 16) == body
        async with session.get(url) as answer:
            asked_for_more.release()
            assert await body_of(answer, 20) == body[:20]


async def test_what_is_not_even_http_is_said() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert error.code == "not_a_node"


async def test_silence_is_unreachable() -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert error.code == "unreachable"


async def test_another_site_is_far_and_a_tailnet_address_is_named() -> None:
    elsewhere = Addresses(read=lambda: (Address("en0", 4, "10.0.0.5", 24),))
    assert elsewhere.is_far("192.168.7.2")
    async with edge() as port:
        assert not (await resolve(f"127.0.0.1:{port}", addresses=elsewhere)).far


# Names of a tailnet


@pytest.mark.parametrize("name", ["mini", "mini.tailnet", "MINI.tail1.ts.net", "mini.tail1.ts.net."])
async def test_a_name_dns_does_not_know_is_looked_for_on_the_tailnet(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lookup, "_resolved", nowhere)
    async with edge() as port:
        found = await resolve(f"{name}:{port}", tailscale=FakeTailscale(machine("mini", "127.0.0.1", "::1")))
    assert (found.via, found.addresses, found.added) == ("tailscale", ("127.0.0.1", "::1"), True)


async def nowhere(_self: Lookup, host: str) -> tuple[str, ...]:
    raise MeshError("cannot_resolve", f"the name '{host}' is not known here: no such name", hint="check the spelling")


async def test_a_name_that_dns_gives_to_another_machine_is_still_found_on_the_tailnet() -> None:
    async with edge() as port, edge(web.Response(text="a router"), ip="127.0.0.2", port=port):

        class Resolving(Lookup):
            async def _resolved(self, host: str) -> tuple[str, ...]:
                return ("127.0.0.2",)

        async with aiohttp.ClientSession() as session:
            there = FakeTailscale(machine("mini", "127.0.0.1"))
            found = await Resolving(session, me=ME, tailscale=there, settings=QUICK).node(f"mini:{port}")
            assert found.via == "tailscale"
            with pytest.raises(MeshError, match="answers HTTP but is no mlx-stack node"):  # DNS is whom they meant
                await Resolving(session, me=ME, tailscale=MISSING, settings=QUICK).node(f"mini:{port}")


async def test_who_is_there_is_suggested_when_a_name_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "_resolved", nowhere)
    async with edge() as port:
        there = FakeTailscale(
            machine("mini", "127.0.0.1"),
            machine("printer", "127.0.0.3"),
            machine("asleep", "127.0.0.1", online=False),
            machine("me", "127.0.0.1", own=True),
        )
        quick = PeersSettings(connect_s=0.5, port=port)
        error = await failure("mimi", tailscale=there, settings=quick)
        assert str(error).endswith("no such name, nor on your tailnet (there mlx-stack runs on: mini)")
        async with looking(tailscale=there, settings=quick) as lookup:
            [running] = await lookup.running()
        assert (running.name, running.address, running.node.name) == ("mini", "127.0.0.1", "mini")
        error = await failure("me", tailscale=there, settings=quick)
        assert error.code == "self"
    error = await failure("mimi", tailscale=there, settings=quick)
    assert str(error).endswith("nor on your tailnet (check the spelling)")


@pytest.mark.parametrize(
    ("more", "said"), [({"online": False}, "Tailscale says it is offline"), ({"expired": True}, "its key has expired")]
)
async def test_what_tailscale_says_of_a_machine_that_does_not_answer(
    more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lookup, "_resolved", nowhere)
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(f"mini:{port}", tailscale=FakeTailscale(machine("mini", "127.0.0.1", **more)))
    assert error.code == "unreachable"
    assert "did not answer in time" in error.message
    assert said in error.message


async def test_a_tailnet_address_that_leads_nowhere_says_that_tailscale_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(_self: Lookup, _host: str, _port: int, _ips: object) -> None:
        raise MeshError("unreachable", "100.64.0.9:4000 did not answer in time", hint="is the machine awake?")

    monkeypatch.setattr(Lookup, "_asked", silent)
    stopped = FakeTailscale(problem=MeshError("tailscale_stopped", "Tailscale is stopped here", hint="`tailscale up`"))
    error = await failure("100.64.0.9", tailscale=stopped)
    assert str(error) == "100.64.0.9:4000 did not answer in time; Tailscale is stopped here (`tailscale up`)"
    error = await failure("10.0.0.9", tailscale=stopped)  # not a tailnet's
    assert "Tailscale" not in str(error)
    error = await failure("100.64.0.9", tailscale=FakeTailscale())
    assert "is the machine awake?" in str(error)


async def test_a_name_of_two_nodes_names_both_and_one_dead_address_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def both(_self: Lookup, _host: str) -> tuple[str, ...]:
        return ("127.0.0.2", "127.0.0.1")

    monkeypatch.setattr(Lookup, "_resolved", both)
    async with edge() as port:
        found = await resolve(f"macs:{port}")
        assert found.addresses == ("127.0.0.1", "127.0.0.2")
        async with edge(ip="127.0.0.2", port=port, id=B, name="studio"):
            error = await failure(f"macs:{port}")
    assert error.code == "ambiguous_address"
    assert error.message == "'macs' is more than one node: studio at 127.0.0.2, mini at 127.0.0.1"


async def test_two_machines_of_one_name_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "_resolved", nowhere)
    two = (Machine(f"mini-{n}.tail1.ts.net", "mini", ("127.0.0.1",)) for n in (1, 2))
    error = await failure("mini", tailscale=FakeTailscale(*two))
    assert (error.code, "mini-1.tail1.ts.net, mini-2.tail1.ts.net" in error.message) == ("ambiguous_machine", True)
