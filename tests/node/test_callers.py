"""An edge that is cut off cannot hang up: what runs for it here is ended all the same, and nothing else is."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from node.io.serve import Callers, Door
from node.types import NodeId
from tests.mesh.waiting import until
from tests.node.doors import opened
from tests.node.test_serve import HEADERS, FakeHost

EDGE, OTHER = NodeId(HEADERS["x-mesh-edge"]), NodeId("fedcba9876543210")


async def test_what_runs_for_an_edge_ends_when_it_is_left() -> None:
    callers, host = Callers(), FakeHost(None)
    async with opened(Door(host, callers=callers)) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/mesh/v1/serve/chat/completions"
        async with session.post(url, data=b"{}", headers=HEADERS) as answer:
            assert await answer.content.readline() == b": alive\n"
            assert callers.leave(OTHER) == 0
            assert not host.closed
            assert callers.leave(EDGE) == 1
            await until(lambda: host.closed)
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
    assert callers.leave(EDGE) == 0


async def test_what_has_ended_is_not_kept_in_mind() -> None:
    callers = Callers()
    with callers.waits(EDGE), callers.waits(OTHER):
        pass
    assert callers.leave(EDGE) == callers.leave(OTHER) == 0

    async def serve() -> None:
        with callers.waits(EDGE):
            await asyncio.get_running_loop().create_future()

    left = asyncio.ensure_future(serve())
    await asyncio.sleep(0)  # one turn of the loop: it waits
    assert callers.leave(EDGE) == 1
    with callers.waits(EDGE):  # a new one while the old one ends
        assert (await asyncio.gather(left, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        assert set(callers._tasks) == {EDGE}
