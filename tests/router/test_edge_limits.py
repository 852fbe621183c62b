"""Every limit of a request at the edge: what its client hears, and that it is counted by name."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from msgspec import structs

from node.io.calls import Call
from router.errors import ErrorCode, Refusal
from tests.mesh.waiting import until
from tests.router.fakes import FAST, PARIS, Rig, message, rigged, says, send

PATH = "/v1/chat/completions"
EMBED = "/v1/embeddings"


def deep(levels: int, kind: str = "[") -> str:
    return "[" * levels + "]" * levels if kind == "[" else '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("levels", [128, 900, 100_000, 4_000_000])
@pytest.mark.parametrize("field", ["tools", "unknown", "messages", "response_format"])
@pytest.mark.parametrize("path", [PATH, EMBED])
async def test_json_that_nests_too_deep_is_refused_and_reaches_no_node(path: str, field: str, levels: int) -> None:
    """Each reader recurses to a bound of its own: what passes one would be the next one's failure, tried again on every
    node there is."""
    async with rigged(FAST) as (rig, _):
        body = json.dumps(message())[:-1] + f',"{field}":{deep(levels, "[" if field == "messages" else "{")}}}'
        status, answer, _ = await send(rig, path, data=body)
        assert status == 400
        assert answer["error"] == {
            "message": "the body nests more than 128 levels deep",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_request",
        }
        assert (rig.host.calls, rig.dispatch.asked) == ([], [])
        assert rig.limited == {"json_depth": 1}


async def test_json_as_deep_as_it_may_be_passes(rig: Rig) -> None:
    body = json.dumps(message())[:-1] + f',"tools":[{deep(126, "{")}]}}'
    status, _, _ = await send(rig, PATH, data=body)
    assert status == 200
    assert rig.host.calls[0].body == body.encode()


async def test_brackets_in_text_are_no_levels(rig: Rig) -> None:
    status, _, _ = await send(rig, PATH, json=message(user="[" * 1000 + '"\\' * 100 + "{" * 1000))
    assert status == 200


async def test_others_are_answered_while_a_long_body_is_looked_through(rig: Rig) -> None:
    """25 MB of what is slowest to look through."""
    long = b'{"model":"chat-1","messages":[{"role":"user","content":"hi"}],"x":[' + b'["\\\\",{}],' * 2_500_000 + b"]"
    slow = asyncio.ensure_future(send(rig, PATH, data=long))
    slowest = 0.0
    while not slow.done():
        began = time.perf_counter()
        assert (await send(rig, PATH, json=message()))[0] == 200
        slowest = max(slowest, time.perf_counter() - began)
    assert (await slow)[0] == 400
    assert slowest < 5.0


async def test_one_address_too_many_open_requests_hears_429_and_may_come_again() -> None:
    gate = asyncio.Event()

    async def waits(call: Call) -> Any:
        await gate.wait()
        for block in PARIS:
            yield block

    settings = structs.replace(FAST, open_loopback_limit=3)
    async with rigged(settings) as (rig, edge):
        rig.host.scripts = [waits]
        open_ = [asyncio.ensure_future(send(rig, PATH, json=message())) for _ in range(3)]
        await until(lambda: edge.open_requests == 3)
        status, answer, headers = await send(rig, PATH, json=message())
        assert (status, answer["error"]["code"]) == (429, "rate_limited")
        assert (
            answer["error"]["message"] == "3 requests from your address are open here already (`requests-per-address`)"
        )
        assert int(headers["retry-after"]) >= 1
        assert rig.limited == {"address_streams": 1}
        gate.set()
        assert [status for status, _, _ in await asyncio.gather(*open_)] == [200] * 3
        assert (await send(rig, PATH, json=message()))[0] == 200


async def test_all_open_requests_have_a_bound_and_the_last_places_are_for_who_holds_few() -> None:
    gate = asyncio.Event()

    async def waits(call: Call) -> Any:
        await gate.wait()
        for block in PARIS:
            yield block

    settings = structs.replace(FAST, open_limit=40)
    async with rigged(settings) as (rig, edge):
        rig.host.scripts = [waits]
        open_ = [asyncio.ensure_future(send(rig, PATH, json=message())) for _ in range(30)]
        await until(lambda: edge.open_requests == 30)
        status, answer, _ = await send(rig, PATH, json=message())
        assert (status, answer["error"]["code"]) == (503, "mesh_saturated")
        assert edge._crowd.full("192.168.1.9") is None
        assert rig.limited == {"streams": 1}
        gate.set()
        await asyncio.gather(*open_)


async def test_a_full_queue_is_counted() -> None:
    async with rigged(FAST) as (rig, _):
        rig.dispatch.place = lambda _: Refusal(ErrorCode.MESH_SATURATED, "1024 requests wait already")
        status, answer, headers = await send(rig, PATH, json=message())
        assert (status, answer["error"]["code"]) == (503, "mesh_saturated")
        assert "retry-after" in headers
        assert rig.limited == {"queue": 1}


async def asks_slowly(rig: Rig, first: bytes, then: bytes, every_s: float) -> bytes:
    """A head that promises a large body, some of it, then a little every now and then; what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + first)
    answer = asyncio.ensure_future(reader.readuntil(b"}}"))
    async with asyncio.timeout(30):
        while not answer.done():
            await asyncio.wait({answer}, timeout=every_s)
            if not answer.done():
                writer.write(then)
    writer.close()
    return await answer


async def test_a_body_that_comes_too_slowly_is_refused_however_long_it_may_take_in_all() -> None:
    settings = structs.replace(FAST, body_timeout_s=600.0, body_grace_s=0.2, body_bytes_per_s=100_000)
    async with rigged(settings) as (rig, _):
        answer = await asks_slowly(rig, b" " * 10_000, b" ", 0.02)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"less than 100000 bytes a second" in answer
        assert rig.limited == {"slow_sender": 1}


async def test_a_body_may_pause_as_long_as_what_has_come_lasts() -> None:
    """Longer in all than the grace; each piece has a second in hand, so that a busy machine is not cut off."""
    settings = structs.replace(FAST, body_grace_s=2.0, body_bytes_per_s=5)
    async with rigged(settings) as (rig, _):
        body = json.dumps(message()).encode()

        async def with_pauses() -> Any:
            for at in range(0, len(body), 10):
                yield body[at : at + 10]
                await asyncio.sleep(25 / len(body))  # the subject: two and a half seconds in all

        status, _, _ = await send(rig, PATH, data=with_pauses())
        assert status == 200


@pytest.mark.parametrize(
    ("bounds", "status", "code", "limit"),
    [
        ({"body_limit_bytes": 1000}, 413, "request_too_large", "body_bytes"),
        ({"bodies_limit_bytes": 1000}, 503, "mesh_saturated", "bodies_bytes"),
    ],
)
async def test_bodies_that_are_too_large_are_counted(
    bounds: dict[str, int], status: int, code: str, limit: str
) -> None:
    async with rigged(structs.replace(FAST, **bounds)) as (rig, _):
        found, answer, _ = await send(rig, PATH, json=message(user="x" * 2000))
        assert (found, answer["error"]["code"]) == (status, code)
        assert rig.limited == {limit: 1}
        rig.host.scripts = [says(*PARIS)]
        assert (await send(rig, PATH, json=message()))[0] == 200
