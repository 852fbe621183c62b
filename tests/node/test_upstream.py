"""The client of model servers against a server that misbehaves in all the ways there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from node.continuation import TOKENS_HEADER
from node.errors import NodeError, NodeErrorCode
from node.io.engine import ModelSpec
from node.io.external import ExternalEngine, base_of
from node.io.upstream import Upstream
from node.settings import EngineSettings
from tests.mesh.waiting import until
from tests.node.scripted import streamed

CHUNK = b'data: {"model":"theirs","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
BODY = b'{"messages":[]}'
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer, path: str = "/v1/chat/completions", **bounds: Any) -> AsyncIterator[Upstream]:
    app = web.Application()
    app.router.add_post(path, answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    settings = EngineSettings(block_bytes=1000, **bounds)
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    first_limit_s = settings.first_block_limit_s
    upstream = Upstream(base, settings, model="theirs", echoes="theirs", first_limit_s=first_limit_s)
    try:
        yield upstream
    finally:
        await upstream.close()
        await runner.cleanup()


def saying(*parts: bytes, pause_s: float = 0.0) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(pause_s)
        return response

    return answer


def refusing(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


async def heard(upstream: Upstream, model_name: str = "theirs") -> list[bytes]:
    async with aclosing(streamed(upstream, "chat/completions", BODY, model_name=model_name)) as blocks:
        return [block async for block in blocks]


async def failure(answer: Answer, **bounds: float) -> NodeError:
    async with serving(answer, **bounds) as upstream:
        with pytest.raises(NodeError) as caught:
            await heard(upstream)
    return caught.value


async def test_only_our_own_launcher_is_asked_for_tokens() -> None:
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get(TOKENS_HEADER))
        return await saying(CHUNK, b"data: [DONE]\n\n")(request)

    async with serving(answer) as upstream:
        await heard(upstream)
        upstream.names_tokens = True
        await heard(upstream)
    assert asked == [None, "1"]


async def test_blocks_pass_untouched_up_to_done() -> None:
    async with serving(
        saying(b": alive\n\n", CHUNK[:20], CHUNK[20:] + CHUNK, b"data:[DONE]\r\n\r\n", CHUNK)
    ) as upstream:
        assert await heard(upstream) == [b": alive\n\n", CHUNK, CHUNK, b"data: [DONE]\n\n"]


async def test_a_server_that_names_its_events_is_understood() -> None:
    """Neither the node's pump nor the edge looks for data behind other fields: such an answer would arrive empty."""
    noted = b"event: message\nid: 1\n" + CHUNK
    async with serving(saying(b"retry: 100\n\n" + noted, noted + b"event: end\ndata: [DONE]\n\n")) as upstream:
        assert await heard(upstream) == [CHUNK, CHUNK, b"data: [DONE]\n\n"]


async def test_another_name_is_put_into_each_chunk() -> None:
    async with serving(saying(CHUNK + b"data: [DONE]\n\n")) as upstream:
        assert await heard(upstream, "ours") == [CHUNK.replace(b"theirs", b"ours"), b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (400, '{"error": "top_p must be at most 1"}', NodeErrorCode.BAD_REQUEST, "top_p"),
        (422, '{"detail": "wrong"}', NodeErrorCode.BAD_REQUEST, "wrong"),
        (404, '{"error": "generation thread died"}', NodeErrorCode.MODEL_FAILED, "generation thread died"),
        (404, "Not Found", NodeErrorCode.MODEL_FAILED, "chat/completions"),
        (401, '{"error": {"message": "no key"}}', NodeErrorCode.MODEL_FAILED, "no key"),
        (500, "oops", NodeErrorCode.MODEL_FAILED, "oops"),
        (503, "full", NodeErrorCode.NODE_BUSY, "full"),
    ],
)
async def test_statuses_become_node_errors(status: int, body: str, code: NodeErrorCode, said: str) -> None:
    error = await failure(refusing(status, body))
    assert error.code is code
    assert said in error.message


async def test_a_busy_server_says_when_to_come_back() -> None:
    assert (await failure(refusing(429, "later", {"Retry-After": "7"}))).retry_after_s == 7.0


async def test_a_stream_without_its_end_is_a_failure() -> None:
    assert "before its end" in (await failure(saying(CHUNK))).message


async def test_an_error_event_is_a_failure() -> None:
    assert "lost it" in (await failure(saying(CHUNK, b'data: {"error":{"message":"lost it"}}\n\n'))).message


async def test_an_endless_block_is_a_failure() -> None:
    assert "1000 bytes" in (await failure(saying(b"data: " + b"x" * 5000))).message


async def test_silence_is_a_failure_before_the_first_block_and_after() -> None:
    assert "0.3 s" in (await failure(saying(b"data", pause_s=5.0), first_block_limit_s=0.3)).message
    assert "0.2 s" in (await failure(saying(CHUNK, pause_s=5.0), silence_limit_s=0.2)).message


async def test_nobody_there_is_a_failure() -> None:
    async with serving(saying(CHUNK)) as upstream:
        pass
    with pytest.raises(NodeError) as caught:
        await heard(upstream)
    assert caught.value.code is NodeErrorCode.MODEL_FAILED
    await upstream.close()


async def test_closing_the_stream_closes_the_connection() -> None:
    left = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await saying(CHUNK, CHUNK, pause_s=600.0)(request)
        finally:
            left.set()

    async with serving(answer) as upstream:
        async with aclosing(streamed(upstream, "chat/completions", BODY, model_name="theirs")) as blocks:
            assert await anext(blocks) == CHUNK
        async with asyncio.timeout(30.0):
            await left.wait()


async def test_the_probe_takes_whichever_completion_there_is() -> None:
    async with serving(saying(CHUNK, b"data: [DONE]\n\n"), "/v1/completions") as upstream:
        await upstream.probe(chat_first=True)
    async with serving(saying(), "/v1/else") as upstream:
        with pytest.raises(NodeError, match="neither"):
            await upstream.probe(chat_first=True)


async def test_other_endpoints_are_renamed_or_missing() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert await request.json() == {"model": "theirs", "input": "x"}
        return web.json_response({"data": []}, status=207)

    async with serving(answer, "/v1/embeddings") as upstream:
        status, kind, body = await upstream.post("embeddings", b'{"model":"ours","input":"x"}', "application/json")
        assert (status, kind, body) == (207, "application/json; charset=utf-8", b'{"data": []}')
        with pytest.raises(NodeError) as caught:
            await upstream.post("rerank", b"{}", "application/json")
        assert caught.value.code is NodeErrorCode.PATH_NOT_SERVED


async def test_an_external_server_that_is_not_there_is_named() -> None:
    async with serving(saying(CHUNK)) as upstream:
        url = upstream.base
    worker = ExternalEngine(EngineSettings()).worker(ModelSpec(name="far", url=url), lambda _: None)
    with pytest.raises(NodeError, match=f"far: nothing answers at {url}"):
        await worker.start()


def test_urls_with_and_without_v1() -> None:
    for url in ("http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/", "x:1"):
        assert base_of(url) == "http://x:1/v1"


async def test_a_connection_is_used_for_the_next_stream_and_question() -> None:
    seen: set[object] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.add(request.protocol)
        return await saying(CHUNK, b"data: [DONE]\n\n")(request)

    async with serving(answer) as upstream:
        for _ in range(3):
            await heard(upstream)
            await until(lambda: upstream.http.idle == 1)
        assert await upstream.get(f"{upstream.base}/none", 5.0) == (404, b"404: Not Found")
        assert len(seen) == 1
        assert upstream.http.connections == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (b"content-length: 1\r\ncontent-length: 2\r\n", "content-length twice"),
        (b"content-length: 1\r\ncontent-encoding: gzip\r\n", "compressed"),
    ],
)
async def test_what_no_server_may_say_is_a_failure(fields: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\nx")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    upstream = Upstream(base, EngineSettings(), model="m", echoes="m", first_limit_s=30.0)
    with pytest.raises(NodeError, match=said) as caught:
        await heard(upstream)
    assert caught.value.code is NodeErrorCode.MODEL_FAILED
    await upstream.close()
    server.close()


async def test_a_url_with_a_user_carries_the_password() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Basic dTpw"
        assert request.headers["Host"] == base.removeprefix("http://").removesuffix("/v1")
        return await saying(CHUNK, b"data: [DONE]\n\n")(request)

    async with serving(answer) as upstream:
        base = upstream.base
        upstream.base = base.replace("http://", "http://u:p@")
        assert await heard(upstream) == [CHUNK, b"data: [DONE]\n\n"]


async def test_what_no_url_can_be_is_a_failure() -> None:
    upstream = Upstream("http://x:99999/v1", EngineSettings(), model="m", echoes="m", first_limit_s=30.0)
    with pytest.raises(NodeError, match="cannot be asked"):
        await heard(upstream)
    assert await upstream.get("http://x:99999/", 1.0) is None
    await upstream.close()
