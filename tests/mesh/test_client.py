"""The admin API's client over a real unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mesh import answers
from mesh.client import MeshClient, MeshClientError
from mesh.home import Home


def client(home: Home) -> MeshClient:
    return MeshClient.of(home, timeout_s=5.0)


def test_answers_become_structs_and_unknown_fields_do_no_harm(admin: Any) -> None:
    status = {"version": "1", "pid": 7, "node": {"name": "a", "id": "1", "models": [{"name": "m", "new": 1}]}, "new": 2}
    admin.answer("GET /v1/status", status)
    found = client(admin.home).status()
    assert (found.pid, found.no_stack) == (7, False)
    assert found.node is not None
    assert found.node.models == (answers.ModelDetails(name="m"),)


def test_self_is_called_self_on_the_wire(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", {"mesh": {"term": 3}, "self": "a", "nodes": []})
    found = client(admin.home).mesh_status()
    assert (found.self_name, found.mesh.term) == ("a", 3)


@pytest.mark.parametrize(
    ("call", "asked", "body"),
    [
        (lambda c: c.load("org/m"), "POST /v1/models/org%2Fm/load", {}),
        (lambda c: c.unload("m"), "POST /v1/models/m/unload", {}),
        (lambda c: c.model("a b"), "GET /v1/models/a%20b", None),
        (lambda c: c.enable(priority=0), "POST /v1/mesh/enable", {"priority": 0}),
        (lambda c: c.disable(), "POST /v1/mesh/disable", {}),
        (lambda c: c.add("h:1"), "POST /v1/mesh/peers", {"address": "h:1"}),
        (lambda c: c.remove("a~1"), "DELETE /v1/mesh/nodes/a~1", None),
        (lambda c: c.drain("a", 5.0), "POST /v1/mesh/drain", {"node": "a", "for_s": 5.0}),
        (lambda c: c.drain("a", now=True), "POST /v1/mesh/drain", {"node": "a", "now": True}),
        (
            lambda c: c.drill("worker", "d", node="a", model="m"),
            "POST /v1/mesh/drill",
            {"ask": "worker", "drill": "d", "node": "a", "model": "m", "for_s": 10.0},
        ),
        (lambda c: c.undrain("a"), "POST /v1/mesh/undrain", {"node": "a"}),
        (lambda c: c.routes(3), "GET /v1/mesh/routes?last=3", None),
        (lambda c: c.route("x/y"), "GET /v1/mesh/routes/x%2Fy", None),
        (lambda c: c.reload(), "POST /v1/reload", {}),
        (lambda c: c.stop(1.5), "POST /v1/stop", {"grace_s": 1.5}),
    ],
)
def test_what_is_sent(admin: Any, call: Callable[[MeshClient], object], asked: str, body: object) -> None:
    admin.answer(asked, {"name": "m", "id": "r", "changed": [], "removed": "x"} if "reload" not in asked else {})
    call(client(admin.home))
    assert admin.asked == [(asked, body)]


def test_a_refusal_carries_the_daemons_code_and_words(admin: Any) -> None:
    admin.answer("POST /v1/mesh/peers", {"error": {"code": "not_a_node", "message": "h:1 is no node"}}, 400)
    with pytest.raises(MeshClientError) as error:
        client(admin.home).add("h:1")
    assert (error.value.code, error.value.message, error.value.status) == ("not_a_node", "h:1 is no node", 400)


@pytest.mark.parametrize(("body", "status"), [(b"oops", 500), (b"[]", 502), (b"{}", 503), (b"", 500)])
def test_a_refusal_without_a_reason(admin: Any, body: bytes, status: int) -> None:
    admin.answer("GET /v1/status", body, status)
    with pytest.raises(MeshClientError, match=f"answered {status}"):
        client(admin.home).status()


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"pid": "x"}', b""])
def test_an_answer_that_is_none(admin: Any, body: bytes) -> None:
    admin.answer("GET /v1/status", body)
    with pytest.raises(MeshClientError) as error:
        client(admin.home).status()
    assert error.value.code == "bad_answer"


def test_nobody_there(home: Home) -> None:
    with pytest.raises(MeshClientError) as error:
        client(home).status()
    assert error.value.code == "not_running"
    home.prepare_socket()
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(home.socket))
    left_over.close()
    with pytest.raises(MeshClientError) as error:
        client(home).status()
    assert error.value.code == "not_running"


def test_following_yields_each_line_and_ends_with_the_daemon(admin: Any) -> None:
    lines = [json.dumps({"id": "a"}), "", json.dumps({"id": "b", "status": 200})]
    admin.answer("GET /v1/mesh/routes/follow", "\n".join([*lines, ""]).encode())
    assert [route.id for route in client(admin.home).follow()] == ["a", "b"]


def test_a_daemon_that_is_silent_or_breaks_off(tmp_path: Path, home: Home) -> None:
    home.prepare_socket()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(home.socket))
    server.listen()
    with pytest.raises(MeshClientError) as error:
        MeshClient(home.socket, timeout_s=0.05).status()
    assert error.value.code == "no_answer"

    def break_off() -> None:
        for _ in range(2):  # the first is the call above that gave up
            connection, _ = server.accept()
            with suppress(BrokenPipeError):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            connection.close()

    thread = threading.Thread(target=break_off)
    thread.start()
    with pytest.raises(MeshClientError) as error:
        client(home).status()
    assert error.value.code == "no_answer"
    thread.join()
    server.close()
