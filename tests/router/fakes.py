"""An edge with real sockets on both sides, a scripted coordinator and scripted nodes."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware
from openai import AsyncOpenAI

from mesh.http import Server
from mesh.settings import ServerSettings
from mesh.tls import PeerTls
from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.flow import Flow, Sink
from node.io.front import Application
from node.io.http_client import HttpClient
from node.io.serve import Door
from node.types import ModelReport, ModelState, NodeId, NodeReport, RequestId, Usage
from router.errors import ErrorCode, Refusal
from router.events import Decision, Outcome, Request, Why
from router.facts import RouteFact
from router.frames import CoordinatorFrame, Granted, Refused
from router.guard import Guard
from router.io.edge import Edge
from router.settings import EdgeSettings
from router.view import NodeState, NodeView, View
from tests.keys import Circle
from tests.node.scripted import Scripted

ME, OTHER = NodeId("1" * 16), NodeId("2" * 16)
CIRCLE = Circle(ME, OTHER)
USAGE = b': usage {"prompt":5,"cached":2,"completion":2}\n\n'
DONE = b"data: [DONE]\n\n"
ALIVE = b": alive\n\n"
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]


def chunk(text: str, finish: str | None = None, *, id_: str = "c", **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": id_, "object": "chat.completion.chunk", "created": 1, "model": "chat-1", "choices": [choice], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE_CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"chat-1","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
)
PARIS = (ALIVE, chunk("Par"), chunk("is", "stop"), USAGE, DONE)
Script = Callable[[Call], AsyncGenerator[bytes, None]]


def says(*blocks: bytes | NodeError) -> Script:
    """A node that says these blocks; a NodeError among them is raised at its place."""

    async def serve(_: Call) -> AsyncGenerator[bytes, None]:
        for block in blocks:
            if isinstance(block, NodeError):
                raise block
            yield block

    return serve


def failed(code: NodeErrorCode = NodeErrorCode.MODEL_FAILED) -> NodeError:
    return NodeError(code, "it broke")


class FakeHost:
    """Answers attempt k by the k-th script, later ones by the last."""

    def __init__(self) -> None:
        self.scripts: list[Script] = [says(*PARIS)]
        self.post_answer: tuple[int, str, bytes] = (200, "application/json", b'{"data":[]}')
        self.calls: list[Call] = []
        self.open = self.closed = 0

    def pour(self, call: Call, sink: Sink) -> Flow:
        self.calls.append(call)
        cut = NodeError(NodeErrorCode.UNREACHABLE, "the answer ended without [DONE]")
        return Scripted(self._say(call), sink, cut=cut)

    async def _say(self, call: Call) -> AsyncGenerator[bytes, None]:
        script = self.scripts[min(len(self.calls), len(self.scripts)) - 1]
        self.open += 1
        try:
            async for block in script(call):
                if block is USAGE_CHUNK and not call.wants_usage:
                    continue
                yield block
        finally:
            self.open -= 1
            self.closed += 1

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        self.calls.append(call)
        return self.post_answer


class FakeDispatch:
    """Grants by `place`; notes what the edge says."""

    def __init__(self) -> None:
        self.place: Callable[[Request], NodeId | Refusal | None] = lambda request: next(
            (n for n in (ME, OTHER) if n not in request.excluded), Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody")
        )
        self.asked: list[Request] = []
        self.said: list[tuple[Any, ...]] = []

    def ask(
        self,
        request: Request,
        attempt: int,
        age_s: float,
        last_outcome: Outcome | None,
        on_answer: Callable[[CoordinatorFrame], None],
    ) -> None:
        assert age_s >= 0
        self.asked.append(request)
        self.said.append(("ask", attempt, last_outcome))
        place = self.place(request)
        if isinstance(place, Refusal):
            on_answer(Refused(request.id, attempt, place))
        elif place is not None:
            decision = Decision(request={}, chosen=place, waited_ms=0.0, candidates=())
            on_answer(Granted(request.id, attempt, place, "chat-1", Why(decision)))

    def taken(self, request: RequestId, attempt: int) -> None:
        self.said.append(("taken", attempt))

    def first(self, request: RequestId, attempt: int, cached_tokens: int) -> None:
        self.said.append(("first", attempt, *([cached_tokens] if cached_tokens else [])))

    def done(self, request: RequestId, attempt: int, outcome: Outcome, usage: Usage) -> None:
        self.said.append(("done", attempt, outcome))

    def cancel(self, request: RequestId, attempt: int) -> None:
        self.said.append(("cancel", attempt))


class Rig:
    """An edge at a real port, and a peer at another that serves what `peer` says."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.host, self.peer, self.dispatch = FakeHost(), FakeHost(), FakeDispatch()
        self.facts: list[RouteFact] = []
        self.turned_away: list[tuple[str, str]] = []
        self.limited: Counter[str] = Counter()  # names of limits that were met
        self.bytes = {"client_in": 0, "client_out": 0, "peer_in": 0, "peer_out": 0}
        self.models: tuple[ModelReport, ...] = (
            ModelReport(name="chat-1", aliases=("standard",), state=ModelState.READY),
        )
        self.other_models: tuple[ModelReport, ...] = self.models
        self.other_state = NodeState.OK
        self.draining = False
        self.coordinator: NodeId | None = OTHER
        self.peer_port = 0
        self.url = ""
        self.server: Server

    def view(self) -> View:
        def node(node: NodeId, name: str, models: tuple[ModelReport, ...], draining: bool = False) -> NodeReport:
            return NodeReport(
                id=node,
                boot="b",
                name=name,
                version="0.1",
                protocol=1,
                priority=100,
                uptime_s=1.0,
                models=models,
                peer_port=self.peer_port,
                draining=draining,
            )

        return View(
            self_id=ME,
            mesh_id="mesh-id",
            enabled=True,
            coordinator=self.coordinator,
            alone=False,
            nodes=(
                NodeView(report=node(ME, "studio", self.models, self.draining)),
                NodeView(
                    report=node(OTHER, "mini", self.other_models),
                    state=self.other_state,
                    addresses=("127.0.0.1",),
                ),
            ),
        )

    def count(self, what: str, size: int) -> None:
        self.bytes[what] += size

    def connections(self) -> int:
        """Open at the edge."""
        return self.server.connections

    def client(self, **more: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="sk-secret", max_retries=0, **more)


async def serving(
    raw: Application,
    routes: Sequence[web.RouteDef] = (),
    tls: PeerTls | None = None,
    middlewares: Sequence[Middleware] = (),
) -> tuple[Server, int]:
    app = web.Application(middlewares=middlewares)
    app.add_routes(routes)
    server = Server(app, raw=raw, settings=ServerSettings(stop_s=0.1), tls=tls)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await server.listen([listening])
    return server, int(listening.getsockname()[1])


@asynccontextmanager
async def rigged(settings: EdgeSettings, guard: Guard | None = None) -> AsyncIterator[tuple[Rig, Edge]]:
    """Whoever asks may, unless `guard` says otherwise; who may not is in `rig.turned_away`."""
    rig = Rig(settings)
    peer, rig.peer_port = await serving(Door(rig.peer), tls=CIRCLE.tls(OTHER))
    async with HttpClient() as http:
        edge = Edge(
            view=rig.view,
            dispatch=rig.dispatch,
            host=rig.host,
            http=http,
            tls=CIRCLE.tls(ME).client,
            settings=settings,
            report=rig.facts.append,
            count_bytes=rig.count,
            metrics=lambda: b"# none\n",
            guard=guard or Guard(hosts=["*"]),
            turned_away=lambda denied, client: rig.turned_away.append((denied.what, client)),
            limited=lambda name: rig.limited.update([name]),
        )
        rig.server, port = await serving(edge, edge.routes(), middlewares=[edge.middleware()])
        rig.url = f"http://127.0.0.1:{port}"
        try:
            yield rig, edge
        finally:
            await rig.server.close()
            await peer.close()
    assert edge.open_requests == 0
    assert edge._means.bodies.held_bytes == 0
    assert edge.kept_bytes == 0


FAST = EdgeSettings(round_pause_s=0.02, busy_pause_s=0.01, silence_s=1.1)


def message(**more: Any) -> dict[str, Any]:
    return {"model": "chat-1", "messages": ASK, **more}


async def send(rig: Rig, path: str, method: str = "POST", **more: Any) -> tuple[int, Any, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, rig.url + path, **more) as response:
        body = await response.read()
        with suppress(ValueError):
            return response.status, json.loads(body), response.headers
        return response.status, body, response.headers
