"""Nodes that fail, are full, fall silent or die, and time that runs out: what the client sees of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator

import aiohttp
import openai
import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.types import status_of
from router.errors import ErrorCode, Refusal
from router.events import Request
from router.io.dispatch import Dispatch
from router.settings import EdgeSettings, RouterSettings
from tests.mesh.waiting import until
from tests.router.fakes import ALIVE, ASK, DONE, ME, OTHER, PARIS, Rig, chunk, failed, message, rigged, says, send


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
    status, body, _ = await send(rig, "/v1/chat/completions", json=message(model="nope"))
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    ending.cancel()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", [NodeErrorCode.MODEL_FAILED, NodeErrorCode.NODE_BUSY, NodeErrorCode.INTERNAL])
async def test_a_failure_before_the_first_byte_is_never_seen(rig: Rig, stream: bool, code: NodeErrorCode) -> None:
    rig.host.scripts = [says(ALIVE, failed(code))]
    status, body, headers = await send(rig, "/v1/chat/completions", json=message(stream=stream))
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
    body = message(stream=True)
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
    status, body, headers = await send(rig, "/v1/chat/completions", json=message())
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
    status, body, headers = await send(rig, "/v1/chat/completions", json=message())
    assert (status, body["error"]["code"], headers["retry-after-ms"]) == (503, "mesh_saturated", "1500")
    assert rig.facts[0].outcome == "refused"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline(rig: Rig, stream: bool) -> None:
    rig.dispatch.place = lambda _: None
    status, body, _ = await send(
        rig,
        "/v1/chat/completions",
        json=message(stream=stream),
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
            body = message(stream=True)
            async with session.post(rig.url + "/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert "x-mesh-node" not in response.headers
                assert (await response.content.readline()).startswith(b":")
                gate.set()
                rest = await response.content.read()
        assert rest.endswith(chunk("Par") + chunk("is", "stop") + DONE)
        assert [a.node for a in rig.facts[0].attempts] == ["studio", "mini"]


async def test_a_defect_of_ours_is_an_envelope_and_reported(rig: Rig) -> None:
    def broken(_: Request) -> None:
        raise ValueError("a defect")

    rig.dispatch.place = broken
    status, body, _ = await send(rig, "/v1/chat/completions", json=message())
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert [f.outcome for f in rig.facts] == ["failed"]
