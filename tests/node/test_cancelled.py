"""Requests that are given up at any moment leave nothing: no slot, no socket, no task, no running count."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

from node.errors import NodeError
from node.io.calls import Call
from node.io.engine import ModelSpec
from node.io.external import ExternalEngine
from node.io.host import Host
from node.io.probe import Probe
from node.openai import DONE
from node.settings import EngineSettings, NodeSettings
from node.types import NodeId, RequestId
from tests.mesh.waiting import until
from tests.node.fakes import data, usage
from tests.node.scripted import served

TIMES = 600
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Engine:
    """Answers each question with eight blocks, one in each turn of the loop or two."""

    def __init__(self) -> None:
        self.open = self.asked = self.whole = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.asked += 1
                writer.write(HEAD)
                for block in (*[data("x")] * 6, usage(5, 0, 6), DONE):
                    writer.write(b"%x\r\n" % len(block) + block + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)  # so that blocks come apart
                writer.write(b"0\r\n\r\n")
                self.whole += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def test_requests_cancelled_at_random_moments_leave_nothing() -> None:
    engine, rng, ended = Engine(), Random(6), [0, 0, 0]
    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    host = Host(
        settings=NodeSettings(), engines={"external": ExternalEngine(EngineSettings())},
        report=lambda _: None, changed=lambda: None, probe=Probe(),
    )  # fmt: skip
    living = asyncio.ensure_future(host.run())
    await host.apply([ModelSpec(name="m", engine="external", url=url, slots=8)])
    await host.load("m")
    worker = host._roster.models["m"].worker
    http = worker._upstream.http
    before = len(asyncio.all_tasks())

    async def one(n: int) -> None:
        call = Call(
            id=RequestId(f"r{n}"), attempt=1, edge=NodeId("e"), model="m", path="chat/completions",
            body=b'{"messages":[]}', deadline_s=60.0,
        )  # fmt: skip
        async with aclosing(served(host, call)) as blocks:
            async for block in blocks:
                if block == DONE:
                    ended[0] += 1

    async def given_up(n: int) -> None:
        asking = asyncio.ensure_future(one(n))
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)  # given up after so many turns of the loop, wherever it is then
        asking.cancel()
        try:
            await asking
        except asyncio.CancelledError:
            ended[1] += 1
        except NodeError:
            ended[2] += 1

    for start in range(0, TIMES, 12):
        await asyncio.gather(*(given_up(n) for n in range(start, start + 12)))
    assert ended[1] > TIMES / 10, ended
    assert not host.running()
    assert host.models()[0].in_flight == host.models()[0].queue_depth == 0
    await until(lambda: http.connections == http.idle == engine.open)
    await until(lambda: len(asyncio.all_tasks()) <= before + engine.open)
    assert worker._meter.active == 0
    await one(-1)
    assert ended[0] > 0
    living.cancel()
    await asyncio.wait({living})
    assert http.connections == 0
    server.close()
    await until(lambda: engine.open == 0)
