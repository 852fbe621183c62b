"""Prompts, answers and keys on every way through a mesh, those that fail too: none of them is written down anywhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import secrecy
from tests.secrecy import KEY, MARK
from tests.server.daemons import Node, mesh_of, tier, wait_for
from tests.server.reciting import Reciter

pytestmark = pytest.mark.server

ASK: Any = [{"role": "user", "content": f"Repeat {MARK} after me."}]
MODEL_FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'


@pytest.fixture(scope="module")
def reciter() -> Iterator[Reciter]:
    with Reciter() as made:
        made.text = " ".join([MARK] * 20)
        yield made


@pytest.fixture(scope="module")
def pair(short_folder: Path, tiny_model: Path, reciter: Reciter) -> Iterator[tuple[Node, Node]]:
    """ada has no model of her own; all that she is asked goes to bob, whose second model answers with MARK."""
    external = {"name": "reciter", "model": "reciter", "engine": "external", "url": reciter.url}
    made = mesh_of(short_folder, ada={}, bob={"tiers": [tier(tiny_model, name="quick"), external]})
    yield made[0], made[1]
    for node in reversed(made):
        node.stop()


def told(node: Node, text: bytes) -> bytes:
    """All that its client port answers to these bytes."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while data := client.recv(65536):
            found += data
        return found


def posted(body: bytes, kind: str = "application/json", *fields: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_nothing_that_was_asked_or_answered_is_written_down(pair: tuple[Node, Node], reciter: Reciter) -> None:
    ada, bob = pair
    with ada.openai(timeout=60.0) as client:
        for model in ("quick", "reciter"):
            whole = client.chat.completions.create(model=model, messages=ASK, max_tokens=20)
            assert model == "quick" or MARK in (whole.choices[0].message.content or "")
            with client.chat.completions.create(model=model, messages=ASK, max_tokens=20, stream=True) as stream:
                list(stream)
            with client.chat.completions.create(model=model, messages=ASK, max_tokens=500, stream=True) as stream:
                next(iter(stream))  # and leaves
        client.completions.create(model="quick", prompt=f"{MARK} {MARK}", max_tokens=5, user=f"user-{MARK}")
        reciter.stops_after = 5  # breaks off, and is asked again
        with client.chat.completions.create(model="reciter", messages=ASK, stream=True) as stream:
            list(stream)
        for wrong in ({"max_tokens": MARK}, {"tools": MARK}, {"stop": [{MARK: 1}]}, {"logit_bias": {MARK: MARK}}):
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model="quick", messages=ASK, extra_body=wrong)
            assert MARK not in str(caught.value.body), "an error repeats what was sent"
        with pytest.raises(openai.APIStatusError):
            client.embeddings.create(model="quick", input=MARK)
    odd = [
        posted(b'{"model": "quick", "messages": [{"role": "user", "content": "%b"' % MARK.encode()),  # no JSON
        posted(b'{"model": "quick", "messages": "%b"}' % MARK.encode()),
        posted(b'{"model": "quick", "messages": [{"role": "user", "content": "%b\xff"}]}' % MARK.encode()),
        posted(MODEL_FORM % b"quick" + MARK.encode(), "multipart/form-data; boundary=b", path="/v1/audio/translations"),
        posted(b"x", "text/plain", f"X-Odd : {MARK}"),
        posted(MARK.encode(), "application/json", "Content-Encoding: gzip"),
        posted(b"{}", path=f"/v1/{MARK}"),
        f"GET /v1/models?key={KEY}&prompt={MARK} HTTP/1.1\r\nHost: x\r\n\r\n{MARK} {KEY}\r\n\r\n".encode(),
        f"GET {MARK} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode(),
        f"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: {MARK}\rAuthorization: {KEY}\r\n\r\n".encode(),
        f"{MARK} / HTTP/1.1\r\n\r\n".encode(),
    ]
    for text in odd:
        answer = told(ada, text)
        assert MARK.encode() not in answer.partition(b"\r\n\r\n")[2].replace(f"/v1/{MARK}".encode(), b""), answer
    wait_for("all are recorded", lambda: len(ada.client.routes(100).routes) >= 10)
    assert secrecy.said_of([ada.pid, bob.pid]) == []


def test_a_crash_of_a_model_server_and_of_the_daemon_tell_nothing(
    folder: Path, node: Callable[..., Node], slow_model: Path
) -> None:
    eva = node("eva", [tier(slow_model, name="slow")], mesh_enabled=True).start().wait_models()
    with eva.openai() as client:
        with client.chat.completions.create(model="slow", messages=ASK, max_tokens=2000, stream=True) as stream:
            next(iter(stream))
            os.kill(eva.worker_of("tiny-30-layers").pid, signal.SIGABRT)
            with suppress(openai.APIError):
                list(stream)
    eva.wait_models("ready")
    printed = eva.cli("models").stdout + eva.cli("mesh", "status").stdout
    assert secrecy.found_in(printed.encode()) == []
    with eva.openai() as client:
        with client.chat.completions.create(model="slow", messages=ASK, max_tokens=2000, stream=True) as stream:
            next(iter(stream))
            eva.signal(signal.SIGKILL)
            eva.ended()


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    assert secrecy.leaks(tmp_path) == secrecy.exposed(tmp_path) == []
    (tmp_path / "logs").mkdir(mode=0o755)
    (tmp_path / "logs" / "daemon.log").write_text(json.dumps({"message": f"asked {MARK}"}))
    (tmp_path / "printed").write_text("sk-mesh-" + "0" * 52)
    (tmp_path / "config.yaml").write_text(KEY)
    with closing(sqlite3.connect(tmp_path / "routes.db")) as database:
        database.execute("CREATE TABLE t (body BLOB)")

        database.execute("INSERT INTO t VALUES (?)", (zlib.compress(KEY.encode()),))
        database.commit()
    found = "\n".join(secrecy.leaks(tmp_path))
    assert f"logs/daemon.log: {MARK}" in found
    assert f"routes.db: {KEY}" in found
    assert "printed: a sk-mesh-" in found
    assert "config.yaml" not in found
    assert len(secrecy.exposed(tmp_path)) == 2
