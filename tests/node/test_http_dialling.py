"""The HTTP client, and which of a server's addresses it goes by."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_wire import BrokenError, NotConnectedError
from tests.mesh.waiting import until
from tests.node.speaking import ASK, black_hole, spoken


async def test_the_next_address_is_tried_beside_one_that_does_not_answer() -> None:
    async with spoken() as (speaker, client):
        with black_hole("127.0.0.2", speaker.port):
            origins = [Origin(host, speaker.port) for host in ("127.0.0.2", "127.0.0.1")]
            clock = asyncio.get_running_loop().time
            began = clock()
            answer = await client.ask(origins, ASK, connect_s=30.0, silence_s=30.0, beside_s=0.2)
            assert 0.19 < clock() - began < 15
            assert await answer.read() == b"ok"
            assert client.connections == 1, "the one that came late is closed"
            speaker.writers[0].transport.abort()
            await until(lambda: client.connections == 0)
            began = clock()
            await client.ask(origins, ASK, connect_s=30.0, silence_s=30.0, beside_s=20.0)
            assert clock() - began < 15, "it goes to the end of the line for a while"


async def test_an_address_that_refuses_costs_nothing() -> None:
    async with spoken() as (speaker, client):
        origins = [Origin(host, speaker.port) for host in ("127.0.0.9", "127.0.0.1")]
        answer = await client.ask(origins, ASK, connect_s=5.0, silence_s=30.0, beside_s=60.0)
        assert await answer.read() == b"ok"


async def test_nobody_there_is_said_address_by_address() -> None:
    async with spoken() as (_, client):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            origins = [Origin(host, unused.getsockname()[1]) for host in ("127.0.0.9", "127.0.0.1")]
            with pytest.raises(NotConnectedError, match=r"127\.0\.0\.9 \(.*, 127\.0\.0\.1 \(.*refused") as refused:
                await client.ask(origins, ASK, connect_s=5.0, silence_s=5.0)
            assert not refused.value.late
        with pytest.raises(NotConnectedError, match="no address"):
            await client.ask([], ASK, connect_s=5.0, silence_s=5.0)
        with black_hole("127.0.0.1") as port, pytest.raises(NotConnectedError) as swallowed:
            await client.ask([Origin("127.0.0.1", port)], ASK, connect_s=0.05, silence_s=5.0)
        assert swallowed.value.late
        assert client._open == {}


async def test_a_name_leads_to_whichever_of_its_addresses_answers() -> None:
    async with spoken() as (speaker, client):
        answer = await client.ask([Origin("localhost", speaker.port)], ASK, connect_s=30.0, silence_s=30.0)
        assert await answer.read() == b"ok"
        with pytest.raises(NotConnectedError):
            await client.ask([Origin("no.such.host.invalid", 1)], ASK, connect_s=30.0, silence_s=30.0)


async def test_a_cancelled_dial_leaves_nothing() -> None:
    made: list[socket.socket] = []

    def make(info: tuple[Any, ...]) -> socket.socket:
        made.append(socket.socket(info[0], info[1], info[2]))
        return made[-1]

    client = HttpClient(make=make)
    with black_hole("127.0.0.1") as port:
        asking = asyncio.ensure_future(
            client.ask([Origin("127.0.0.1", port)] * 2, ASK, connect_s=60.0, silence_s=60.0, beside_s=0.01)
        )
        await until(lambda: len(made) == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: [s.fileno() for s in made] == [-1, -1])
    await until(lambda: client._open == {})


async def test_what_cannot_be_a_name_leads_nowhere() -> None:
    async with HttpClient() as client:
        for host in ("x" * 70 + ".local", "a..b"):
            with pytest.raises(NotConnectedError):
                await client.ask([Origin(host, 1)], ASK, connect_s=30.0, silence_s=30.0)


async def test_a_defect_while_dialling_is_a_failure_and_not_silence() -> None:
    def broken(_: tuple[Any, ...]) -> socket.socket:
        raise ZeroDivisionError

    async with HttpClient(make=broken) as client:
        with pytest.raises(BrokenError, match="ZeroDivisionError"):
            await client.ask([Origin("127.0.0.1", 1)], ASK, connect_s=30.0, silence_s=30.0)
        assert client._open == {}
