"""What a client writes into names, headers and paths stays a word: it reaches no path, no other header and no line of a
log as more than that. With raw sockets, as no client library sends such things."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.router.fakes import Rig, message, send

NASTY = [
    "../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "a\0b",
    "a\r\nx-evil: 1",
    "a\nERROR all is lost",
    "\x1b[2J\x1b]0;owned\x07",
    "$(reboot)",
    "; rm -rf /",
    "--model=other",
    "{model}",
    "%2e%2e%2f",
    "' OR 1=1 --",
    "\u202egnp.exe",
    "\ud7ff\U0010ffff",
    'chat-1"} 1\nmlx_fake{x="',
    "x" * 2**20,
]
PATH = "/v1/chat/completions"


def short(text: str) -> str:
    return ascii(text)[:24]


@pytest.mark.parametrize("name", NASTY, ids=short)
@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/v1/embeddings"])
async def test_a_model_is_looked_up_and_nothing_else_is_done_with_its_name(rig: Rig, path: str, name: str) -> None:
    body = {"model": name, "messages": message()["messages"], "prompt": "hi", "input": "hi"}
    status, answer, headers = await send(rig, path, json=body)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert len(answer["error"]["message"]) < 500
    assert answer["error"]["message"].isprintable()
    assert "x-evil" not in headers
    assert rig.dispatch.asked == rig.host.calls == []
    (fact,) = rig.facts
    assert len(fact.model) <= 101
    assert fact.model.isprintable()
    assert fact.error is not None
    assert fact.error.isprintable()
    assert fact.served_model is None, "it becomes no label"


@pytest.mark.parametrize("name", NASTY, ids=short)
async def test_a_form_says_it_as_well(rig: Rig, name: str) -> None:
    form = f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{name}\r\n--b--\r\n'
    fields = {"content-type": "multipart/form-data; boundary=b"}
    status, answer, _ = await send(rig, "/v1/audio/transcriptions", data=form.encode(), headers=fields)
    assert status in (400, 404)
    assert answer["error"]["message"].isprintable()
    assert rig.dispatch.asked == rig.host.calls == []


@pytest.mark.parametrize("name", NASTY[:-1], ids=short)
async def test_a_path_below_a_wildcard_stays_below_it(rig: Rig, name: str) -> None:
    spelt = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass"))
    for path in (f"/v1/audio/{spelt}", f"/v1/models/{spelt}", f"/v1/{spelt}", f"/{spelt}"):
        for method in ("POST", "GET"):
            answer = await raw(rig, f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 ")), path
            assert b"x-evil: 1" not in answer.partition(b"\r\n\r\n")[0]
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["message"].isprintable(), path
    assert rig.host.calls == []


@pytest.mark.parametrize(
    "header",
    [
        b"x-request-id: a\x00b",
        b"x-request-id: a\rx-evil: 1",
        b"x-request-id: a\nx-evil: 1",
        b"x-request-id: a\r\n x-evil: 1",
        b"authorization: Bearer a\x0bb",
        b"content-type: application/json\x7f",
        b"x-priority: \x1b[2J",
    ],
    ids=ascii,
)
async def test_no_header_carries_a_control_character(rig: Rig, header: bytes) -> None:
    body = json.dumps(message()).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), header, len(body))
    answer = await raw(rig, head + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-evil: 1\r\n" not in answer
    assert rig.host.calls == []


async def test_a_request_id_that_is_no_plain_word_is_not_kept(rig: Rig) -> None:
    for name in ("a b", "é", "x" * 129, "<script>", "a;b", '"'):
        status, _, headers = await send(rig, PATH, json=message(), headers={"x-request-id": name})
        assert status == 200
        assert headers["x-request-id"].startswith("req-")
    assert {fact.client_request_id for fact in rig.facts} == {None}


async def raw(rig: Rig, text: bytes) -> bytes:
    """All that comes back until the edge closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
    writer.write(text)
    if not text.endswith(b"}"):
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" * text.startswith(b"POST"))
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer.partition(b'{"status":"ok"}')[0] if answer.endswith(b'{"status":"ok"}') else answer
