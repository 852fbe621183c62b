"""What peers call over HTTP: `POST /mesh/v1/serve/{path}` runs one granted request on this node.

The app that takes these routes sets `client_max_size` (bodies are read whole) and its runner
`handler_cancellation=True`: then a peer that hangs up cancels through to the worker at once, else only when the next
block cannot be written, about a second later.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Protocol

import msgspec
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.io.calls import STREAMED, Call
from node.types import NodeId, RequestId


class Serving(Protocol):
    """The part of Host that this needs."""

    def serve(self, call: Call) -> AsyncGenerator[bytes, None]: ...
    async def post(self, call: Call) -> tuple[int, str, bytes]: ...


def routes(host: Serving) -> list[web.RouteDef]:
    """Routes for the peer app."""

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            call = _call(request, await request.read())
            if call.path in STREAMED:
                return await _stream(request, host, call)
            status, content_type, body = await host.post(call)
        except NodeError as error:
            return web.Response(status=error.status, body=error_body(error), content_type="application/json")
        return web.Response(status=status, body=body, headers={"content-type": content_type})

    return [web.post("/mesh/v1/serve/{path:.+}", serve)]


def error_body(error: NodeError) -> bytes:
    """`{"error": {"code", "message", "retry_after_s"}}`."""
    said = {"code": error.code, "message": error.message, "retry_after_s": error.retry_after_s}
    return msgspec.json.encode({"error": said})


async def _stream(request: web.Request, host: Serving, call: Call) -> web.StreamResponse:
    """Blocks as they come, each write awaited (backpressure). Raises NodeError as long as nothing was sent."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    async with aclosing(host.serve(call)) as blocks:
        first = await anext(blocks)
        try:
            await response.prepare(request)
            await response.write(first)
            async for block in blocks:
                await response.write(block)
        except NodeError as error:
            response.force_close()
            await _write_last(response, b"event: error\ndata: " + error_body(error) + b"\n\n")
        except ConnectionResetError:
            pass  # The peer has gone; leaving the block above cancels what it asked for.
        else:
            await _write_last(response, b"")
    return response


async def _write_last(response: web.StreamResponse, block: bytes) -> None:
    with suppress(ConnectionResetError):  # Nobody is there to miss it.
        await response.write_eof(block)


def _call(request: web.Request, body: bytes) -> Call:
    """The headers as a Call. Raises NodeError(BAD_REQUEST) naming the one that is missing or not a number."""
    return Call(
        id=RequestId(_header(request, "x-mesh-request")),
        attempt=_number(request, "x-mesh-attempt"),
        edge=NodeId(_header(request, "x-mesh-edge")),
        model=_header(request, "x-mesh-model"),
        path=request.match_info["path"],
        body=body,
        wants_usage=request.headers.get("x-mesh-usage") == "1",
        content_type=request.headers.get("content-type", "application/json"),
        deadline_s=_number(request, "x-mesh-deadline-ms") / 1000.0,
        keep_alive=_keep_alive(request.headers.get("x-mesh-keep-alive")),
    )


def _keep_alive(value: str | None) -> float | None:
    """Seconds, `inf` for ever. What cannot be read is not said: it is no reason to refuse the request."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _header(request: web.Request, name: str) -> str:
    value = request.headers.get(name)
    if not value:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is missing")
    return value


def _number(request: web.Request, name: str) -> int:
    value = _header(request, name)
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is not a whole number: {value[:32]!r}")
    return int(value)
