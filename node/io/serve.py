"""What peers call over HTTP: `POST /mesh/v1/serve/{path}` runs one granted request on this node.

The app that takes these routes sets `client_max_size` (bodies are read whole) and its runner
`handler_cancellation=True`: then a peer that hangs up cancels through to the worker at once, else only when the next
block cannot be written, about a second later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Protocol

import msgspec
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.io.calls import STREAMED, Call
from node.openai import plain_path
from node.types import NodeId, RequestId

_HEADER_CHARS = 1000


class Serving(Protocol):
    """The part of Host that this needs."""

    def serve(self, call: Call) -> AsyncGenerator[bytes, None]: ...
    async def post(self, call: Call) -> tuple[int, str, bytes]: ...


class Callers:
    """Which edge waits for what runs here. One that is cut off cannot hang up, so it is left."""

    def __init__(self) -> None:
        self._tasks: dict[NodeId, set[asyncio.Task[object]]] = {}

    @contextmanager
    def waits(self, edge: NodeId) -> Iterator[None]:
        """The present task serves that edge inside."""
        task = asyncio.current_task()
        assert task is not None
        tasks = self._tasks.setdefault(edge, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks and self._tasks.get(edge) is tasks:
                del self._tasks[edge]

    def leave(self, edge: NodeId) -> int:
        """Ends what runs for that edge, as when it hangs up; how many."""
        tasks = self._tasks.pop(edge, set())
        for task in tasks:
            task.cancel()
        return len(tasks)


def routes(host: Serving, leaving: Callable[[], str] = str, callers: Callers | None = None) -> list[web.RouteDef]:
    """Routes for the peer app. `leaving` says why this node takes no more from peers ("" while it does): what was
    granted before they knew is sent elsewhere, instead of broken off a moment later. `callers` is kept up to date."""
    callers = callers or Callers()

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            call = _call(request, await request.read())
            if why := leaving():
                raise NodeError(NodeErrorCode.DRAINING, f"this node is draining: {why}")
            with callers.waits(call.edge):
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
    """The headers as a Call. Raises NodeError: BAD_REQUEST naming the header that is missing or nonsense, or
    PATH_NOT_SERVED."""
    path = request.match_info["path"]
    if not plain_path(path):
        raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"there is no endpoint {path[:100]!r}")
    return Call(
        id=RequestId(_header(request, "x-mesh-request")),
        attempt=_number(request, "x-mesh-attempt"),
        edge=NodeId(_header(request, "x-mesh-edge")),
        model=_header(request, "x-mesh-model"),
        path=path,
        body=body,
        wants_usage=request.headers.get("x-mesh-usage") == "1",
        content_type=_header(request, "content-type", "application/json"),
        deadline_s=_number(request, "x-mesh-deadline-ms") / 1000.0,
        keep_alive=_keep_alive(request.headers.get("x-mesh-keep-alive")),
        resumes=request.headers.get("x-mesh-resume") == "1",
    )


def _keep_alive(value: str | None) -> float | None:
    """Seconds, `inf` for ever. What cannot be read is not said: it is no reason to refuse the request."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _header(request: web.Request, name: str, default: str = "") -> str:
    """Its value. What is no text (bytes that are not UTF-8) would break whoever writes it down: reports, logs."""
    value = request.headers.get(name) or default
    if not value:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is missing")
    if not value.isprintable() or len(value) > _HEADER_CHARS:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is not text of at most {_HEADER_CHARS} characters")
    return value


def _number(request: web.Request, name: str) -> int:
    value = _header(request, name)
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is not a whole number: {value[:32]!r}")
    return int(value)
