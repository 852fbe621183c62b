"""The OpenAI API of a mesh, asked by the official client; real mlx_lm.server behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest

from tests.server.daemons import Node, metric, wait_for

pytestmark = pytest.mark.server

TOKENS = "mlx_mesh_worker_tokens_total"
HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather_of_a_town",
            "description": "Current weather",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    }
]


@pytest.fixture
def ada(trio: tuple[Node, Node, Node]) -> Node:
    """The coordinator; only `quick` is its own."""
    return trio[0]


@pytest.fixture
def client(ada: Node) -> Iterator[openai.OpenAI]:
    with ada.openai() as made:
        yield made


def still(node: Node, model: str) -> float:
    """The worker's token counter, once it has not moved while nothing is in flight there."""
    seen: list[float] = []

    def unmoved() -> bool:
        seen.append(metric(node, TOKENS, model=model))
        return len(seen) > 3 and len(set(seen[-4:])) == 1

    wait_for(f"{model} on {node.name} stands still", unmoved, every_s=0.5)
    return seen[-1]


def test_the_capital_of_france(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="chat", messages=question, temperature=0, max_tokens=30)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == "SmolLM2-135M-Instruct"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 10


def test_streamed_and_plain_say_the_same(client: openai.OpenAI) -> None:
    options: Any = {"model": "quick", "messages": HELLO, "temperature": 0, "max_tokens": 40}
    plain = client.chat.completions.create(**options).choices[0]
    with client.chat.completions.create(stream=True, **options) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == plain.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [plain.finish_reason]
    assert {c.model for c in chunks} == {"tiny-a"}
    assert len({c.id for c in chunks}) == 1


def test_completions_streamed_and_plain(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny-a", "prompt": "a b c", "temperature": 0, "max_tokens": 12}
    plain = client.completions.create(**options)
    with client.completions.create(stream=True, **options) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == plain.choices[0].text != ""
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 12


def test_tools_reach_the_model_server(client: openai.OpenAI) -> None:
    """SmolLM2's chat template has no place for tools, so what shows is that a tool changes nothing but the prompt: the
    request is taken, with `tool_choice`, tool messages and calls of an earlier turn, and the answer is well-formed."""
    turn: Any = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather_of_a_town", "arguments": '{"town": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(
        model="quick", messages=turn, tools=WEATHER, tool_choice="auto", max_tokens=8
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_stream_has_usage_only_when_asked(client: openai.OpenAI, asked: bool | None) -> None:
    more: Any = {} if asked is None else {"stream_options": {"include_usage": asked}}
    with client.chat.completions.create(model="quick", messages=HELLO, max_tokens=5, stream=True, **more) as stream:
        chunks = list(stream)
    usages = [c.usage for c in chunks if c.usage is not None]
    assert len(usages) == (1 if asked else 0)
    if asked:
        assert chunks[-1].usage is usages[0]
        assert chunks[-1].choices == []
        assert usages[0].completion_tokens == 5
        assert usages[0].total_tokens == usages[0].prompt_tokens + 5
    assert all(c.choices for c in chunks if c.usage is None)


def test_a_plain_answer_always_has_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="quick", messages=HELLO, max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens > 5


def test_unknown_fields_and_nulls_do_no_harm(client: openai.OpenAI) -> None:
    more: Any = {"a_field_of_next_year": {"x": [1]}, "user": "me", "store": True, "metadata": {"a": "b"}}
    nulls: Any = {"stop": None, "logit_bias": None, "top_p": None, "seed": None, "stream_options": None}
    answer = client.chat.completions.create(
        model="quick", messages=HELLO, max_tokens=4, extra_body=more | nulls, parallel_tool_calls=False
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_temperature_stop_and_max_tokens_are_honoured(client: openai.OpenAI) -> None:
    def say(**more: Any) -> Any:
        return client.completions.create(model="quick", prompt="a b c", max_tokens=30, **more).choices[0]

    cold = say(temperature=0)
    assert cold.text == say(temperature=0).text
    assert cold.finish_reason == "length"
    assert len({say(temperature=1.5).text for _ in range(3)}) == 3
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    stopped = client.chat.completions.create(model="chat", messages=question, temperature=0, stop=" Paris")
    assert stopped.choices[0].message.content == "The capital of France is"
    assert stopped.choices[0].finish_reason == "stop"


def test_more_than_one_choice_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n") as refused:
        client.chat.completions.create(model="quick", messages=HELLO, n=2)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")


def test_headers_say_who_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=HELLO, max_tokens=2, extra_headers={"x-request-id": "mine-1"}
    )
    head = raw.headers
    assert (head["x-mesh-node"], head["x-mesh-model"]) == ("bob", "SmolLM2-135M-Instruct")
    assert head["x-mesh-attempts"] == "1"
    assert int(head["x-mesh-queue-ms"]) >= 0
    assert head["x-request-id"].startswith("req-")
    streamed = client.chat.completions.with_raw_response.create(
        model="quick", messages=HELLO, max_tokens=2, stream=True
    )
    assert {"x-request-id", "x-mesh-node", "x-mesh-model", "x-mesh-attempts", "x-mesh-queue-ms"} <= set(
        streamed.headers
    )
    list(streamed.parse())


def test_models_are_the_union_of_the_mesh(trio: tuple[Node, Node, Node]) -> None:
    for node in trio:
        with node.openai() as client:
            found = {m.id: m.model_dump()["mesh"] for m in client.models.list()}
            assert set(found) == {"tiny-a", "quick", "tiny-30-layers", "slow", "SmolLM2-135M-Instruct", "chat"}
            assert sorted(found["quick"]["nodes"]) == ["ada", "cyd"]
            assert found["chat"]["nodes"] == ["bob"]
            assert client.models.retrieve("slow").model_dump()["mesh"]["state"] in ("ready", "busy")


def test_an_unknown_model_is_answered_with_what_exists(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert refused.value.code == "model_not_found"
    for name in ("gpt-4o", "tiny-a", "SmolLM2-135M-Instruct"):
        assert name in refused.value.message
    with pytest.raises(openai.NotFoundError, match="gpt-4o") as missing:
        client.models.retrieve("gpt-4o")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": "quick"', 400, "JSON"),
        (b"[]", 400, "object"),
        (b"", 400, ""),
        (b'{"messages": [{"role": "user", "content": "x"}]}', 400, "model"),
        (b'{"model": "quick", "messages": []}', 400, "messages"),
        (b'{"model": 3, "messages": []}', 400, "model"),
        (b'{"model": "quick"}', 400, "messages"),
        (b'{"model": "quick", "messages": "hello"}', 400, "messages"),
        (b'{"model": "quick", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}', 400, "stream"),
        (b'{"model": "quick", "messages": [{"role": "user", "content": "x"}], "max_tokens": "9"}', 400, "max_tokens"),
        (b'{"model": "quick", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}', 400, "max_tokens"),
        (b'{"model": "quick", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', 400, "temper"),
        (b'{"model": "quick", "messages": [{"role": "user", "content": "\xff"}]}', 400, ""),
        (b'{"model": "quick", "prompt": "' + b"x" * (33 << 20) + b'"}', 413, "32"),
    ],
    ids=lambda value: value[:70].decode("latin-1") if isinstance(value, bytes) else str(value),
)
async def test_bad_requests_say_what_is_wrong(ada: Node, body: bytes, status: int, said: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{ada.url}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
        ) as answer,
    ):
        error = (await answer.json())["error"]
        assert answer.status == status, error
        assert set(error) == {"message", "type", "param", "code"}
        assert said in error["message"] or said == error["param"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize("edge", [0, 1], ids=["through the coordinator", "at the node itself"])
async def test_a_client_that_leaves_stops_the_worker(trio: tuple[Node, Node, Node], stream: bool, edge: int) -> None:
    _, bob, cyd = trio
    holders = (bob, cyd)
    before = {n.name: still(n, "tiny-30-layers") for n in holders}
    body = {"model": "slow", "prompt": "a", "max_tokens": 8000, "stream": stream}

    async def ask() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{trio[edge].url}/v1/completions", json=body) as answer,
        ):
            await answer.read()

    def generated() -> float:
        return max(metric(n, TOKENS, model="tiny-30-layers") - before[n.name] for n in holders)

    asking = asyncio.ensure_future(ask())
    await asyncio.to_thread(wait_for, "it generates", lambda: generated() > 5)
    assert not asking.done()
    asking.cancel()
    await asyncio.wait({asking})
    for one in holders:
        await asyncio.to_thread(still, one, "tiny-30-layers")
    assert generated() < 4000
    for one in trio:
        await asyncio.to_thread(
            wait_for, "nothing in flight", lambda one=one: one.client.mesh_status().mesh.in_flight == 0
        )


async def test_a_deadline_ends_a_request(ada: Node) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        async with ada.async_openai() as client:
            await client.completions.create(
                model="slow", prompt="a", max_tokens=8000, extra_headers={"x-mesh-deadline-ms": "1500"}
            )
    assert refused.value.status_code == 504
    assert refused.value.code == "deadline_exceeded"


async def test_the_other_doors(ada: Node) -> None:
    async with aiohttp.ClientSession(ada.url) as session:
        async with session.get("/health") as answer:
            assert answer.status == 200
        async with session.get("/ready") as answer:
            assert (answer.status, (await answer.json())["ready"]) == (200, True)
        async with session.get("/.well-known/mlx-stack") as answer:
            told = await answer.json()
            assert told["name"] == "ada"
            assert told["peer_port"] == ada.peer_port
            assert set(told) == {"id", "name", "mesh", "mesh_id", "version", "protocol", "peer_port"}
        async with session.get("/metrics") as answer:
            assert "mlx_mesh_worker_tokens_total" in await answer.text()
        async with session.get("/v1/nothing") as answer:
            assert answer.status == 404
            assert json.loads(await answer.text())["error"]["message"]
        async with session.get("/v1/chat/completions") as answer:
            assert answer.status == 405
        for path in ("/v1/models/tiny-a/load", "/v1/stop", "/v1/reload"):
            async with session.post(path, json={}) as answer:
                assert answer.status in (404, 405), "nothing changes through :4000"
