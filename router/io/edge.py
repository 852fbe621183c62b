"""The edge: the OpenAI API at :4000. Which path is whose is decided here; one request is an Exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.types import NodeId
from router import catalog
from router.asked import CHAT, COMPLETIONS
from router.errors import ErrorCode, Refusal
from router.facts import RouteFact
from router.io import envelope
from router.io.bodies import Bodies
from router.io.carry import Hop, HttpHop, LocalHop, Serving
from router.io.exchange import Exchange
from router.io.means import Means, Placing
from router.io.models_api import ModelsApi
from router.kept import Keep
from router.lengths import Lengths
from router.settings import EdgeSettings
from router.view import NodeState, View

_READ_ONLY = ("/v1/models", "/health", "/ready", "/metrics", "/.well-known/mlx-stack")


class Edge:
    """All of :4000. The application that serves `routes` must run with `handler_cancellation=True`: a client that goes
    away cancels its handler, and that cancels through to the worker.

    `report` gets one RouteFact per POST, whatever happened. `count` is told ("client_in" | "client_out" | "peer_in" |
    "peer_out", bytes) of bodies and blocks. `metrics` gives the body of /metrics.
    """

    def __init__(
        self,
        *,
        view: Callable[[], View],
        dispatch: Placing,
        host: Serving,
        session: aiohttp.ClientSession,
        settings: EdgeSettings,
        report: Callable[[RouteFact], None],
        count_bytes: Callable[[str, int], None],
        metrics: Callable[[], bytes],
    ) -> None:
        self._view, self._host, self._session, self._settings = view, host, session, settings
        self._count = count_bytes
        self._means = Means(
            view=view,
            dispatch=dispatch,
            hop=self._hop,
            bodies=Bodies(settings),
            keep=Keep(settings.kept_stream_bytes, settings.kept_limit_bytes),
            lengths=Lengths(settings.prompt),
            settings=settings,
            report=report,
            count=count_bytes,
        )
        self._open: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._models = ModelsApi(view, settings, metrics, lambda: "this node is stopping" if self._stopping else None)

    @property
    def open_requests(self) -> int:
        """Requests this edge has accepted and not yet answered to the end."""
        return len(self._open)

    @property
    def kept_bytes(self) -> int:
        """Of what clients were sent, kept so that their answers can go on elsewhere."""
        return self._means.keep.held_bytes

    def routes(self) -> list[web.RouteDef]:
        """The last one takes what the others do not, so that every error is an envelope."""
        return [
            web.post(f"/v1/{CHAT}", self._post),
            web.post(f"/v1/{COMPLETIONS}", self._post),
            *self._models.routes(),
            web.route("*", "/{path:(?s:.*)}", self._other),
        ]

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead: what runs there is taken elsewhere without waiting for its sockets."""
        for exchange in tuple(self._open):
            exchange.node_lost(node)

    async def drain(self, grace_s: float) -> None:
        """Take no new requests (503) and return when the open ones have ended, or after `grace_s` seconds."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _other(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        below = path.removeprefix("/v1/")
        if path in _READ_ONLY or path.startswith("/v1/models/"):
            return envelope.wrong_method(f"{path} can only be read (GET)", "GET, HEAD")
        if below == path or not catalog.known_path(self._view(), below):
            return envelope.no_such_path(f"there is no {catalog.shown(path)} here")
        if request.method != "POST":
            return envelope.wrong_method(f"{catalog.shown(path)} takes POST only", "POST")
        return await self._post(request)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        closed = self._closed()  # before it counts itself
        exchange = Exchange(self._means, request, request.path.removeprefix("/v1/"))
        self._open.add(exchange)
        self._idle.clear()
        try:
            response = await exchange.run(closed)
            if self._stopping:
                response.force_close()  # the client's next request shall look for a node that stays
            return response
        finally:
            self._open.discard(exchange)
            if not self._open:
                self._idle.set()

    def _closed(self) -> Refusal | None:
        """Why this edge takes no request now."""
        if self._stopping:
            wait_s = self._settings.stopping_retry_s
            return Refusal(ErrorCode.NO_NODE_AVAILABLE, "this node is stopping", wait_s)
        if len(self._open) >= self._settings.open_limit:
            return Refusal(ErrorCode.MESH_SATURATED, f"{self._settings.open_limit} requests are open here already")
        return None

    def _hop(self, node: NodeId) -> Hop:
        view = self._view()
        if node == view.self_id:
            return LocalHop(self._host)
        found = view.node(node)
        if found is None:
            raise NodeError(NodeErrorCode.UNREACHABLE, "this edge does not know that node")
        if found.state is NodeState.DEAD:  # The coordinator may hear it; from here only time would be lost on it.
            raise NodeError(
                NodeErrorCode.UNREACHABLE, f"from here {found.report.name} cannot be reached: {found.reason}"
            )
        return HttpHop(
            self._session,
            addresses=found.addresses or found.report.addresses,
            port=found.report.peer_port,
            rtt_s=found.rtt_s,
            settings=self._settings,
            count=self._count,
        )
