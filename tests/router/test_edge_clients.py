"""Clients that leave and clients that are slow: nothing runs on for them, and nothing is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress

import aiohttp
import pytest

from node.io.calls import Call
from node.types import NodeId
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.router.fakes import DONE, ME, OTHER, Rig, chunk, message, rigged, send


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", [ME, OTHER])
async def test_a_client_that_leaves_stops_the_node(rig: Rig, stream: bool, where: NodeId) -> None:
    async def endless(_: Call) -> AsyncGenerator[bytes, None]:
        while True:
            yield chunk("x")
            await asyncio.sleep(0.01)  # as a model writes: the whole answer stays below its limit

    rig.host.scripts = rig.peer.scripts = [endless]
    rig.dispatch.place = lambda _: where
    node = rig.host if where == ME else rig.peer
    body = message(stream=stream)
    request = asyncio.ensure_future(send(rig, "/v1/chat/completions", json=body))
    await until(lambda: ("first", 1) in rig.dispatch.said)
    request.cancel()
    await until(lambda: node.closed == 1)
    await until(lambda: len(rig.facts) == 1)
    assert ("done", 1, "cancelled") in rig.dispatch.said
    (fact,) = rig.facts
    assert (fact.outcome, fact.status) == ("cancelled", 200 if stream else 499)
    assert fact.attempts[0].outcome == "cancelled"


async def test_a_write_that_fails_is_a_client_that_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection may be found closed by writing, before the server cancels the handler."""

    def reset(*_: object) -> None:
        raise ConnectionResetError("the client has gone")

    monkeypatch.setattr("router.io.replies.StreamReply.block", reset)
    async with aiohttp.ClientSession() as session:
        body = message(stream=True)
        with suppress(aiohttp.ClientError):
            await session.post(f"{rig.url}/v1/chat/completions", json=body)
    await until(lambda: bool(rig.facts))
    assert (rig.facts[0].outcome, rig.host.open) == ("cancelled", 0)
    assert ("done", 1, "cancelled") in rig.dispatch.said


async def test_a_client_that_leaves_while_waiting(rig: Rig) -> None:
    rig.dispatch.place = lambda _: None
    request = asyncio.ensure_future(send(rig, "/v1/chat/completions", json=message()))
    await until(lambda: len(rig.dispatch.asked) == 1)
    request.cancel()
    await until(lambda: len(rig.facts) == 1)
    assert rig.dispatch.said == [("ask", 1, None), ("cancel", 1)]
    assert (rig.facts[0].outcome, rig.facts[0].attempts) == ("cancelled", ())


async def stalled(rig: Rig, headers: dict[str, str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has asked for a stream and reads no more of it than fits into its buffers."""
    body = json.dumps(message(stream=True)).encode()
    fields = {"host": "x", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]), limit=2**16)
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body)
    return reader, writer


async def test_a_slow_reader_holds_the_node_up(rig: Rig) -> None:
    sent = 0

    async def endless(_: Call) -> AsyncGenerator[bytes, None]:
        nonlocal sent
        while sent < 400:
            sent += 1
            yield chunk("x" * 65536)
        yield DONE

    rig.host.scripts = [endless]
    reader, writer = await stalled(rig, {"connection": "close"})
    await until(lambda: sent > 0)
    seen = [-1]

    def at_rest() -> bool:
        seen.append(sent)
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await until(at_rest)
    assert sent < 400, "the whole answer was buffered"
    while await reader.read(2**20):
        pass
    writer.close()
    assert sent == 400
    await until(lambda: len(rig.facts) == 1)
    assert rig.facts[0].outcome == "ok"


async def test_a_client_that_stops_reading_is_let_go_at_its_deadline() -> None:
    """With everything that was held for it: what it does not take is not kept either."""

    async def endless(_: Call) -> AsyncGenerator[bytes, None]:
        while True:
            yield chunk("x" * 65536)
            await asyncio.sleep(0)  # the others have their turn

    async with rigged(EdgeSettings(farewell_s=0.2)) as (rig, edge):
        rig.host.scripts = [endless]
        _reader, writer = await stalled(rig, {"x-mesh-deadline-ms": "500"})
        await until(lambda: edge.open_requests == 1)
        await until(lambda: edge.open_requests == rig.connections() == rig.host.open == 0)
        assert (rig.facts[0].outcome, rig.facts[0].status) == ("failed", 200)
        assert (rig.facts[0].error or "").startswith("deadline_exceeded")
        writer.close()
