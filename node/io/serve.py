"""What peers call over HTTP: `POST /mesh/v1/serve/{path}` runs one granted request on this node.

Read and answered by our own front (node/io/front.py): a peer that hangs up cancels through to the worker at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec

from node.errors import NodeError, NodeErrorCode
from node.http_reply import Answer
from node.http_request import Fault, Head, path_of
from node.io.bodies import Bodies, Why
from node.io.calls import ALIVE, STREAMED, Call
from node.io.flow import Flow, Sink
from node.io.turn import Incoming, Outgoing
from node.openai import DONE, plain_path
from node.settings import DoorSettings
from node.types import NodeId, RequestId

_BELOW = "/mesh/v1/serve/"
_HEADER_CHARS = 1000
_JSON = {"content-type": "application/json"}
_STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}


class Serving(Protocol):
    """The part of Host that this needs."""

    def pour(self, call: Call, sink: Sink) -> Flow: ...
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


class Door:
    """The front's application for what peers ask. `leaving` says why this node takes no more from peers ("" while it
    does): what was granted before they knew is sent elsewhere, instead of broken off a moment later. `callers` is kept
    up to date."""

    def __init__(
        self,
        host: Serving,
        leaving: Callable[[], str] = str,
        callers: Callers | None = None,
        settings: DoorSettings | None = None,
    ) -> None:
        self._host, self._leaving, self._callers = host, leaving, callers or Callers()
        self._settings = settings or DoorSettings()
        self.bodies = Bodies(self._settings, self._refused)

    def takes(self, head: Head) -> bool:
        return head.method == "POST" and path_of(head.target).startswith(_BELOW)

    def malformed(self, fault: Fault) -> Answer:
        code = NodeErrorCode.NODE_BUSY if fault.status in (429, 503) else NodeErrorCode.BAD_REQUEST
        return Answer(fault.status, _JSON, error_body(NodeError(code, fault.message)))

    def _refused(self, why: Why, message: str) -> NodeError:
        """A body that is not held. One that is slow has an edge that is out of reach: it is tried elsewhere."""
        match why:
            case "full" | "share":
                return NodeError(NodeErrorCode.NODE_BUSY, message, retry_after_s=self._settings.retry_after_s)
            case "slow":
                return NodeError(NodeErrorCode.UNREACHABLE, message)
            case _:
                return NodeError(NodeErrorCode.BAD_REQUEST, message)

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        try:
            edge = _header(incoming.head, "x-mesh-edge")
            if edge != incoming.member:
                raise NodeError(NodeErrorCode.BAD_REQUEST, "x-mesh-edge is not the node that this connection is with")
            async with self.bodies.hold(incoming) as body:
                call = _call(incoming.head, body)
                if why := self._leaving():
                    raise NodeError(NodeErrorCode.DRAINING, f"this node is draining: {why}")
                with self._callers.waits(call.edge):
                    if call.path in STREAMED:
                        await _stream(outgoing, self._host, call)
                        return
                    status, content_type, said = await self._host.post(call)
        except NodeError as error:
            outgoing.whole(Answer(error.status, _JSON, error_body(error)))
        else:
            outgoing.whole(Answer(status, {"content-type": content_type}, said))


def error_body(error: NodeError) -> bytes:
    """`{"error": {"code", "message", "retry_after_s"}}`."""
    said = {"code": error.code, "message": error.message, "retry_after_s": error.retry_after_s}
    return msgspec.json.encode({"error": said})


async def _stream(out: Outgoing, host: Serving, call: Call) -> None:
    """Raises NodeError when it is not admitted, ConnectionError when the edge has gone."""
    sink = _Written(out)
    flow = sink.flow = host.pour(call, sink)
    try:
        sink.block(ALIVE)  # the edge knows now that it was admitted
        await sink.over
    finally:
        flow.close()


class _Written:
    """A sink that writes to an edge in the callback that brings the block. A slow edge holds the worker up."""

    def __init__(self, out: Outgoing) -> None:
        self._out = out
        self._paused = False
        self.flow: Flow | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def block(self, block: bytes) -> None:
        out = self._out
        try:
            if not out.status:
                out.begin(200, _STREAM)
            out.write(block)
        except ConnectionError as error:
            self._left(error)
        if out.full and not self._paused and self.flow is not None:
            self._paused = True
            self.flow.pause()
            out.when_room(self._go_on)

    def _go_on(self) -> None:
        self._paused = False
        if self.flow is not None:
            self.flow.resume()

    def done(self, error: NodeError | None) -> None:
        try:
            if error is None:
                self._out.write(DONE)
            else:
                self._out.last()
                self._out.write(b"event: error\ndata: " + error_body(error) + b"\n\n")
            self._out.end()
        except ConnectionError as left:
            self._left(left)
        if not self.over.done():
            self.over.set_result(None)

    def _left(self, error: ConnectionError) -> None:
        if not self.over.done():
            self.over.set_exception(error)


def _call(request: Head, body: bytes) -> Call:
    """The headers as a Call. Raises NodeError: BAD_REQUEST naming the header that is missing or nonsense, or
    PATH_NOT_SERVED."""
    path = path_of(request.target).removeprefix(_BELOW)
    if not plain_path(path):
        raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"there is no endpoint {path[:100]!r}")
    return Call(
        id=RequestId(_header(request, "x-mesh-request")),
        attempt=_number(request, "x-mesh-attempt"),
        edge=NodeId(_header(request, "x-mesh-edge")),
        model=_header(request, "x-mesh-model"),
        path=path,
        body=body,
        wants_usage=request.fields.get("x-mesh-usage") == "1",
        content_type=_header(request, "content-type", "application/json"),
        deadline_s=_number(request, "x-mesh-deadline-ms") / 1000.0,
        keep_alive=_keep_alive(request.fields.get("x-mesh-keep-alive")),
        resumes=request.fields.get("x-mesh-resume") == "1",
    )


def _keep_alive(value: str | None) -> float | None:
    """Seconds, `inf` for ever. What cannot be read is not said: it is no reason to refuse the request."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _header(request: Head, name: str, default: str = "") -> str:
    """Its value. What is no text (bytes that are not UTF-8) would break whoever writes it down: reports, logs."""
    value = request.fields.get(name) or default
    if not value:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is missing")
    if not value.isascii():
        value = value.encode("latin-1").decode("utf-8", "surrogateescape")
    if not value.isprintable() or len(value) > _HEADER_CHARS:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is not text of at most {_HEADER_CHARS} characters")
    return value


def _number(request: Head, name: str) -> int:
    value = _header(request, name)
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"header {name} is not a whole number: {value[:32]!r}")
    return int(value)
