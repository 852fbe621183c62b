"""What a client gets when all goes well, and what the node and the coordinator are told of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest

from node.io.calls import Call
from node.types import ModelReport
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.router.fakes import (
    ALIVE,
    ASK,
    DONE,
    ME,
    OTHER,
    PARIS,
    USAGE,
    USAGE_CHUNK,
    Rig,
    chunk,
    message,
    rigged,
    says,
    send,
)


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
    status, body, headers = await send(rig, "/v1/chat/completions", json=message(stream=True))
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
    [called] = answer.choices[0].message.tool_calls
    assert called.type == "function"
    assert (called.function.name, called.function.arguments) == ("weather", "{}")


async def test_what_the_client_says_reaches_the_coordinator(rig: Rig) -> None:
    headers = {
        "x-request-id": "mine-1",
        "x-priority": "low",
        "x-mesh-deadline-ms": "5000",
        "authorization": "Bearer sk-secret",
    }
    body = message(max_tokens=9, max_completion_tokens=11)
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


async def test_fallbacks_follow_the_name_asked_for(rig: Rig) -> None:
    rig.models = (ModelReport(name="big", fallback=("chat-1", "small")), *rig.models)
    await send(rig, "/v1/chat/completions", json=message(model="big"))
    assert rig.dispatch.asked[0].models == ("big", "chat-1", "small")


async def test_a_peer_answers_over_http(rig: Rig) -> None:
    rig.dispatch.place = lambda _: OTHER
    answer = await rig.client().chat.completions.create(model="chat-1", messages=ASK)
    assert answer.choices[0].message.content == "Paris"
    assert rig.facts[0].node == "mini"
    (call,) = rig.peer.calls
    assert (call.id, call.attempt, call.edge, call.model) == (rig.facts[0].id, 1, ME, "chat-1")
    assert rig.bytes["peer_out"] == rig.bytes["client_in"] == len(call.body)
    assert rig.bytes["peer_in"] == len(ALIVE + b"".join(PARIS))  # the door says that it was admitted
    await send(rig, "/v1/chat/completions", json=message(stream=True))
    assert rig.facts[1].outcome == "ok"


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
