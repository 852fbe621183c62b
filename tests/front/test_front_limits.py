"""Connections in all and of one address, and those that say nothing, ask slowly or do not read: each has its limit."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from node.io.turn import Incoming, Outgoing
from node.settings import CrowdSettings, FrontSettings
from tests.front.sites import GET, Site, body_of, one_answer, post, serving
from tests.mesh.waiting import until


@asynccontextmanager
async def limited(all_max: int = 1000, loopback_max: int = 1000) -> AsyncIterator[tuple[Site, Counter[str]]]:
    """Those who hold few have no places of their own."""
    settings = FrontSettings(crowd=CrowdSettings(all_max=all_max, loopback_max=loopback_max, few_part=0.0))
    async with serving(settings) as site:
        counted: Counter[str] = Counter()
        site.fronts.entrance.limited = lambda name: counted.update([name])
        yield site, counted


async def connected(site: Site, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    before = len(site.fronts.connections)
    made = [await site.connect() for _ in range(count)]
    await until(lambda: len(site.fronts.connections) >= before + count)
    return made


async def test_one_address_too_many_connections_hears_why_and_others_may_come() -> None:
    async with limited(loopback_max=3) as (site, counted):
        mine = await connected(site, 3)
        for _ in range(2):
            reader, writer = await site.connect()
            writer.write(post(b"x" * 100_000))
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"3 connections from your address are open here" in answer
            writer.close()
        assert counted == {"address_connections": 2}
        mine.pop()[1].close()
        await until(lambda: site.fronts.entrance.crowd.count == 2)
        reader, writer = await site.connect()
        writer.write(post(b"hi"))
        assert (await one_answer(reader))[1] == b"hi"
        for _, each in (*mine, (reader, writer)):
            each.close()
    assert site.fronts.entrance.crowd.count == 0
    assert not site.fronts.entrance.refused


async def test_when_it_is_full_the_oldest_that_says_nothing_makes_way_then_the_longest_idle() -> None:
    async with limited(all_max=3) as (site, counted):
        (idle,) = await connected(site, 1)
        idle[1].write(post(b"hi"))
        await one_answer(idle[0])
        silent = await connected(site, 2)
        stay = []
        for gone in (silent[0], silent[1], idle):
            reader, writer = await site.connect()
            stay.append((reader, writer))
            writer.write(post(b"hi"))
            assert (await one_answer(reader))[1] == b"hi"
            with suppress(ConnectionError):
                assert await gone[0].read() == b""
            await until(lambda: site.fronts.entrance.crowd.count == 3)
            gone[1].close()
        assert counted == {"made_way": 3}
        for _, writer in stay:
            writer.close()


async def test_when_all_are_busy_a_new_one_hears_so_and_of_too_many_such_the_last_are_closed_at_once() -> None:
    gate = asyncio.Event()

    async def waits(incoming: Incoming, outgoing: Outgoing) -> None:
        await gate.wait()
        outgoing.begin(200, {})
        outgoing.end()

    settings = FrontSettings(crowd=CrowdSettings(all_max=2, few_part=0.0), refused_max=3)
    async with serving(settings) as site:
        counted: Counter[str] = Counter()
        site.fronts.entrance.limited = lambda name: counted.update([name])
        site.script = waits
        busy = await connected(site, 2)
        for _, writer in busy:
            writer.write(post())
        await until(lambda: site.open == 2)
        refused = [await site.connect() for _ in range(5)]
        await until(lambda: counted["connections"] == 5)
        assert len(site.fronts.entrance.refused) <= 3
        heard = []
        for reader, _ in refused:
            with suppress(ConnectionError):
                heard.append(await reader.read(4096))
        assert sum(one.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") for one in heard) == 3
        now = asyncio.get_running_loop().time()
        site.fronts.look(now + 1.1, 75.0)
        await until(lambda: not site.fronts.entrance.refused)
        assert len(site.fronts.connections) == 2
        gate.set()
        for reader, _ in busy:
            await reader.readuntil(b"\r\n\r\n")
        for _, writer in (*busy, *refused):
            writer.close()


async def test_a_connection_that_was_handed_over_counts_until_its_end() -> None:
    async with limited(loopback_max=1) as (site, counted):
        for _ in range(3):
            assert (await site.says(GET)).endswith(b"other")
            await until(lambda: site.fronts.entrance.crowd.count == 0)
        assert not counted


@pytest.mark.parametrize("cuts", [1, 20])
async def test_a_next_head_that_comes_too_slowly_is_refused_by_name(cuts: int) -> None:
    async with limited() as (site, counted):
        reader, writer = await site.connect()
        writer.write(post(b"hi"))
        await one_answer(reader)
        (front,) = site.fronts.connections
        now = asyncio.get_running_loop().time()
        writer.write(post()[:cuts])
        await until(lambda: front._reader.waiting == cuts)
        site.fronts.look(now, 75.0)
        site.fronts.look(now + 9.0, 75.0)
        assert not counted
        site.fronts.look(now + 10.0, 75.0)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert counted == {"slow_head": 1}
        writer.close()


async def test_a_stream_that_nobody_reads_is_cut_off_by_name_and_cancelled() -> None:
    """Else who asks and does not read keeps a model's slot until the request's deadline."""

    async def endless(incoming: Incoming, outgoing: Outgoing) -> None:
        await body_of(incoming)
        outgoing.begin(200, {})
        while True:
            outgoing.write(b"x" * 65536)
            await outgoing.drained()

    async with limited() as (site, counted):
        site.script = endless
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.setblocking(False)
            client.sendall(post())
            await until(lambda: site.open)
            (front,) = site.fronts.connections
            await until(lambda: front.full)
            now, taken = asyncio.get_running_loop().time(), -1
            while front._taken != taken:  # until the system's buffers are full
                taken = front._taken
                site.fronts.look(now, 75.0)
                await asyncio.sleep(0.02)
                now += 0.02
            site.fronts.look(now, 75.0)
            site.fronts.look(now + 55.0, 75.0)
            await asyncio.sleep(0)  # a reset would be told in the next turn of the loop
            assert site.open == 1
            assert not counted

            def cut_off() -> bool:
                nonlocal now  # what the system still took by itself counts as taken at the next look
                now += 61.0
                site.fronts.look(now, 75.0)
                return not site.open

            await until(cut_off)
            assert counted == {"slow_reader": 1}
