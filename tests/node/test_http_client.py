"""The HTTP client: connections are kept, bounded, replaced; nothing is left of what is given up."""

from __future__ import annotations

import asyncio

import pytest

from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_wire import BrokenError, FullError, HttpError, SilentError, question
from tests.mesh.waiting import until
from tests.node.speaking import OK, STREAM, closing, spoken


async def test_a_connection_is_used_again() -> None:
    async with spoken() as (speaker, client):
        for _ in range(3):
            assert await speaker.all(client) == b"ok"
        assert (speaker.connections, client.connections, client.idle) == (1, 1, 1)


async def test_questions_at_the_same_time_have_connections_of_their_own() -> None:
    async with spoken(idle_max=2) as (speaker, client):
        assert await asyncio.gather(*(speaker.all(client) for _ in range(5))) == [b"ok"] * 5
        assert speaker.connections == 5
        await until(lambda: client.connections == client.idle == 2)


async def test_a_kept_connection_goes_after_a_while() -> None:
    async with spoken(idle_s=0.05) as (speaker, client):
        await speaker.all(client)
        await until(lambda: client.connections == 0)


@pytest.mark.parametrize(
    "says", [OK.replace(b"ok", b"ok!"), OK.replace(b"OK", b"OK\r\nconnection: close"), b"HTTP/1.0" + OK[8:]]
)
async def test_a_connection_without_a_certain_end_is_not_used_again(says: bytes) -> None:
    async with spoken() as (speaker, client):
        speaker.says = [says]
        for _ in range(2):
            assert await speaker.all(client) == b"ok"
        assert speaker.connections == 2


async def test_what_nobody_asked_for_ends_a_kept_connection() -> None:
    async with spoken() as (speaker, client):
        await speaker.all(client)
        speaker.writers[0].write(OK)
        await until(lambda: client.connections == 0)


async def test_a_stale_connection_is_replaced_at_once() -> None:
    """The server closes while the question is on its way: it reads it, and resets instead of answering."""
    async with spoken() as (speaker, client):

        async def next_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(speaker.asked) == 1:
                await reader.readexactly(1)
                writer.transport.abort()
                raise ConnectionError

        speaker.then = next_time
        assert await speaker.all(client) == b"ok"
        assert await speaker.all(client, b"question") == b"ok"
        assert (speaker.connections, len(speaker.asked)) == (2, 2)
        assert speaker.asked[1].endswith(b"question")


async def test_a_fresh_connection_that_breaks_is_a_failure() -> None:
    async with spoken() as (speaker, client):
        speaker.says, speaker.then = [b""], closing
        with pytest.raises(BrokenError, match="before its answer"):
            await speaker.all(client)
        assert speaker.connections == 1


async def test_a_question_that_was_begun_to_be_answered_is_not_sent_twice() -> None:
    async with spoken() as (speaker, client):
        await speaker.all(client)
        speaker.says, speaker.then = [b"", b"H"], closing
        with pytest.raises(BrokenError):
            await speaker.all(client)
        assert len(speaker.asked) == 2


async def test_a_kept_connection_that_breaks_late_was_not_stale() -> None:
    """A question that kills its server must not kill the next one as well."""
    async with spoken(stale_s=0.0) as (speaker, client):
        await speaker.all(client)
        speaker.says, speaker.then = [b""], closing
        with pytest.raises(BrokenError):
            await speaker.all(client)
        assert len(speaker.asked) == 2


async def test_parts_come_as_they_come() -> None:
    async with spoken() as (speaker, client):
        more, speaker.says = asyncio.Event(), [STREAM + b"3\r\none\r\n"]

        async def rest(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await more.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

        speaker.then = rest
        answer = await speaker.ask(client)
        assert await answer.read() == b"one"
        more.set()
        assert [await answer.read(), await answer.read()] == [b"two", b""]
        assert client.idle == 1


async def test_what_is_left_is_not_waited_for_for_ever() -> None:
    async with spoken(end_s=0.05) as (speaker, client):
        speaker.says = [STREAM + b"4\r\ndone\r\n"]
        answer = await speaker.ask(client)
        assert await answer.read() == b"done"
        answer.leave()
        await until(lambda: client.connections == 0)


@pytest.mark.parametrize("says", [b"", STREAM, STREAM + b"3\r\none\r\n", STREAM + b"3\r\non"])
async def test_a_cancelled_question_ends_its_connection(says: bytes) -> None:
    """That is how a worker learns that nobody waits."""
    async with spoken() as (speaker, client):
        speaker.says = [says]
        asking = asyncio.ensure_future(speaker.all(client))
        await until(lambda: len(speaker.asked) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: client.connections == speaker.open == 0)


async def test_two_hundred_questions_cancelled_at_any_moment_leave_nothing() -> None:
    async with spoken() as (speaker, client):
        speaker.says = [STREAM + b"3\r\none\r\n0\r\n\r\n"]

        async def one(turns: int) -> None:
            asking = asyncio.ensure_future(speaker.all(client))
            for _ in range(turns):
                await asyncio.sleep(0)  # it is cancelled after so many turns of the loop, wherever it is then
            asking.cancel()
            await asyncio.wait({asking})

        for round_ in range(10):
            await asyncio.gather(*(one((7 * n + round_) % 40) for n in range(20)))
        await until(lambda: client.connections == client.idle)
        await until(lambda: client.connections == speaker.open)
        assert client._open == ({Origin("127.0.0.1", speaker.port): client.idle} if client.idle else {})


async def test_silence_is_borne_so_long() -> None:
    async with spoken() as (speaker, client):
        speaker.says = [b""]
        with pytest.raises(SilentError, match=r"silent for 0\.05 s"):
            await speaker.all(client, silence_s=0.05)
        speaker.says = [STREAM + b"3\r\none\r\n"]
        answer = await speaker.ask(client, silence_s=0.05)
        assert await answer.read() == b"one"
        with pytest.raises(SilentError):
            await answer.read()
        await until(lambda: client.connections == 0)


async def test_a_slow_reader_holds_the_server_back() -> None:
    size, whole = 65_536, 400
    async with spoken(buffer_bytes=100_000) as (speaker, client):
        speaker.says, sent = [STREAM], [0]

        async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(whole):
                writer.write(b"%x\r\n" % size + b"x" * size + b"\r\n")
                await writer.drain()
                sent[0] += 1
            writer.write(b"0\r\n\r\n")

        speaker.then = flood
        answer = await speaker.ask(client, silence_s=0.2)
        await until(lambda: answer.paused)
        borne_at = asyncio.get_running_loop().time() + 0.4
        await until(lambda: asyncio.get_running_loop().time() > borne_at)  # that silence is ours, not the server's
        assert sent[0] < whole / 2
        assert answer._held < 100_000 + 2**20
        answer.bear(30.0)
        found = await answer.whole(10**9)
        assert found is not None
        assert len(found) == size * whole
        assert client.idle == 1


async def test_a_large_question_is_sent_as_fast_as_it_is_read() -> None:
    async with spoken(slice_bytes=100_000) as (speaker, client):
        body = bytes(range(256)) * 40_000
        assert await speaker.all(client, body) == b"ok"
        assert speaker.asked[0].endswith(body)
        assert client.idle == 1


async def test_an_answer_before_the_end_of_the_question_counts() -> None:
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early)
        await writer.drain()
        await done.wait()
        writer.close()

    done = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client, body = HttpClient(), b"x" * 20_000_000
    origin = Origin("127.0.0.1", server.sockets[0].getsockname()[1])
    head = question("POST", "x", "/", {}, len(body))
    answer = await client.ask([origin], head, body, connect_s=5.0, silence_s=30.0)
    assert answer.status == 413
    assert await answer.read() == b""
    await until(lambda: client.connections == 0)  # half a question is in it
    done.set()
    server.close()


async def test_so_many_connections_and_no_more() -> None:
    async with spoken(open_max=2, idle_max=2) as (speaker, client):
        speaker.says = [STREAM]
        answers = [await speaker.ask(client) for _ in range(2)]
        with pytest.raises(FullError, match="2 connections"):
            await speaker.ask(client)
        answers[0].close()
        (await speaker.ask(client)).close()


async def test_closing_ends_answers_that_are_read() -> None:
    async with spoken() as (speaker, client):
        speaker.says = [STREAM + b"3\r\none\r\n"]
        answer = await speaker.ask(client)
        assert await answer.read() == b"one"
        waiting = asyncio.ensure_future(answer.read())
        await asyncio.sleep(0)  # one turn of the loop: it waits
        await client.close()
        with pytest.raises(BrokenError):
            await waiting
        with pytest.raises(HttpError):
            await speaker.ask(client)


@pytest.mark.parametrize("fields", [{"a": "b\r\nc: d"}, {"a": "b\nc"}, {"a\r\nb": "c"}, {"a": "b\0"}, {"a": "\udcff"}])
def test_a_header_cannot_hold_another(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"none may hold|encode"):
        question("GET", "x", "/", fields, None)


def test_a_question_is_what_a_server_expects() -> None:
    assert question("POST", "x:1", "/a", {"content-type": "application/json"}, 5) == (
        b"POST /a HTTP/1.1\r\nhost: x:1\r\naccept-encoding: identity\r\ncontent-type: application/json\r\n"
        b"content-length: 5\r\n\r\n"
    )
