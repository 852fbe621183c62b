"""The guard before both halves of the edge: what is carried raw, and what is aiohttp's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from node.io.calls import Call
from router.guard import Guard, names_of
from tests.mesh.waiting import until
from tests.router.fakes import ASK, FAST, Rig, chunk, message, rigged, send

CHAT, PAGE = "/v1/chat/completions", "https://chat.example"
AWAY = {"x-forwarded-for": "192.168.1.9"}  # the tests' own connections come from loopback
RIGHT = {"authorization": "Bearer sk-right"}


async def endless(_: Call) -> AsyncGenerator[bytes, None]:
    while True:
        yield chunk("more ")
        await asyncio.sleep(0.01)  # the pace of a model, waited for by nobody


class OneKey:
    """`sk-right` is phone's, while any is needed."""

    needed = valid = True

    def name_of(self, presented: str) -> str | None:
        return "phone" if presented == "sk-right" else None

    def id_of(self, presented: str) -> str:
        return f"id of {presented}"

    def counts(self, id_: str) -> bool:
        return id_ == "id of sk-right" and self.valid


@pytest.fixture
def keys() -> OneKey:
    return OneKey()


@pytest.fixture
async def rig(keys: OneKey) -> AsyncIterator[Rig]:
    async with rigged(FAST, Guard(keys, names=names_of("mini"), origins=[PAGE])) as (rig, _):
        yield rig


def code(body: Any) -> str:
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["code"])


async def test_a_client_with_its_key_is_answered_and_its_route_has_the_keys_name(rig: Rig) -> None:
    status, body, _ = await send(rig, CHAT, json=message(), headers=AWAY | RIGHT)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Paris")
    assert [fact.key for fact in rig.facts] == ["phone"]
    assert [asked.client for asked in rig.dispatch.asked] == ["key:phone"], "its turn is the key's, wherever it is"
    assert (await send(rig, "/v1/models", "GET", headers=AWAY | RIGHT))[0] == 200


@pytest.mark.parametrize("wrong", [{}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic eDp5"}])
async def test_one_without_or_with_a_wrong_key_is_refused_everywhere(rig: Rig, wrong: dict[str, str]) -> None:
    for path, method, more in (
        (CHAT, "POST", {"json": message()}),
        (CHAT, "POST", {"json": message(stream=True)}),
        ("/v1/models", "GET", {}),
        ("/v1/models/chat-1", "GET", {}),
        ("/metrics", "GET", {}),
        ("/nothing", "GET", {}),
    ):
        status, body, headers = await send(rig, path, method, headers=AWAY | wrong, **more)
        assert (status, code(body), headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert rig.facts == [], "whoever may not ask leaves no route: others' are kept"
    assert rig.turned_away == [("key", "127.0.0.1")] * 6
    for path in ("/health", "/.well-known/mlx-stack"):
        assert (await send(rig, path, "GET", headers=AWAY | wrong))[0] == 200


async def test_this_machine_needs_none_and_others_only_while_one_is_needed(rig: Rig, keys: OneKey) -> None:
    assert (await send(rig, CHAT, json=message()))[0] == 200
    keys.needed = False
    for presented in ({}, {"authorization": "Bearer sk-wrong"}):
        assert (await send(rig, CHAT, json=message(), headers=AWAY | presented))[0] == 200
    assert [fact.key for fact in rig.facts] == [None, None, None]


async def test_the_official_client_raises_what_it_has_for_that(rig: Rig) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{rig.url}/v1", api_key="sk-wrong", max_retries=0, default_headers=AWAY
    ) as client:
        for streamed in (False, True):
            with pytest.raises(openai.AuthenticationError, match="keys create NAME"):
                await client.chat.completions.create(model="chat-1", messages=ASK, stream=streamed)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        right = client.with_options(api_key="sk-right")
        assert (await right.chat.completions.create(model="chat-1", messages=ASK)).choices[0].message.content == "Paris"


async def test_a_rebound_name_gets_nothing_although_it_comes_from_this_machine(rig: Rig) -> None:
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/health", "GET")):
        status, body, _ = await send(rig, path, method, headers={"host": "evil.example:4000"}, data=b"{}")
        assert (status, code(body)) == (403, "host_not_allowed")
        assert "allowed-hosts" in body["error"]["message"]
    assert (await send(rig, "/v1/models", "GET", headers={"host": "mini.local:4000"}))[0] == 200


async def test_a_page_of_another_site_gets_nothing_and_no_leave_to_ask(rig: Rig) -> None:
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), (CHAT, "OPTIONS")):
        asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        status, body, headers = await send(rig, path, method, headers=asks)
        assert (status, code(body)) == (403, "origin_not_allowed")
        assert not [name for name in headers if name.lower().startswith("access-control")]
    assert rig.facts == []


async def test_a_page_that_may_ask_does_what_browsers_do(rig: Rig) -> None:
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        "access-control-request-private-network": "true",
    }
    status, body, headers = await send(rig, CHAT, "OPTIONS", headers=AWAY | preflight)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-lang" in headers["access-control-allow-headers"]
    assert headers["access-control-allow-private-network"] == "true"
    for more in ({}, {"stream": True}):
        status, _, headers = await send(rig, CHAT, json=message(**more), headers=AWAY | RIGHT | {"origin": PAGE})
        assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, PAGE, "Origin")
    status, _, headers = await send(rig, "/v1/models", "GET", headers=AWAY | RIGHT | {"origin": PAGE})
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    status, body, headers = await send(rig, CHAT, json=message(), headers=AWAY | {"origin": PAGE})
    assert (status, code(body), headers["access-control-allow-origin"]) == (401, "invalid_api_key", PAGE)
    status, _, headers = await send(rig, CHAT, json={}, headers=AWAY | RIGHT | {"origin": PAGE})
    assert (status, headers["access-control-allow-origin"]) == (400, PAGE), "errors can be read, too"


async def test_every_request_of_a_connection_is_judged_and_a_large_one_before_it_is_read(rig: Rig) -> None:
    """A front keeps connections: what the first of them may says nothing of the next."""
    body = json.dumps(message()).encode()

    def asked(fields: str, length: int = len(body)) -> bytes:
        return f"POST {CHAT} HTTP/1.1\r\nhost: mini\r\ncontent-length: {length}\r\n{fields}\r\n".encode()

    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
    away = "x-forwarded-for: 10.0.0.1\r\n"
    writer.write(asked(away + "authorization: Bearer sk-right\r\n") + body + asked(away) + body + asked("") + body)
    writer.write(asked(away, 30 * 2**20))
    async with asyncio.timeout(60):
        answers = await reader.read()
    writer.close()
    statuses = [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"401", b"200", b"401"]


async def test_a_stream_ends_when_its_key_is_revoked_and_nothing_runs_on(keys: OneKey) -> None:
    async with rigged(FAST, Guard(keys, names=names_of("mini"))) as (rig, edge):
        rig.host.scripts = [endless]
        async with aiohttp.ClientSession() as session:
            async with session.post(rig.url + CHAT, json=message(stream=True), headers=AWAY | RIGHT) as stream:
                assert b"data:" in await stream.content.readline()
                edge.keys_changed()  # another key
                keys.valid = False
                edge.keys_changed()
                with pytest.raises(aiohttp.ClientError):
                    await stream.read()
        await until(lambda: edge.open_requests == 0)
        await until(lambda: rig.host.open == 0)
        assert [(fact.outcome, fact.key) for fact in rig.facts] == [("cancelled", "phone")]


async def test_one_whose_key_is_revoked_while_its_body_comes_is_refused_after_it(keys: OneKey) -> None:
    async with rigged(FAST, Guard(keys, names=names_of("mini"))) as (rig, edge):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
        body = json.dumps(message()).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: mini\r\ncontent-length: {len(body)}\r\nx-forwarded-for: a\r\n"
        writer.write(head.encode() + b"authorization: Bearer sk-right\r\n\r\n" + body[:9])
        await until(lambda: edge.open_requests == 1)
        keys.valid = False
        edge.keys_changed()
        writer.write(body[9:])
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()
    assert [fact.error for fact in rig.facts] == ["invalid_api_key: the API key 'phone' was revoked meanwhile"]


async def test_a_name_of_a_key_may_be_anything_people_write(rig: Rig, keys: OneKey) -> None:
    keys.name_of = lambda presented: "Brunos Büro ✓"  # type: ignore[method-assign]  # for this one test
    keys.counts = lambda id_: True  # type: ignore[method-assign]  # likewise
    assert (await send(rig, CHAT, json=message(), headers=AWAY | RIGHT))[0] == 200
    assert rig.facts[-1].key == "Brunos Büro ✓"
    async with aiohttp.ClientSession() as session:
        async with session.get(rig.url + "/ready", headers=AWAY | RIGHT) as answer:
            assert answer.status == 200
