"""Clients of a real daemon, with real answers: keys, names, browser pages and https, asked by the official client.

What counts as another machine here says X-Forwarded-For, as a proxy on this Mac would; tests/lab/test_clients.py has
real other machines."""

from __future__ import annotations

import json
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.mesh.certificates import make
from tests.server.daemons import Node, mesh_of, tier, wait_for

pytestmark = pytest.mark.server

HELLO: Any = [{"role": "user", "content": "Hello"}]
AWAY = {"X-Forwarded-For": "192.168.1.9"}
PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
def two(short_folder: Path, tiny_model: Path) -> Iterator[list[Node]]:
    quick = {"tiers": [tier(tiny_model, name="quick")]}
    nodes = mesh_of(short_folder, ann=quick | {"cors_origins": [PAGE]}, ben=quick)
    yield nodes
    for node in nodes:
        node.stop()


def client(node: Node, key: str = "none", **more: Any) -> openai.OpenAI:
    return node.openai(default_headers=AWAY | more).with_options(api_key=key)


def answers(asked: openai.OpenAI) -> None:
    """Streamed and not."""
    options: Any = {"model": "quick", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    plain = asked.chat.completions.create(**options).choices[0].message.content
    with asked.chat.completions.create(stream=True, **options) as stream:
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == plain


def refused(asked: openai.OpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.AuthenticationError) as caught:
            asked.chat.completions.create(model="quick", messages=HELLO, max_tokens=8, stream=streamed)
        assert caught.value.code == "invalid_api_key"
        assert "mlx-stack keys create" in caught.value.message
    with pytest.raises(openai.AuthenticationError):
        asked.models.list()


def test_clients_need_a_key_from_the_first_one_on_and_a_revoked_one_works_nowhere(two: list[Node]) -> None:
    ann, ben = two
    for node in two:
        answers(client(node))
        answers(client(node, "sk-whatever"))
    said = ann.cli("keys", "create", "Brunos phone", code=1).stderr
    assert "--yes" in said
    answers(client(ben))

    made = ann.json("keys", "create", "Brunos phone", "--yes")
    other = ben.cli("keys", "create", "tablet").stdout.strip()
    wait_for("both know both", lambda: all(len(n.json("keys", "list")["keys"]) == 2 for n in two))
    for node in two:
        refused(client(node))
        refused(client(node, made["key"][:-1] + "x"))
        answers(client(node, made["key"]))
        answers(client(node, other))
        answers(node.openai())  # programs on this machine
    route = next(r for r in ann.json("mesh", "routes", "--last", "5")["routes"] if r["key"] is not None)
    assert route["key"] in ("Brunos phone", "tablet")

    began = time.monotonic()
    assert ben.json("keys", "revoke", "Brunos phone")["left"] == 1
    told_s = time.monotonic() - began
    for node in two:
        refused(client(node, made["key"]))
    print(
        f"refused on both nodes {time.monotonic() - began:.2f} s after `keys revoke` began, which took {told_s:.2f} s"
    )
    for node in two:
        answers(client(node, other))
        kept = node.home / "mesh" / "keys.json"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        written = kept.read_text() + node.log()
        assert not [key for key in (made["key"], other) if key in written or key[20:] in written]

    ben.cli("keys", "off", "--yes")
    wait_for("both know it", lambda: not any(n.json("keys", "list")["needed"] for n in two))
    for node in two:
        answers(client(node))


def test_a_page_that_may_ask_is_answered_and_another_is_not(two: list[Node]) -> None:
    """What a browser sends for `fetch` from a page, and what it lets the page read."""
    ann, _ = two
    question = {"model": "quick", "messages": HELLO, "max_tokens": 4, "stream": True}
    with openai.DefaultHttpxClient(base_url=ann.url, timeout=60) as browser:
        asks = {
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        leave = browser.options("/v1/chat/completions", headers=asks)
        assert (leave.status_code, leave.headers["access-control-allow-origin"]) == (204, PAGE)
        assert "authorization" in leave.headers["access-control-allow-headers"]
        answer = browser.post("/v1/chat/completions", headers={"origin": PAGE}, json=question)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert answer.text.endswith("data: [DONE]\n\n")
        before = len(ann.json("mesh", "routes")["routes"])
        for evil in ("https://evil.example", "null", f"http://localhost:{ann.port + 1}"):
            leave = browser.options("/v1/chat/completions", headers={**asks, "origin": evil})
            assert leave.status_code == 403
            blind = browser.post(  # needs no leave: a browser sends it, and hides the answer from the page
                "/v1/chat/completions",
                headers={"origin": evil, "content-type": "text/plain"},
                content=json.dumps(question),
            )
            assert (blind.status_code, blind.json()["error"]["code"]) == (403, "origin_not_allowed")
            assert not [name for name in (*leave.headers, *blind.headers) if name.startswith("access-control")]
        assert len(ann.json("mesh", "routes")["routes"]) == before, "nothing was generated for them"


def test_a_rebound_name_is_refused_and_ours_are_not(two: list[Node]) -> None:
    ann, _ = two
    name = str(ann.config["mesh-name"])
    with openai.DefaultHttpxClient(base_url=ann.url, timeout=60) as browser:
        for host in ("evil.example", f"localhost.evil.example:{ann.port}", "evil.local"):
            for path in ("/v1/models", "/health", "/.well-known/mlx-stack", "/metrics"):
                told = browser.get(path, headers={"host": host})
                assert (told.status_code, told.json()["error"]["code"]) == (403, "host_not_allowed")
            question = {"model": "quick", "messages": HELLO}
            assert browser.post("/v1/chat/completions", headers={"host": host}, json=question).status_code == 403
        for host in ("localhost", f"{name}.local", "ann", "ann.local:4000", "192.168.1.5", "host.docker.internal:4000"):
            assert browser.get("/v1/models", headers={"host": host}).status_code == 200, host
    assert "allowed-hosts" in ann.log()


async def test_https_streams_real_answers_on_uvloop(
    node: Callable[..., Node], tiny_model: Path, tmp_path: Path
) -> None:
    cert, key = make(tmp_path)
    eva = node("eva", [tier(tiny_model, name="quick")], tls_cert=str(cert), tls_key=str(key)).start().wait_models()
    assert eva.client.status().url == f"https://localhost:{eva.port}/v1"
    made = eva.json("keys", "create", "phone", "--yes")
    with openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(cert))) as http:
        asked = openai.OpenAI(
            base_url=f"https://localhost:{eva.port}/v1", api_key=made["key"], http_client=http, default_headers=AWAY
        )
        answers(asked)
        assert [m.id for m in asked.models.list()][:1]
        refused(asked.with_options(api_key="sk-wrong", max_retries=0))
    async with aiohttp.ClientSession() as session:  # many at once, each cut off by its client in the middle
        url, question = f"https://127.0.0.1:{eva.port}/v1/chat/completions", {"model": "quick", "messages": HELLO}
        for _ in range(20):
            async with session.post(url, json=question | {"stream": True, "max_tokens": 500}, ssl=False) as answer:
                assert answer.status == 200
                await answer.content.readany()
                answer.close()
    wait_for("nothing runs any more", lambda: eva.model("quick").in_flight == 0)
