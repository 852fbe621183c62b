"""The edge behind its raw front: what is carried and what is aiohttp's, on one connection and with strange clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp
import pytest

from node.io.calls import Call
from node.types import ModelReport
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.node.smuggling import BODIES, HEADS
from tests.router.fakes import ASK, FAST, PARIS, Rig, chunk, message, rigged, send

PATH = "/v1/chat/completions"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged(FAST) as (rig, _):
        yield rig


def request(body: bytes = b"", method: str = "POST", path: str = PATH, **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    length = f"content-length: {len(body)}\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{length}{lines}\r\n".encode() + body


async def says(rig: Rig, text: bytes) -> bytes:
    """All that comes back until the edge closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
    async with asyncio.timeout(60):
        writer.write(text)
        answer = await reader.read()
    writer.close()
    return answer


def envelope_of(answer: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_one_client_mixes_what_is_carried_and_what_is_handed_over(rig: Rig) -> None:
    """With aiohttp's client, one connection at a time, which it keeps as long as it may."""
    order = random.Random(7)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(1000):
            match order.randrange(4):
                case 0:
                    async with session.get(rig.url + "/v1/models") as answer:
                        assert (answer.status, answer.headers["connection"]) == (200, "close")
                        assert (await answer.json())["object"] == "list"
                case 1:
                    async with session.get(rig.url + PATH) as answer:
                        assert answer.status == 405
                case 2:
                    async with session.post(rig.url + PATH, json=message(stream=True)) as answer:
                        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
                case _:
                    async with session.post(rig.url + PATH, json=message()) as answer:
                        assert (await answer.json())["choices"][0]["message"]["content"] == "Paris"
    await until(lambda: rig.connections() == 0)
    assert {fact.outcome for fact in rig.facts} == {"ok"}


async def test_the_official_client_mixes_them_too(rig: Rig) -> None:
    client = rig.client()
    for _ in range(25):
        assert (await client.chat.completions.create(model="chat-1", messages=ASK)).choices[
            0
        ].message.content == "Paris"
        assert (await client.models.list()).data
        stream = await client.chat.completions.create(model="chat-1", messages=ASK, stream=True)
        assert "".join([part.choices[0].delta.content or "" async for part in stream]) == "Paris"
    await client.close()


async def test_carried_requests_sent_ahead_of_one_that_is_handed_over(rig: Rig) -> None:
    body = json.dumps(message()).encode()
    answer = await says(rig, request(body) * 3 + request(method="GET", path="/health") + request(body))
    assert answer.count(b'"Paris"') == 3
    assert answer.endswith(b'{"status":"ok"}'), "nothing follows the answer that says close"
    assert len(rig.facts) == 3


@pytest.mark.parametrize("kind", ["heads", "bodies"])
async def test_what_can_be_read_in_two_ways_never_reaches_a_node(rig: Rig, kind: str) -> None:
    for name, text in (HEADS if kind == "heads" else BODIES).items():
        answer = await says(rig, text)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), name
        assert b"\r\nconnection: close\r\n" in answer, name
        assert envelope_of(answer)["code"] == "invalid_request", name
        assert answer.count(b"HTTP/1.1") == 1, name
    assert rig.dispatch.asked == []
    assert [fact.outcome for fact in rig.facts] == ([] if kind == "heads" else ["refused"] * len(BODIES))


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (request(path="/" + "a" * 8192), 414, "request_too_large"),
        (request(x="a" * 32768), 431, "request_too_large"),
        (b"POST / HTTP/1.1\r\nhost: x\r\n" + b"x: 1\r\n" * 100 + b"\r\n", 431, "request_too_large"),
        (request(expect="wonders"), 417, "invalid_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "invalid_request"),
    ],
)
async def test_every_bound_of_a_head_is_an_envelope(rig: Rig, text: bytes, status: int, code: str) -> None:
    answer = await says(rig, text)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert envelope_of(answer)["code"] == code


async def test_an_upgrade_of_a_carried_request_is_let_go(rig: Rig) -> None:
    """Java's client offers h2c with each first request; who does not know it answers in HTTP/1.1 (RFC 9110, 7.8)."""
    body = json.dumps(message()).encode()
    fields = {"upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"}
    first = request(body, connection="Upgrade, HTTP2-Settings", **fields)
    answer = await says(rig, first + request(body, connection="close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("path", ["/v1/chat%2Fcompletions", "/v1/chat/completions?a=b", "http://x/v1/chat/completions"])
async def test_other_spellings_of_a_path(rig: Rig, path: str) -> None:
    answer = await says(rig, request(json.dumps(message()).encode(), path=path, connection="close"))
    assert answer.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_zipped_body(rig: Rig, coding: str, pack: object, size: int) -> None:
    noise = random.Random(1).randbytes(size).hex()
    plain = json.dumps(message(user=noise)).encode()
    assert callable(pack)
    status, _, _ = await send(rig, PATH, data=pack(plain), headers={"content-encoding": coding})
    assert status == 200
    assert rig.host.calls[0].body == plain


async def test_a_zipped_body_that_is_none_or_too_large() -> None:
    async with rigged(EdgeSettings(body_limit_bytes=100_000)) as (rig, _):
        for body in (b"nonsense", gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"more"):
            status, answer, _ = await send(rig, PATH, data=body, headers={"content-encoding": "gzip"})
            assert (status, answer["error"]["code"]) == (400, "invalid_request")
        status, answer, _ = await send(rig, PATH, data=b"{}", headers={"content-encoding": "br"})
        assert (status, answer["error"]["param"]) == (400, "content-encoding")
        bomb = gzip.compress(b" " * 10_000_000)
        status, answer, _ = await send(rig, PATH, data=bomb, headers={"content-encoding": "gzip"})
        assert (status, answer["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_does_not_come_in_time() -> None:
    async with rigged(EdgeSettings(body_timeout_s=0.05)) as (rig, _):
        answer = await says(rig, request(json.dumps(message()).encode())[:-1])
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert "did not arrive" in envelope_of(answer)["message"]
        assert [fact.outcome for fact in rig.facts] == ["refused"]


async def test_what_comes_from_elsewhere_ends_no_header(rig: Rig) -> None:
    rig.models = (ModelReport(name="whisper", paths=("audio/*",)),)
    rig.host.post_answer = (200, "text/plain\r\nx-evil: 1", b"hello")
    status, _, headers = await send(rig, "/v1/audio/speech", json={"model": "whisper"})
    assert (status, headers["content-type"]) == (200, "text/plain??x-evil: 1")
    assert "x-evil" not in headers


async def test_clients_that_leave_at_random_moments_leave_nothing() -> None:
    async with rigged(FAST) as (rig, edge):
        chance = random.Random(11)

        async def slow(_call: Call) -> AsyncGenerator[bytes, None]:
            for _ in range(5):
                yield chunk("x")
                await asyncio.sleep(chance.random() / 500)
            for block in PARIS:
                yield block

        rig.host.scripts = rig.peer.scripts = [slow]

        async def client() -> None:
            for _ in range(20):
                asked = asyncio.ensure_future(send(rig, PATH, json=message(stream=chance.random() < 0.5)))
                await asyncio.wait({asked}, timeout=chance.random() / 50)
                asked.cancel()
                await asyncio.wait({asked})

        before = len(asyncio.all_tasks())
        await asyncio.gather(*(client() for _ in range(20)))
        await until(lambda: edge.open_requests == rig.connections() == rig.host.open == rig.peer.open == 0)
        assert edge._means.bodies.held_bytes == 0
        await until(lambda: len(asyncio.all_tasks()) <= before + 1)
        assert {fact.outcome for fact in rig.facts} <= {"ok", "cancelled"}
