"""What the edge refuses before anything runs: bad input, unknown models, bounds that are reached, its own end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import openai
import pytest

from node.io.calls import Call
from node.types import ModelReport, ModelState
from router.errors import ErrorCode, Refusal
from router.settings import EdgeSettings
from router.view import NodeState
from tests.mesh.waiting import until
from tests.router.fakes import ASK, DONE, FAST, OTHER, PARIS, Rig, message, rigged, says, send


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "empty"),
        (b"{broken", None, "not JSON"),
        (b'{"x":' * 100_000, None, "nests more than"),
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


async def test_a_model_whose_nodes_all_died_a_moment_ago_is_held_until_one_is_back() -> None:
    async with rigged(FAST) as (rig, edge):
        rig.models, rig.other_models = (), (ModelReport(name="far", state=ModelState.READY),)
        rig.peer.scripts = [says(*PARIS)]
        gone = Refusal(ErrorCode.NO_NODE_AVAILABLE, "no node can serve 'far' now: mini held it and is gone")
        rig.dispatch.place = lambda _: gone if rig.other_state is NodeState.DEAD else OTHER
        rig.other_state = NodeState.DEAD
        edge.node_lost(OTHER)
        asked = asyncio.create_task(send(rig, "/v1/chat/completions", json=message(model="far")))
        await until(lambda: len(rig.dispatch.asked) >= 2)
        rig.other_state = NodeState.OK
        status, body, _ = await asked
    assert status == 200, body
    assert [f.outcome for f in rig.facts] == ["ok"]


async def test_a_model_whose_nodes_stay_away_is_refused_after_some_rounds_with_what_was_waited_for() -> None:
    async with rigged(FAST) as (rig, edge):
        rig.models, rig.other_models = (), (ModelReport(name="far"),)
        rig.other_state = NodeState.DEAD
        rig.dispatch.place = lambda _: Refusal(ErrorCode.MODEL_NOT_FOUND, "no model is called 'far'")
        edge.node_lost(OTHER)
        status, body, headers = await send(rig, "/v1/chat/completions", json=message(model="far"))
        assert len(rig.dispatch.asked) == FAST.rounds
    assert (status, body["error"]["code"]) == (503, "no_node_available")
    assert "mini (dead)" in body["error"]["message"]
    assert "for a node that has it to come back" in body["error"]["message"]
    assert "retry-after" in headers
    assert rig.facts[0].decision is not None


async def test_a_model_that_is_only_on_a_dead_node(rig: Rig) -> None:
    rig.other_models = (ModelReport(name="far"),)
    rig.other_state = NodeState.DEAD
    status, body, headers = await send(rig, "/v1/chat/completions", json=message(model="far"))
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
        await asyncio.sleep(0)  # one turn of the loop: it has begun
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


async def test_a_body_that_comes_once_the_node_leaves_is_refused_as_new_ones_are() -> None:
    """The node may have left its mesh by then: it would know of no model."""
    async with rigged(FAST) as (rig, edge):
        body = json.dumps(message()).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        await until(lambda: edge.open_requests == 1)
        drained = asyncio.ensure_future(edge.drain(10.0))
        await asyncio.sleep(0)  # one turn of the loop: it has begun
        writer.write(body)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"this node is stopping" in answer
        writer.close()
        await drained
