"""A node that is put out while the mesh works for it: what it asked for ends, on both sides, and at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from bench.ports import free_port
from mesh.daemon import Daemon
from mesh.home import Home
from tests.mesh.daemons import home_of, mesh_name, running
from tests.mesh.waiting import until

pytestmark = pytest.mark.usefixtures("bare_environment")


class Slow:
    """An OpenAI server that says one word and then thinks for as long as it is let."""

    def __init__(self) -> None:
        self.port, self.open = free_port(), 0

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "slow", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        chunk: dict[str, Any] = {"id": "a", "object": "chat.completion.chunk", "model": "slow", "created": 1,
                 "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}  # fmt: skip
        await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if (asked.get("max_tokens") or asked.get("max_completion_tokens")) == 1:  # a probe
            chunk["choices"][0] |= {"delta": {}, "finish_reason": "stop"}
            await answer.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())
            return answer
        self.open += 1
        try:
            await asyncio.sleep(3600)
        finally:
            self.open -= 1
        return answer


@asynccontextmanager
async def serving() -> AsyncIterator[Slow]:
    slow, app = Slow(), web.Application()
    app.add_routes([web.get("/v1/models", slow.models), web.post("/v1/chat/completions", slow.chat)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", slow.port).start()
    try:
        yield slow
    finally:
        await runner.cleanup()


def with_model(home: Home, port: int) -> Home:
    tier = {"name": "slow", "model": "slow", "engine": "external", "url": f"http://127.0.0.1:{port}/v1"}
    home.stack.parent.mkdir(exist_ok=True)
    home.stack.write_text(yaml.safe_dump({"schema_version": 1, "tiers": [tier]}))
    return home


async def asked(session: aiohttp.ClientSession, at: Daemon) -> aiohttp.ClientResponse:
    """A stream of which the first word has come."""
    body: dict[str, Any] = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "?"}]}
    answer = await session.post(f"http://127.0.0.1:{at.config.port}/v1/chat/completions", json=body)
    assert answer.status == 200, await answer.text()
    assert b"word" in await answer.content.readline()
    return answer


@pytest.mark.parametrize("remover", ["server", "edge"])
async def test_what_runs_between_the_two_ends_on_both_sides(tmp_path: Path, remover: str) -> None:
    """Whichever of them puts the other out: the one that serves cancels, the one that carries tells its client."""
    same = {"mesh_enabled": True, "mesh_name": mesh_name()}
    async with serving() as slow, running(with_model(home_of(tmp_path, "one", **same), slow.port)) as one:
        async with running(home_of(tmp_path, "two", **same)) as two, aiohttp.ClientSession() as session:
            await until(lambda: one.membership.alive() == {two.id} and two.membership.alive() == {one.id}, 60)
            await until(lambda: two.membership.view().coordinator == one.membership.view().coordinator, 60)
            await until(lambda: any(m.state == "ready" for m in one.host.models()), 60)
            answer = await asked(session, two)
            assert slow.open == 1
            by, out = (one, two) if remover == "server" else (two, one)
            assert by.overlay is not None
            by.overlay.remove(out.id)
            said = await asyncio.wait_for(answer.content.read(), 30)
            assert b"error" in said
            assert b"[DONE]" not in said
            await until(lambda: slow.open == 0 and not one.host.running())
            assert not out.trust.belongs or out.id not in by.trust.members
            assert not by.membership.alive()
            await until(lambda: not out.membership.alive())
