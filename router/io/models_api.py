"""What a client may read at :4000 besides answers: models, health, readiness, metrics, and who this node is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from router import catalog
from router.errors import ErrorCode, Refusal
from router.io import envelope
from router.settings import EdgeSettings
from router.view import View

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class ModelsApi:
    """Read-only handlers. `unready` says why this edge itself takes no requests (it is stopping), or None."""

    def __init__(
        self,
        view: Callable[[], View],
        settings: EdgeSettings,
        metrics: Callable[[], bytes],
        unready: Callable[[], str | None],
    ) -> None:
        self._view, self._settings, self._metrics, self._unready = view, settings, metrics, unready
        self._created = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self._models),
            web.get("/v1/models/{id:.+}", self._model),
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.get("/metrics", self._figures),
            web.get("/.well-known/mlx-stack", self._well_known),
        ]

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": catalog.listing(self._view(), self._created)})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        view = self._view()
        for model in catalog.listing(view, self._created):
            if model["id"] == name:
                return _json(model)
        message = catalog.not_found(view, name, self._settings.names_listed)
        refusal = Refusal(ErrorCode.MODEL_NOT_FOUND, message, param="model")
        return envelope.as_web(envelope.refused(refusal, {}, retry_after_s=self._settings.retry_after_s))

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        reason = self._unready() or catalog.why_not_ready(self._view())
        return _json({"ready": reason is None, "reason": reason}, status=200 if reason is None else 503)

    async def _figures(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"content-type": PROMETHEUS})

    async def _well_known(self, _: web.Request) -> web.Response:
        """Who answers here, so that another node can find our peer port from an address a person knows."""
        view = self._view()
        node = view.node(view.self_id)
        assert node is not None
        me = node.report
        return _json(
            {
                "id": me.id,
                "name": me.name,
                "mesh": view.mesh_name,
                "mesh_id": view.mesh_id,
                "version": me.version,
                "protocol": me.protocol,
                "peer_port": me.peer_port,
            }
        )


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
