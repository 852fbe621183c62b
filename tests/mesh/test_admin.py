"""The admin API: each endpoint calls its method with what was said, and a failure is one JSON object."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mesh.admin import admin_app
from mesh.config import ConfigError
from mesh.errors import MeshError
from node.errors import NodeError, NodeErrorCode


class Noting:
    """A Control that notes its calls and answers {"called": name}, or raises `fault`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fault: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any) -> dict[str, Any]:
            self.calls.append((name, *arguments))
            if self.fault is not None:
                raise self.fault
            return {"called": name}

        return method

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            yield {"id": number}


class Admin:
    def __init__(self, url: str, session: aiohttp.ClientSession, control: Noting) -> None:
        self.url, self.session, self.control = url, session, control

    async def ask(self, method: str, path: str, body: Any = None, data: bytes | None = None) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, json=body, data=data) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    control = Noting()
    runner = web.AppRunner(admin_app(control), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:
        yield Admin(f"http://127.0.0.1:{runner.addresses[0][1]}", session, control)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("method", "path", "body", "call"),
    [
        ("GET", "/v1/status", None, ("status",)),
        ("GET", "/v1/mesh/status", None, ("mesh_status",)),
        ("GET", "/v1/mesh/routes", None, ("routes", 20)),
        ("GET", "/v1/mesh/routes?last=7", None, ("routes", 7)),
        ("GET", "/v1/mesh/routes/req-1", None, ("route", "req-1")),
        ("POST", "/v1/mesh/enable", {}, ("enable", None, None, "")),
        ("POST", "/v1/mesh/enable", {"priority": 3, "name": "x"}, ("enable", 3, "x", "")),
        ("POST", "/v1/mesh/enable", {"invite": "abc"}, ("enable", None, None, "abc")),
        ("POST", "/v1/mesh/open", {}, ("open_window", None)),
        ("POST", "/v1/mesh/open", {"for_s": 600}, ("open_window", 600.0)),
        ("POST", "/v1/mesh/close", {}, ("close_window",)),
        ("POST", "/v1/mesh/accept", {"name": "mini", "check": "123456"}, ("accept", "mini", "123456")),
        ("POST", "/v1/mesh/invite", {}, ("invite",)),
        ("POST", "/v1/mesh/disable", {}, ("disable",)),
        ("POST", "/v1/mesh/drill", {"ask": "hold", "drill": "d"}, ("drill", "hold", "d", "", "", 10.0)),
        (
            "POST",
            "/v1/mesh/drill",
            {"ask": "node", "drill": "d", "node": "a", "model": "m", "for_s": 3},
            ("drill", "node", "d", "a", "m", 3.0),
        ),
        ("GET", "/v1/mesh/drill", None, ("drill_seen",)),
        ("POST", "/v1/mesh/disable", None, ("disable",)),
        ("POST", "/v1/mesh/peers", {"address": "h:1"}, ("add_peer", "h:1", "")),
        ("GET", "/v1/mesh/tailnet", None, ("tailnet",)),
        ("DELETE", "/v1/mesh/nodes/bob~1234", None, ("remove_node", "bob~1234")),
        ("POST", "/v1/mesh/drain", {"node": "bob"}, ("drain", "bob", None, False)),
        ("POST", "/v1/mesh/drain", {"node": "bob", "for_s": 2}, ("drain", "bob", 2.0, False)),
        ("POST", "/v1/mesh/drain", {"node": "bob", "now": True}, ("drain", "bob", None, True)),
        ("POST", "/v1/mesh/undrain", {"node": "bob"}, ("undrain", "bob")),
        ("GET", "/v1/keys", None, ("keys",)),
        ("POST", "/v1/keys", {"name": "phone"}, ("create_key", "phone", False)),
        ("POST", "/v1/keys", {"name": "phone", "first": True}, ("create_key", "phone", True)),
        ("POST", "/v1/keys/off", {}, ("keys_off",)),
        ("DELETE", "/v1/keys/Brunos%20phone", None, ("revoke_key", "Brunos phone")),
        ("GET", "/v1/models", None, ("models",)),
        ("GET", "/v1/models/org%2Fmodel", None, ("model", "org/model")),
        ("POST", "/v1/models/org%2Fmodel/load", {}, ("load", "org/model")),
        ("POST", "/v1/models/m/unload", {}, ("unload", "m")),
        ("POST", "/v1/reload", {}, ("reload",)),
        ("POST", "/v1/stop", {}, ("stop", None)),
        ("POST", "/v1/stop", {"grace_s": 0}, ("stop", 0.0)),
    ],
)
async def test_endpoints(admin: Admin, method: str, path: str, body: Any, call: tuple[Any, ...]) -> None:
    assert await admin.ask(method, path, body) == (200, {"called": call[0]})
    assert admin.control.calls == [call]


@pytest.mark.parametrize(
    ("method", "path", "data", "said"),
    [
        ("GET", "/v1/mesh/routes?last=0", None, "last=0"),
        ("GET", "/v1/mesh/routes?last=many", None, "last=many"),
        ("GET", "/v1/mesh/routes?last=100001", None, "100000"),
        ("POST", "/v1/mesh/enable", b'{"priority": "high"}', "priority"),
        ("POST", "/v1/mesh/enable", b'{"prioriti": 1}', "prioriti"),
        ("POST", "/v1/mesh/peers", b"{}", "address"),
        ("POST", "/v1/mesh/drain", b"{", "/v1/mesh/drain"),
        ("POST", "/v1/mesh/drain", b"[]", "object"),
        ("POST", "/v1/stop", b"\xff", "/v1/stop"),
    ],
)
async def test_a_wrong_call_changes_nothing(
    admin: Admin, method: str, path: str, data: bytes | None, said: str
) -> None:
    status, body = await admin.ask(method, path, data=data)
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert said in body["error"]["message"]
    assert admin.control.calls == []


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (MeshError("unknown_node", "no node 'x'", status=404), 404, "unknown_node"),
        (NodeError(NodeErrorCode.MODEL_FAILED, "it broke"), 502, "model_failed"),
        (ConfigError("'port' is wrong"), 400, "config"),
    ],
)
async def test_a_failure_is_one_object(admin: Admin, fault: Exception, status: int, code: str) -> None:
    admin.control.fault = fault
    found, body = await admin.ask("GET", "/v1/status")
    assert (found, set(body), body["error"]["code"]) == (status, {"error"}, code)
    assert body["error"]["message"]


async def test_an_unknown_path_is_named(admin: Admin) -> None:
    status, body = await admin.ask("GET", "/v1/nothing")
    assert (status, body["error"]["code"]) == (404, "no_such_endpoint")
    assert "/v1/nothing" in body["error"]["message"]
    assert (await admin.ask("GET", "/v1/stop"))[0] == 405


async def test_following_is_a_line_per_route(admin: Admin) -> None:
    async with admin.session.get(f"{admin.url}/v1/mesh/routes/follow") as answer:
        assert answer.content_type == "application/x-ndjson"
        assert await answer.text() == '{"id":0}\n{"id":1}\n{"id":2}\n'
