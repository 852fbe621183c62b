"""The admin API on `daemon.sock`: everything that changes something, and all the command line shows (docs/api.md).

Handlers read the request, call one method of `Control` and write JSON; what the methods do is in daemon.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from mesh.config import ConfigError
from mesh.errors import MeshError
from mesh.join_settings import JoinSettings
from mesh.status import Json
from mesh.wire import DrainSeconds, DrillSeconds, Text
from node.errors import NodeError

T = TypeVar("T", bound=Struct)
WindowSeconds: TypeAlias = Annotated[float, Meta(gt=0, le=JoinSettings().window_max_s)]
LAST_MAX = 100_000  # routes or events in one answer: all that are kept


class EnableBody(Struct, frozen=True, forbid_unknown_fields=True):
    priority: int | None = None
    name: str | None = None
    invite: Text = ""


class PeerBody(Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    invite: Text = ""


class OpenBody(Struct, frozen=True, forbid_unknown_fields=True):
    for_s: WindowSeconds | None = None


class AcceptBody(Struct, frozen=True, forbid_unknown_fields=True):
    name: Text
    check: Text = ""


class KeyBody(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    first: bool = False  # it may be the first one, which others need from then on


class DrainBody(Struct, frozen=True, forbid_unknown_fields=True):
    node: str
    for_s: DrainSeconds | None = None
    now: bool = False


class DrillBody(Struct, frozen=True, forbid_unknown_fields=True):
    ask: Text
    drill: Text
    node: Text = ""
    model: Text = ""
    for_s: DrillSeconds = 10.0


class StopBody(Struct, frozen=True, forbid_unknown_fields=True):
    grace_s: Annotated[float, Meta(ge=0, le=86400)] | None = None


class NoBody(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Control(Protocol):
    """What a daemon can be asked to do. Raises MeshError, NodeError or ConfigError."""

    async def status(self) -> Json: ...
    async def mesh_status(self) -> Json: ...
    async def routes(self, last: int) -> Json: ...
    async def route(self, route_id: str) -> Json: ...
    def follow(self) -> AsyncGenerator[Json | None, None]: ...
    async def events(self, last: int, model: str) -> Json: ...
    def follow_events(self, last: int, model: str) -> AsyncGenerator[Json | None, None]: ...
    async def enable(self, priority: int | None, name: str | None, invite: str = "") -> Json: ...
    async def disable(self) -> Json: ...
    async def add_peer(self, address: str, invite: str = "") -> Json: ...
    async def open_window(self, for_s: float | None) -> Json: ...
    async def close_window(self) -> Json: ...
    async def accept(self, name: str, check: str = "") -> Json: ...
    async def invite(self) -> Json: ...
    async def remove_node(self, name: str) -> Json: ...
    async def tailnet(self) -> Json: ...
    async def drain(self, node: str, for_s: float | None, now: bool = False) -> Json: ...
    async def undrain(self, node: str) -> Json: ...
    async def drill(self, ask: str, drill: str, node: str, model: str, for_s: float) -> Json: ...
    async def drill_seen(self) -> Json: ...
    async def keys(self) -> Json: ...
    async def create_key(self, name: str, first: bool) -> Json: ...
    async def revoke_key(self, wanted: str) -> Json: ...
    async def keys_off(self) -> Json: ...
    async def models(self) -> Json: ...
    async def model(self, name: str) -> Json: ...
    async def load(self, name: str) -> Json: ...
    async def unload(self, name: str) -> Json: ...
    async def reload(self) -> Json: ...
    async def stop(self, grace_s: float | None) -> Json: ...


def admin_app(control: Control) -> web.Application:
    """The whole admin API over `control`."""
    app = web.Application(middlewares=[errors_as_json])
    app.add_routes(
        [
            web.get("/v1/status", _get(control.status)),
            web.get("/v1/mesh/status", _get(control.mesh_status)),
            web.get("/v1/mesh/routes", _at(lambda r: control.routes(_last(r)))),
            web.get("/v1/mesh/routes/follow", _lines(lambda _: control.follow())),
            web.get("/v1/mesh/routes/{id}", _at(lambda r: control.route(r.match_info["id"]))),
            web.post("/v1/mesh/enable", _post(EnableBody, lambda b: control.enable(b.priority, b.name, b.invite))),
            web.post("/v1/mesh/disable", _post(NoBody, lambda _: control.disable())),
            web.post("/v1/mesh/peers", _post(PeerBody, lambda b: control.add_peer(b.address, b.invite))),
            web.post("/v1/mesh/open", _post(OpenBody, lambda b: control.open_window(b.for_s))),
            web.post("/v1/mesh/close", _post(NoBody, lambda _: control.close_window())),
            web.post("/v1/mesh/accept", _post(AcceptBody, lambda b: control.accept(b.name, b.check))),
            web.post("/v1/mesh/invite", _post(NoBody, lambda _: control.invite())),
            web.get("/v1/mesh/tailnet", _get(control.tailnet)),
            web.delete("/v1/mesh/nodes/{name}", _at(lambda r: control.remove_node(r.match_info["name"]))),
            web.post("/v1/mesh/drain", _post(DrainBody, lambda b: control.drain(b.node, b.for_s, b.now))),
            web.post("/v1/mesh/undrain", _post(DrainBody, lambda b: control.undrain(b.node))),
            web.post(
                "/v1/mesh/drill", _post(DrillBody, lambda b: control.drill(b.ask, b.drill, b.node, b.model, b.for_s))
            ),
            web.get("/v1/mesh/drill", _get(control.drill_seen)),
            web.get("/v1/keys", _get(control.keys)),
            web.post("/v1/keys", _post(KeyBody, lambda b: control.create_key(b.name, b.first))),
            web.post("/v1/keys/off", _post(NoBody, lambda _: control.keys_off())),
            web.delete("/v1/keys/{key}", _at(lambda r: control.revoke_key(r.match_info["key"]))),
            web.get("/v1/models", _get(control.models)),
            web.get("/v1/models/{name}", _at(lambda r: control.model(r.match_info["name"]))),
            web.post("/v1/models/{name}/load", _at(lambda r: control.load(r.match_info["name"]))),
            web.post("/v1/models/{name}/unload", _at(lambda r: control.unload(r.match_info["name"]))),
            web.get("/v1/events", _at(lambda r: control.events(_last(r, low=0), _model(r)))),
            web.get("/v1/events/follow", _lines(lambda r: control.follow_events(_last(r, low=0), _model(r)))),
            web.post("/v1/reload", _post(NoBody, lambda _: control.reload())),
            web.post("/v1/stop", _post(StopBody, lambda b: control.stop(b.grace_s))),
        ]
    )
    return app


def _refusal(code: str, message: str, status: int) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
    """A failure is one JSON object, whoever raised it."""
    try:
        response: web.StreamResponse = await handler(request)
    except MeshError as e:
        return _refusal(e.code, str(e), e.status)
    except NodeError as e:
        return _refusal(e.code, e.message, e.status)
    except ConfigError as e:
        return _refusal("config", e.message, 400)
    except web.HTTPException as e:
        return _refusal("no_such_endpoint", f"{request.method} {request.path}: {e.reason}", e.status)
    return response


async def _json(answer: Awaitable[Json]) -> web.Response:
    return web.Response(body=msgspec.json.encode(await answer), content_type="application/json")


def _at(answer: Callable[[web.Request], Awaitable[Json]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return await _json(answer(request))

    return handler


def _get(answer: Callable[[], Awaitable[Json]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    return _at(lambda _: answer())


def _post(body: type[T], answer: Callable[[T], Awaitable[Json]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        try:
            parsed = msgspec.json.decode(await request.read() or b"{}", type=body)
        except msgspec.MsgspecError as e:
            raise MeshError("bad_request", f"{request.path}: {e}") from e
        return await _json(answer(parsed))

    return handler


def _last(request: web.Request, low: int = 1) -> int:
    text = request.query.get("last", "20")
    if not text.isdecimal() or not low <= int(text) <= LAST_MAX:
        raise MeshError("bad_request", f"last={text}: a number from {low} to {LAST_MAX} is wanted")
    return int(text)


def _model(request: web.Request) -> str:
    return request.query.get("model", "")


def _lines(
    news: Callable[[web.Request], AsyncGenerator[Json | None, None]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        """One JSON line for each as it happens, until the caller leaves; empty lines in between."""
        items = news(request)
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        async with aclosing(items) as found:
            with suppress(ConnectionResetError):
                async for one in found:
                    await response.write(b"\n" if one is None else msgspec.json.encode(one) + b"\n")
        return response

    return handler
