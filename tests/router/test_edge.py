"""The edge with real sockets on both sides, a scripted coordinator and a scripted node."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.serve import routes as peer_routes
from node.types import ModelReport, ModelState, NodeId, NodeReport, RequestId, Usage, status_of
from router.errors import ErrorCode, Refusal
from router.events import Decision, Outcome, Request
from router.facts import RouteFact
from router.frames import CoordinatorFrame, Granted, Refused
from router.io.dispatch import Dispatch
from router.io.edge import Edge
from router.settings import EdgeSettings, RouterSettings
from router.view import NodeState, NodeView, View

ME, OTHER = NodeId("1" * 16), NodeId("2" * 16)
USAGE = b': usage {"prompt":5,"cached":2,"completion":2}\n\n'
DONE = b"data: [DONE]\n\n"
ALIVE = b": alive\n\n"
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat-1", "choices": [choice]}
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

    async def serve(self, call: Call) -> AsyncGenerator[bytes, None]:
        self.calls.append(call)
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
            on_answer(Granted(request.id, attempt, place, "chat-1", decision))

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
        self.connections: Callable[[], int] = lambda: 0  # open at the edge

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

    def client(self, **more: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="sk-secret", max_retries=0, **more)


async def serving(routes: list[web.RouteDef]) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, int(runner.addresses[0][1])


@asynccontextmanager
async def rigged(settings: EdgeSettings) -> AsyncIterator[tuple[Rig, Edge]]:
    rig = Rig(settings)
    peer, rig.peer_port = await serving(peer_routes(rig.peer))
    async with aiohttp.ClientSession() as session:
        edge = Edge(
            view=rig.view,
            dispatch=rig.dispatch,
            host=rig.host,
            session=session,
            settings=settings,
            report=rig.facts.append,
            count_bytes=rig.count,
            metrics=lambda: b"# none\n",
        )
        runner, port = await serving(edge.routes())
        rig.url = f"http://127.0.0.1:{port}"
        rig.connections = lambda: len(runner.server.connections) if runner.server is not None else 0
        try:
            yield rig, edge
        finally:
            await runner.cleanup()
            await peer.cleanup()
    assert edge.open_requests == 0
    assert edge._means.bodies.held_bytes == 0


FAST = EdgeSettings(round_pause_s=0.02, busy_pause_s=0.01, silence_s=1.1)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged(FAST) as (rig, _):
        yield rig


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for lives on the other side of a socket
            await asyncio.sleep(0.005)


async def send(rig: Rig, path: str, method: str = "POST", **more: Any) -> tuple[int, Any, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, rig.url + path, **more) as response:
        body = await response.read()
        with suppress(ValueError):
            return response.status, json.loads(body), response.headers
        return response.status, body, response.headers


# Answers


async def test_a_whole_answer_with_the_official_client(rig: Rig) -> None:
    raw = await rig.client().chat.completions.with_raw_response.create(model="standard", messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Paris"
    assert answer.model == "chat-1"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert raw.headers["x-mesh-node"] == "studio"
    assert raw.headers["x-mesh-model"] == "chat-1"
    assert raw.headers["x-mesh-attempts"] == "1"
    assert int(raw.headers["x-mesh-queue-ms"]) >= 0
    (fact,) = rig.facts
    assert raw.headers["x-request-id"] == fact.id
    assert (fact.outcome, fact.status, fact.node, fact.edge, fact.coordinator) == (
        "ok",
        200,
        "studio",
        "studio",
        "mini",
    )
    assert (fact.model, fact.served_model) == ("standard", "chat-1")
    assert (fact.prompt_tokens, fact.cached_tokens, fact.completion_tokens) == (5, 2, 2)
    assert fact.ttft_ms is not None
    assert fact.ttft_ms <= fact.total_ms
    assert [(a.node, a.outcome) for a in fact.attempts] == [("studio", "ok")]
    assert rig.dispatch.said == [("ask", 1, None), ("taken", 1), ("first", 1), ("done", 1, "ok")]


async def test_a_stream_passes_as_it_is_without_comments_and_usage(rig: Rig) -> None:
    rig.host.scripts = [says(ALIVE, ALIVE, chunk("Par"), chunk("is", "stop"), USAGE_CHUNK, USAGE, DONE)]
    status, body, headers = await send(
        rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK, "stream": True}
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-mesh-node"] == "studio"
    assert body == chunk("Par") + chunk("is", "stop") + DONE
    assert rig.facts[0].stream
    assert rig.facts[0].completion_tokens == 2


async def test_signs_of_life_pass_once_the_answer_has_begun(rig: Rig) -> None:
    rig.host.scripts = [says(ALIVE, chunk("Par"), ALIVE, chunk("is", "stop"), USAGE, DONE)]
    _, body, _ = await send(rig, "/v1/chat/completions", json=message(stream=True))
    assert body == chunk("Par") + ALIVE + chunk("is", "stop") + DONE


async def test_usage_is_given_to_a_client_that_asked(rig: Rig) -> None:
    rig.host.scripts = [says(chunk("Paris", "stop"), USAGE_CHUNK, USAGE, DONE)]
    stream = await rig.client().chat.completions.create(
        model="chat-1",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [c async for c in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7


async def test_the_body_reaches_the_node_unchanged(rig: Rig) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    await rig.client().chat.completions.create(
        model="chat-1",
        messages=ASK,
        tools=[tool],
        extra_body={"top_k": 7, "mystery": {"a": [1, None]}},
    )
    sent = json.loads(rig.host.calls[0].body)
    assert sent["tools"] == [tool]
    assert (sent["top_k"], sent["mystery"]) == (7, {"a": [1, None]})
    odd = b' {"model" : "chat-1",\n "messages":[{"role":"user","content":"\xc3\xa9"}] , "x":1e2}'
    await send(rig, "/v1/chat/completions", data=odd)
    assert rig.host.calls[1].body == odd


async def test_tool_calls_come_back(rig: Rig) -> None:
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    block = {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    rig.host.scripts = [says(b"data: " + json.dumps(block).encode() + b"\n\n", DONE)]
    answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert answer.choices[0].message.tool_calls is not None
    function = answer.choices[0].message.tool_calls[0].function  # type: ignore[union-attr]
    assert (function.name, function.arguments) == ("weather", "{}")


async def test_what_the_client_says_reaches_the_coordinator(rig: Rig) -> None:
    headers = {
        "x-request-id": "mine-1",
        "x-priority": "low",
        "x-mesh-deadline-ms": "5000",
        "authorization": "Bearer sk-secret",
    }
    body = {"model": "chat-1", "messages": ASK, "max_tokens": 9, "max_completion_tokens": 11}
    await send(rig, "/v1/chat/completions", json=body, headers=headers)
    (request,) = rig.dispatch.asked
    assert (request.priority, request.max_tokens, request.models) == ("low", 11, ("chat-1",))
    assert request.deadline is not None
    assert 4.0 < request.deadline <= 5.0
    assert request.client.startswith("key:")
    assert "secret" not in request.client
    assert request.prompt_tokens == round((16 + len(ASK[0]["content"])) / 4)
    assert (request.whole != 0, request.follows) == (True, 0)
    assert rig.host.calls[0].deadline_s <= 5.0
    assert rig.facts[0].client_request_id == "mine-1"
    await send(rig, "/v1/chat/completions", json=body, headers={"x-request-id": "bad id\t" + "x" * 200})
    assert rig.facts[1].client_request_id is None
    assert rig.dispatch.asked[1].client == "127.0.0.1"


async def test_headers_of_any_bytes(rig: Rig) -> None:
    """A key is only told apart by them; a content type has to be read."""
    body = json.dumps(message()).encode()
    for header, status in ((b"authorization: Bearer \xff", 200), (b"content-type: text/\xff", 400)):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n" % len(
            body
        )
        writer.write(head + header + b"\r\n\r\n" + body)
        assert (await reader.read()).startswith(b"HTTP/1.1 %d " % status)
        writer.close()


async def test_with_the_real_dispatch(rig: Rig) -> None:
    dispatch = Dispatch(self_id=ME, settings=RouterSettings(), rng=random.Random(1), send=lambda _, __: False)
    ending = asyncio.ensure_future(dispatch.run())
    dispatch.follow(ME, 1, ruling=True)
    view = rig.view()
    for node in view.nodes:
        dispatch.node_up(status_of(node.report))
    rig.host.scripts = [says(ALIVE, failed()), says(*PARIS)]
    rig.peer.scripts = [says(failed()), says(*PARIS)]
    for name in ("ask", "taken", "first", "done", "cancel"):
        setattr(rig.dispatch, name, getattr(dispatch, name))
    answer = await rig.client().chat.completions.create(model="standard", messages=ASK)
    assert answer.choices[0].message.content == "Paris"
    (fact,) = rig.facts
    assert sorted(a.node for a in fact.attempts[:2]) == ["mini", "studio"]
    assert [a.outcome for a in fact.attempts] == ["failed", "failed", "ok"]
    assert fact.decision is not None
    assert fact.decision.candidates
    status, body, _ = await send(rig, "/v1/chat/completions", json={"model": "nope", "messages": ASK})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    ending.cancel()


async def test_fallbacks_follow_the_name_asked_for(rig: Rig) -> None:
    rig.models = (ModelReport(name="big", fallback=("chat-1", "small")), *rig.models)
    await send(rig, "/v1/chat/completions", json={"model": "big", "messages": ASK})
    assert rig.dispatch.asked[0].models == ("big", "chat-1", "small")


async def test_a_peer_answers_over_http(rig: Rig) -> None:
    rig.dispatch.place = lambda _: OTHER
    answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert answer.choices[0].message.content == "Paris"
    assert rig.facts[0].node == "mini"
    (call,) = rig.peer.calls
    assert (call.id, call.attempt, call.edge, call.model) == (rig.facts[0].id, 1, ME, "chat-1")
    assert rig.bytes["peer_out"] == rig.bytes["client_in"] == len(call.body)
    assert rig.bytes["peer_in"] == len(b"".join(PARIS))
    await send(rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK, "stream": True})
    assert rig.facts[1].outcome == "ok"


# Failures


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", [NodeErrorCode.MODEL_FAILED, NodeErrorCode.NODE_BUSY, NodeErrorCode.INTERNAL])
async def test_a_failure_before_the_first_byte_is_never_seen(rig: Rig, stream: bool, code: NodeErrorCode) -> None:
    rig.host.scripts = [says(ALIVE, failed(code))]
    status, body, headers = await send(
        rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK, "stream": stream}
    )
    assert status == 200
    assert b"Par" in body if stream else body["choices"][0]["message"]["content"] == "Paris"
    assert (headers["x-mesh-node"], headers["x-mesh-attempts"]) == ("mini", "2")
    outcome = "busy" if code is NodeErrorCode.NODE_BUSY else "failed"
    assert [(a.node, a.outcome) for a in rig.facts[0].attempts] == [("studio", outcome), ("mini", "ok")]
    assert ("ask", 2, outcome) in rig.dispatch.said


async def test_a_peer_that_refuses_or_breaks_is_left(rig: Rig) -> None:
    for script in (says(failed()), says(ALIVE, failed()), says(ALIVE)):
        rig.peer.scripts, rig.peer.calls = [script], []
        rig.dispatch.place = lambda request: ME if OTHER in request.excluded else OTHER
        answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
        assert answer.choices[0].message.content == "Paris"
        assert [a.outcome for a in rig.facts[-1].attempts] == ["failed", "ok"]


async def test_a_peer_that_falls_silent_is_left(rig: Rig) -> None:
    async def silent(_: Call) -> AsyncGenerator[bytes, None]:
        yield ALIVE
        await asyncio.Event().wait()

    rig.peer.scripts = [silent]
    rig.dispatch.place = lambda request: ME if OTHER in request.excluded else OTHER
    answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert answer.choices[0].message.content == "Paris"
    error = rig.facts[0].attempts[0].error
    assert error is not None
    assert "silent" in error
    await until(lambda: rig.peer.open == 0)


async def test_a_whole_answer_that_breaks_in_the_middle_is_run_again(rig: Rig) -> None:
    rig.host.scripts = [says(chunk("Lon"), failed())]
    answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert answer.choices[0].message.content == "Paris"


async def test_a_stream_that_breaks_in_the_middle_ends_with_an_error_event(rig: Rig) -> None:
    rig.host.scripts = [says(chunk("Par"), failed())]
    body = {"model": "chat-1", "messages": ASK, "stream": True}
    status, text, _ = await send(rig, "/v1/chat/completions", json=body)
    assert status == 200
    assert text.startswith(chunk("Par") + b"event: error\n")
    assert b"[DONE]" not in text
    assert json.loads(text.split(b"data: ")[-1])["error"]["code"] == "stream_lost"
    (fact,) = rig.facts
    assert (fact.outcome, fact.status, len(fact.attempts)) == ("failed", 200, 1)
    rig.host.calls.clear()
    stream = await rig.client().chat.completions.create(model="chat-1", messages=ASK, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "Par"
    with pytest.raises(openai.APIError):
        await anext(stream)


async def test_when_everybody_fails_the_client_hears_when_to_come_back(rig: Rig) -> None:
    rig.host.scripts = rig.peer.scripts = [says(failed())]
    status, body, headers = await send(rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK})
    assert (status, body["error"]["code"]) == (503, "model_failed")
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "2000")
    assert headers["x-mesh-attempts"] == str(len(rig.facts[0].attempts)) == "6"
    assert rig.facts[0].outcome == "failed"


async def test_the_engines_refusal_is_the_clients(rig: Rig) -> None:
    rig.host.scripts = [says(NodeError(NodeErrorCode.BAD_REQUEST, "tools are not supported"))]
    with pytest.raises(openai.BadRequestError, match="tools are not supported"):
        await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert len(rig.host.calls) == 1
    assert rig.peer.calls == []
    assert rig.facts[0].outcome == "refused"


async def test_a_saturated_mesh(rig: Rig) -> None:
    rig.dispatch.place = lambda _: Refusal(ErrorCode.MESH_SATURATED, "1024 requests wait", 1.5)
    status, body, headers = await send(rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK})
    assert (status, body["error"]["code"], headers["retry-after-ms"]) == (503, "mesh_saturated", "1500")
    assert rig.facts[0].outcome == "refused"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline(rig: Rig, stream: bool) -> None:
    rig.dispatch.place = lambda _: None
    status, body, _ = await send(
        rig,
        "/v1/chat/completions",
        json={"model": "chat-1", "messages": ASK, "stream": stream},
        headers={"x-mesh-deadline-ms": "60"},
    )
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert ("cancel", 1) in rig.dispatch.said


async def test_a_node_that_dies_is_left_before_its_sockets_say_so() -> None:
    async with rigged(EdgeSettings()) as (rig, edge):

        async def alive(_: Call) -> AsyncGenerator[bytes, None]:
            yield ALIVE
            await asyncio.Event().wait()

        rig.peer.scripts = [alive]
        rig.dispatch.place = lambda request: ME if OTHER in request.excluded else OTHER
        answer = asyncio.ensure_future(rig.client().chat.completions.create(model="chat-1", messages=ASK))
        await until(lambda: rig.peer.open == 1)
        edge.node_lost(OTHER)
        assert (await answer).choices[0].message.content == "Paris"
        await until(lambda: rig.peer.open == 0)


async def test_a_long_wait_is_comforted_and_still_retried() -> None:
    async with rigged(EdgeSettings(head_hold_s=0.03, comfort_every_s=0.03)) as (rig, _):
        gate = asyncio.Event()

        async def slow(call: Call) -> AsyncGenerator[bytes, None]:
            await gate.wait()
            async for block in says(failed())(call):
                yield block

        rig.host.scripts = [slow]
        async with aiohttp.ClientSession() as session:
            body = {"model": "chat-1", "messages": ASK, "stream": True}
            async with session.post(rig.url + "/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert "x-mesh-node" not in response.headers
                assert (await response.content.readline()).startswith(b":")
                gate.set()
                rest = await response.content.read()
        assert rest.endswith(chunk("Par") + chunk("is", "stop") + DONE)
        assert [a.node for a in rig.facts[0].attempts] == ["studio", "mini"]


# Clients that leave, clients that are slow


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", [ME, OTHER])
async def test_a_client_that_leaves_stops_the_node(rig: Rig, stream: bool, where: NodeId) -> None:
    async def endless(_: Call) -> AsyncGenerator[bytes, None]:
        while True:
            yield chunk("x")
            await asyncio.sleep(0.01)

    rig.host.scripts = rig.peer.scripts = [endless]
    rig.dispatch.place = lambda _: where
    node = rig.host if where == ME else rig.peer
    body = {"model": "chat-1", "messages": ASK, "stream": stream}
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

    async def reset(*_: object) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr("router.io.replies.StreamReply.block", reset)
    async with aiohttp.ClientSession() as session:
        body = {"model": "chat-1", "messages": ASK, "stream": True}
        with suppress(aiohttp.ClientError):
            await session.post(f"{rig.url}/v1/chat/completions", json=body)
    await until(lambda: bool(rig.facts))
    assert (rig.facts[0].outcome, rig.host.open) == ("cancelled", 0)
    assert ("done", 1, "cancelled") in rig.dispatch.said


async def test_a_client_that_leaves_while_waiting(rig: Rig) -> None:
    rig.dispatch.place = lambda _: None
    request = asyncio.ensure_future(send(rig, "/v1/chat/completions", json={"model": "chat-1", "messages": ASK}))
    await until(lambda: len(rig.dispatch.asked) == 1)
    request.cancel()
    await until(lambda: len(rig.facts) == 1)
    assert rig.dispatch.said == [("ask", 1, None), ("cancel", 1)]
    assert (rig.facts[0].outcome, rig.facts[0].attempts) == ("cancelled", ())


async def stalled(rig: Rig, headers: dict[str, str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has asked for a stream and reads no more of it than fits into its buffers."""
    body = json.dumps({"model": "chat-1", "messages": ASK, "stream": True}).encode()
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
            await asyncio.sleep(0)

    async with rigged(EdgeSettings(farewell_s=0.2)) as (rig, edge):
        rig.host.scripts = [endless]
        _reader, writer = await stalled(rig, {"x-mesh-deadline-ms": "500"})
        await until(lambda: edge.open_requests == 1)
        await until(lambda: edge.open_requests == rig.connections() == rig.host.open == 0)
        assert (rig.facts[0].outcome, rig.facts[0].status) == ("failed", 200)
        assert (rig.facts[0].error or "").startswith("deadline_exceeded")
        writer.close()


# Bad input


def message(**more: Any) -> dict[str, Any]:
    return {"model": "chat-1", "messages": ASK, **more}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "empty"),
        (b"{broken", None, "not JSON"),
        (b'{"x":' * 100_000, None, "not JSON"),
        (b'["model"]', None, "JSON object"),
        (b'{"messages":[{"role":"user"}]}', "model", "missing"),
        (b'{"model":7,"messages":[{"role":"user"}]}', "model", "`str`"),
        (b'{"model":"","messages":[{"role":"user"}]}', "model", ">= 1"),
        (b'{"model":"chat-1"}', "messages", "missing"),
        (json.dumps(message(messages="hi")).encode(), "messages", "`array`"),
        (json.dumps(message(messages=[])).encode(), "messages", ">= 1"),
        (json.dumps(message(messages=["hi"])).encode(), "messages[0]", "`object`"),
        (json.dumps(message(messages=[{"content": "hi"}])).encode(), "messages[0].role", "missing"),
        (json.dumps(message(stream="yes")).encode(), "stream", "`bool"),
        (json.dumps(message(max_tokens="9")).encode(), "max_tokens", "`int"),
        (json.dumps(message(max_tokens=-1)).encode(), "max_tokens", ">= 0"),
        (json.dumps(message(n=0)).encode(), "n", ">= 1"),
        (json.dumps(message(n=2)).encode(), "n", "more than one choice"),
    ],
)
async def test_bad_bodies(rig: Rig, body: bytes, param: str | None, says: str) -> None:
    status, answer, headers = await send(rig, "/v1/chat/completions", data=body)
    assert status == 400, answer
    error = answer["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", param)
    assert says in error["message"]
    assert "x-request-id" in headers
    assert rig.dispatch.asked == []
    assert [f.outcome for f in rig.facts] == ["refused"]


async def test_completions_want_a_prompt(rig: Rig) -> None:
    status, answer, _ = await send(rig, "/v1/completions", json={"model": "chat-1", "prompt": 7})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    rig.host.scripts = [
        says(b'data: {"id":"t","object":"text_completion","choices":[{"index":0,"text":"hi"}]}\n\n', DONE)
    ]
    answer = await rig.client().completions.create(model="chat-1", prompt="say hi")
    assert answer.choices[0].text == "hi"


async def test_an_unknown_model_names_those_that_exist(rig: Rig) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await rig.client().chat.completions.create(model="chat1", messages=ASK)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "did you mean 'chat-1'" in str(caught.value)
    assert "standard" in str(caught.value)


async def test_a_model_that_is_only_on_a_dead_node(rig: Rig) -> None:
    rig.other_models = (ModelReport(name="far"),)
    rig.other_state = NodeState.DEAD
    status, body, headers = await send(rig, "/v1/chat/completions", json={"model": "far", "messages": ASK})
    assert (status, body["error"]["code"]) == (503, "no_node_available")
    assert "mini (dead)" in body["error"]["message"]
    assert "retry-after" in headers


async def test_bodies_have_limits() -> None:
    async with rigged(EdgeSettings(body_limit_bytes=1000, bodies_limit_bytes=1500)) as (rig, _):
        status, body, _ = await send(rig, "/v1/chat/completions", data=b"x" * 1001)
        assert (status, body["error"]["code"]) == (413, "request_too_large")

        async def parts() -> AsyncGenerator[bytes, None]:
            for _ in range(20):
                yield b"x" * 100

        status, body, _ = await send(rig, "/v1/chat/completions", data=parts())
        assert status == 413
        rig.dispatch.place = lambda _: None
        big = {"model": "chat-1", "messages": [{"role": "user", "content": "x" * 800}]}
        waiting = asyncio.ensure_future(send(rig, "/v1/chat/completions", json=big))
        await until(lambda: len(rig.dispatch.asked) == 1)
        status, body, headers = await send(rig, "/v1/chat/completions", json=big)
        assert (status, body["error"]["code"]) == (503, "mesh_saturated")
        assert "retry-after" in headers
        waiting.cancel()
        await until(lambda: len(rig.facts) == 4)


async def test_open_requests_have_a_limit() -> None:
    async with rigged(EdgeSettings(open_limit=1)) as (rig, _):
        rig.dispatch.place = lambda _: None
        waiting = asyncio.ensure_future(send(rig, "/v1/chat/completions", json=message()))
        await until(lambda: len(rig.dispatch.asked) == 1)
        status, body, headers = await send(rig, "/v1/chat/completions", json=message())
        assert (status, body["error"]["code"]) == (503, "mesh_saturated")
        assert headers["x-request-id"] == rig.facts[0].id
        waiting.cancel()
        await until(lambda: len(rig.facts) == 2)


async def test_a_bad_deadline(rig: Rig) -> None:
    for value in ("soon", "0", "-5", "1.5"):
        status, body, _ = await send(rig, "/v1/chat/completions", json=message(), headers={"x-mesh-deadline-ms": value})
        assert (status, body["error"]["param"]) == (400, "x-mesh-deadline-ms")


async def test_a_bad_word_in_a_header(rig: Rig) -> None:
    for header in ("x-priority", "x-mesh-explain"):
        status, body, _ = await send(rig, "/v1/chat/completions", json=message(), headers={header: "soon"})
        assert (status, body["error"]["param"]) == (400, header)


async def test_the_length_of_prompts_is_learned_from_answers(rig: Rig) -> None:
    long = message(messages=[{"role": "user", "content": "x" * 6_000}])
    rig.host.scripts = [says(chunk("Par", "stop"), b': usage {"prompt":3000,"cached":0,"completion":1}\n\n', DONE)]
    for _ in range(3):
        await send(rig, "/v1/chat/completions", json=long)
    first, *_, last = rig.dispatch.asked
    assert first.prompt_tokens == round(6_016 / 4)
    assert 2_600 < last.prompt_tokens <= 3_010
    assert first.blocks == last.blocks
    assert len(first.blocks) == 6_016 // 256
    assert abs(len(last.blocks) * last.block_tokens - last.prompt_tokens) < 200


async def test_an_engine_that_tells_its_cache_early(rig: Rig) -> None:
    usage = b'{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}'
    early = b'data: {"choices":[{"index":0,"delta":{}}],"usage":' + usage + b"}\n\n"
    rig.host.scripts = [says(early, *PARIS)]
    await send(rig, "/v1/chat/completions", json=message())
    assert ("first", 1, 4) in rig.dispatch.said


@pytest.mark.parametrize("stream", [False, True])
async def test_the_decision_is_told_to_who_asks(rig: Rig, stream: bool) -> None:
    body = message(stream=stream)
    _, _, headers = await send(rig, "/v1/chat/completions", json=body, headers={"x-mesh-explain": "1"})
    assert json.loads(headers["x-mesh-decision"])["chosen"] == "studio"
    _, _, headers = await send(rig, "/v1/chat/completions", json=body)
    assert "x-mesh-decision" not in headers


async def test_the_decision_follows_a_head_that_went_out_before_it() -> None:
    async def slow(_: Call) -> AsyncGenerator[bytes, None]:
        await until(lambda: bool(comforted))
        yield chunk("Paris", "stop")
        yield DONE

    comforted: list[bytes] = []
    async with rigged(EdgeSettings(head_hold_s=0.05, comfort_every_s=0.05)) as (rig, _):
        rig.host.scripts = [slow]
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{rig.url}/v1/chat/completions", json=message(stream=True), headers={"x-mesh-explain": "1"}
            ) as response,
        ):
            assert "x-mesh-decision" not in response.headers
            comforted.append(await response.content.readuntil(b"\n\n"))
            blocks = (await response.content.read()).split(b"\n\n")
    told = [n for n, block in enumerate(blocks) if block.startswith(b": x-mesh-decision ")]
    assert len(told) == 1
    assert json.loads(blocks[told[0]].removeprefix(b": x-mesh-decision "))["chosen"] == "studio"
    assert blocks[told[0] + 1].startswith(b"data: {")


# Other endpoints


async def test_embeddings_go_to_the_node_whose_model_serves_them(rig: Rig) -> None:
    rig.other_models = (ModelReport(name="chat-1", paths=("embeddings",)),)
    rig.peer.post_answer = (200, "application/json", b'{"object":"list","data":[]}')
    status, body, headers = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body) == (200, {"object": "list", "data": []})
    assert headers["x-mesh-node"] == "mini"
    assert rig.dispatch.asked[0].excluded == (ME,)
    rig.peer.post_answer = (400, "application/json", b'{"detail":"bad input"}')
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": 7})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert rig.facts[-1].outcome == "refused"
    rig.peer.post_answer = (500, "text/plain", b"oops")
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body["error"]["code"]) == (503, "model_failed")


async def test_a_path_nobody_serves_names_who_would(rig: Rig) -> None:
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body["error"]["code"]) == (404, "path_not_found")
    rig.models = (*rig.models, ModelReport(name="bert", paths=("/v1/embeddings",)))
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert "bert" in body["error"]["message"]


async def test_the_model_of_a_form(rig: Rig) -> None:
    rig.models = (ModelReport(name="whisper", paths=("audio/*",)),)
    rig.other_models = ()
    form = aiohttp.FormData()
    form.add_field("file", b"\x00--\r\n\r\nRIFF" * 1000, filename="a.wav", content_type="audio/wav")
    form.add_field("model", "whisper")
    rig.host.post_answer = (200, "text/plain", b"hello")
    status, body, headers = await send(rig, "/v1/audio/transcriptions", data=form)
    assert (status, body) == (200, b"hello")
    assert headers["content-type"] == "text/plain"
    assert rig.host.calls[0].content_type.startswith("multipart/form-data")
    form = aiohttp.FormData()
    form.add_field("file", b"RIFF", filename="a.wav")
    status, body, _ = await send(rig, "/v1/audio/transcriptions", data=form)
    assert (status, body["error"]["param"]) == (400, "model")


async def test_a_path_of_a_tier_is_known(rig: Rig) -> None:
    status, body, _ = await send(rig, "/v1/special/thing", json={"model": "chat-1"})
    assert (status, body["error"]["code"]) == (404, "path_not_found")
    rig.models = (ModelReport(name="chat-1", paths=("special/thing",)),)
    status, body, _ = await send(rig, "/v1/special/thing", json={"model": "chat-1"})
    assert (status, body) == (200, {"data": []})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "path_not_found"),
        ("GET", "/v1/nothing", 404, "path_not_found"),
        ("POST", "/v1", 404, "path_not_found"),
        ("POST", "/v1/audio/a%0D%0Ab", 404, "path_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/chat-1", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
async def test_wrong_paths_and_methods(rig: Rig, method: str, path: str, status: int, code: str) -> None:
    got, body, headers = await send(rig, path, method)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in headers) == (status == 405)
    assert rig.facts == []


# What can be read


async def test_the_models_are_a_union(rig: Rig) -> None:
    rig.other_models = (
        ModelReport(name="chat-1", aliases=("standard",), state=ModelState.FAILED),
        ModelReport(name="org/large", state=ModelState.LOADING),
    )
    page = await rig.client().models.list()
    assert [m.id for m in page.data] == ["chat-1", "org/large", "standard"]
    assert page.data[0].mesh == {"nodes": ["mini", "studio"], "state": "ready"}  # type: ignore[attr-defined]
    one = await rig.client().models.retrieve("org/large")
    assert one.mesh == {"nodes": ["mini"], "state": "loading"}  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError, match="hese exist"):
        await rig.client().models.retrieve("none")
    rig.other_state = NodeState.DEAD
    assert len((await rig.client().models.list()).data) == 2


async def test_ready_says_why_not(rig: Rig) -> None:
    assert (await send(rig, "/ready", "GET"))[:2] == (200, {"ready": True, "reason": None})
    rig.models = (ModelReport(name="chat-1", state=ModelState.LOADING),)
    rig.other_models = ()
    assert (await send(rig, "/ready", "GET"))[:2] == (503, {"ready": False, "reason": "models are being loaded"})
    rig.models = ()
    assert (await send(rig, "/ready", "GET"))[1]["reason"] == "no node of this mesh has a model"
    rig.coordinator = None
    assert (await send(rig, "/ready", "GET"))[1]["reason"] == "no coordinator is known"
    rig.draining = True
    assert "draining" in (await send(rig, "/ready", "GET"))[1]["reason"]


async def test_health_metrics_and_who_we_are(rig: Rig) -> None:
    assert (await send(rig, "/health", "GET"))[:2] == (200, {"status": "ok"})
    status, body, headers = await send(rig, "/metrics", "GET")
    assert (status, body) == (200, b"# none\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    status, body, _ = await send(rig, "/.well-known/mlx-stack", "GET")
    assert status == 200
    assert body == {
        "id": ME,
        "name": "studio",
        "mesh": "default",
        "mesh_id": "mesh-id",
        "version": "0.1",
        "protocol": 1,
        "peer_port": rig.peer_port,
    }


async def test_draining_refuses_what_is_new_and_waits_for_what_is_open() -> None:
    async with rigged(FAST) as (rig, edge):
        gate = asyncio.Event()

        async def slow(_: Call) -> AsyncGenerator[bytes, None]:
            await gate.wait()
            for block in PARIS:
                yield block

        rig.host.scripts = [slow]
        first = asyncio.ensure_future(send(rig, "/v1/chat/completions", json=message()))
        await until(lambda: edge.open_requests == 1 and rig.host.open == 1)
        drained = asyncio.ensure_future(edge.drain(10.0))
        await asyncio.sleep(0)
        status, body, headers = await send(rig, "/v1/chat/completions", json=message())
        assert (status, body["error"]["code"]) == (503, "no_node_available")
        assert (headers["retry-after-ms"], headers["connection"]) == ("300", "close")  # elsewhere, and soon
        assert [f.outcome for f in rig.facts] == ["refused"]
        assert (await send(rig, "/ready", "GET"))[0] == 503
        assert not drained.done()
        gate.set()
        status, _, headers = await first
        assert (status, headers["connection"]) == (200, "close")
        await drained
        assert edge.open_requests == 0


async def test_a_defect_of_ours_is_an_envelope_and_reported(rig: Rig) -> None:
    def broken(_: Request) -> None:
        raise ValueError("a defect")

    rig.dispatch.place = broken
    status, body, _ = await send(rig, "/v1/chat/completions", json=message())
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert [f.outcome for f in rig.facts] == ["failed"]
