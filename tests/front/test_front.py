"""The raw server on real sockets and both event loops: one request at a time, told apart, answered in order."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.http_reply import Answer
from node.io.turn import Incoming, Outgoing
from node.settings import FrontSettings
from tests.front.sites import GET, Site, echo, one_answer, post, serving, streams
from tests.mesh.waiting import until
from tests.node.smuggling import BODIES, HEADS


async def test_one_connection_serves_one_request_after_the_other(site: Site) -> None:
    reader, writer = await site.connect()
    for number in range(20):
        writer.write(post(b"%d" % number, path=b"/%d" % number))
        head, body = await one_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"x-path: /%d\r\n" % number) in head
        assert body == b"%d" % number
    assert len(site.fronts.connections) == 1
    writer.close()


async def test_byte_by_byte_is_the_same(site: Site) -> None:
    text = post(b"hello", b"Connection: close")
    whole = await site.says(text)
    assert whole.endswith(b"\r\n\r\nhello")
    strip = whole.split(b"date:")[0]
    assert (await site.says(*(text[i : i + 1] for i in range(len(text))))).startswith(strip)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert (await site.says(*(chunked[i : i + 1] for i in range(len(chunked))))).endswith(b"\r\n\r\nhello")


async def test_requests_sent_ahead_are_answered_in_their_order_one_at_a_time(site: Site) -> None:
    most = 0

    async def slow(incoming: Incoming, outgoing: Outgoing) -> None:
        nonlocal most
        most = max(most, site.open)
        await asyncio.sleep(0)  # so that another one could begin beside it
        await echo(incoming, outgoing)

    site.script = slow
    ahead = b"".join(post(b"%d" % number) for number in range(50))
    answer = await site.says(ahead + post(b"last", b"Connection: close"))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"%d" % number for number in range(50)), b"last"]
    assert most == 1


async def test_what_is_sent_ahead_is_bounded() -> None:
    async with serving(FrontSettings(ahead_bytes=1000)) as site:
        gate = asyncio.Event()

        async def waiting(incoming: Incoming, outgoing: Outgoing) -> None:
            await gate.wait()
            await echo(incoming, outgoing)

        site.script = waiting
        reader, writer = await site.connect()
        writer.write(post(b"first"))
        await until(lambda: site.open == 1)
        (front,) = site.fronts.connections
        late = post(b"x" * 4_000_000, b"Connection: close")
        writer.write(late)
        await until(lambda: not front._reading)
        assert front._reader.waiting < 2**20
        gate.set()
        async with asyncio.timeout(30):
            assert (await one_answer(reader))[1] == b"first"
            head, body = await one_answer(reader)
        assert (b"connection: close" in head, len(body)) == (True, 4_000_000)
        writer.close()


@pytest.mark.parametrize("kind", ["heads", "bodies"])
async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(site: Site, kind: str) -> None:
    for name, text in (HEADS if kind == "heads" else BODIES).items():
        answer = await site.says(text)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), name
        assert b"\r\nconnection: close\r\n" in answer, name
        assert answer.count(b"HTTP/1.1 ") == 1, name
    assert site.handed_over == []


async def test_other_requests_are_handed_over_with_all_that_was_read(site: Site) -> None:
    assert (await site.says(post(b"mine") + GET + b"more")).endswith(b"other")
    assert site.handed_over == [GET + b"more"]
    assert site.fronts.connections == set()


async def test_where_nothing_is_carried_everything_is_handed_over() -> None:
    async with serving(local=False) as site:
        assert (await site.says(post(b"mine"))).endswith(b"other")
        assert site.handed_over == [post(b"mine")]


async def test_a_client_that_asks_before_it_sends_is_told(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(post(b"hello", b"Expect: 100-continue")[:-5])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await one_answer(reader))[1] == b"hello"
    writer.write(post(b"hello", b"Expect: 100-continue"))
    head, body = await one_answer(reader)
    assert head.startswith(b"HTTP/1.1 200"), "who sends at once is not told what it does not wait for"
    assert body == b"hello"
    writer.close()


async def test_streams_are_chunked_and_the_connection_stays(site: Site) -> None:
    site.script = streams
    reader, writer = await site.connect()
    for _ in range(3):
        writer.write(post())
        assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n0\r\n\r\n") == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
    writer.close()


async def test_to_an_old_client_the_end_of_the_connection_ends_the_stream(site: Site) -> None:
    site.script = streams
    answer = await site.says(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none two")
    assert b"transfer-encoding" not in answer
    site.script = echo
    answer = await site.says(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    assert answer.endswith(b"\r\n\r\nhi")


async def test_an_answer_before_the_whole_request_is_read_by_a_client_that_still_sends(site: Site) -> None:
    async def refuses(_: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(Answer(413, {}, b"too large"))

    site.script = refuses
    reader, writer = await site.connect()
    writer.write(post(b"x" * 2**20)[: -(2**20)])
    head, body = await one_answer(reader)
    assert (body, b"connection: close" in head) == (b"too large", True)
    with suppress(ConnectionError):
        for _ in range(16):  # it has not looked yet
            writer.write(b"x" * 2**16)
            await writer.drain()
    assert await reader.read() == b""
    writer.close()


async def test_who_goes_on_sending_after_a_refusal_is_cut_off_in_the_end() -> None:
    async with serving(FrontSettings(linger_s=0.0)) as site:
        reader, writer = await site.connect()
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        (front,) = site.fronts.connections
        site.fronts.look(asyncio.get_running_loop().time() + 1.0, 75.0)
        await until(lambda: front.transport is None)
        writer.close()
