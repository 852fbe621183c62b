"""The edge: the OpenAI API at :4000. Which path is whose is decided here; one request is an Exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.http_reply import Answer
from node.http_request import Fault, Head, path_of
from node.io.http_client import HttpClient
from node.io.turn import Incoming, Outgoing
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
from router.lately import Lately
from router.lengths import Lengths
from router.settings import EdgeSettings
from router.view import NodeState, View

_READ_ONLY = ("/v1/models", "/health", "/ready", "/metrics", "/.well-known/mlx-stack")


class Edge:
    """All of :4000: what it carries is the front's (node/io/front.py), whose Application it is; `routes` are aiohttp's.
    A client that goes away cancels `answer`, and that cancels through to the worker.

    `report` gets one RouteFact per POST, whatever happened. `count` is told ("client_in" | "client_out" | "peer_in" |
    "peer_out", bytes) of bodies and blocks. `metrics` gives the body of /metrics.
    """

    def __init__(
        self,
        *,
        view: Callable[[], View],
        dispatch: Placing,
        host: Serving,
        http: HttpClient,
        settings: EdgeSettings,
        report: Callable[[RouteFact], None],
        count_bytes: Callable[[str, int], None],
        metrics: Callable[[], bytes],
    ) -> None:
        self._view, self._host, self._http, self._settings = view, host, http, settings
        self._count = count_bytes
        self._means = Means(
            view=view,
            dispatch=dispatch,
            hop=self._hop,
            bodies=Bodies(settings),
            keep=Keep(settings.kept_stream_bytes, settings.kept_limit_bytes),
            lengths=Lengths(settings.prompt),
            lately=Lately(settings.lately_s, settings.lately_names),
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
        """All that is not carried. The last one takes what the others do not, so that every error is an envelope."""
        return [
            *self._models.routes(),
            web.route("*", "/{path:(?s:.*)}", self._other),
        ]

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead: what runs there is taken elsewhere without waiting for its sockets."""
        if (found := self._view().node(node)) is not None:
            names = (name for model in found.report.models for name in catalog.names_of(model))
            self._means.lately.lost(names, asyncio.get_running_loop().time())
        for exchange in tuple(self._open):
            exchange.node_lost(node)

    async def drain(self, grace_s: float) -> None:
        """Take no new requests (503) and return when the open ones have ended, or after `grace_s` seconds."""
        self._stopping = True
        for exchange in tuple(self._open):
            exchange.last()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _other(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        below = path.removeprefix("/v1/")
        if path in _READ_ONLY or path.startswith("/v1/models/"):
            return envelope.as_web(envelope.wrong_method(f"{path} can only be read (GET)", "GET, HEAD"))
        if below == path or request.method == "POST" or not self._carried(below):
            return envelope.as_web(envelope.no_such_path(f"there is no {catalog.shown(path)} here"))
        return envelope.as_web(envelope.wrong_method(f"{catalog.shown(path)} takes POST only", "POST"))

    def _carried(self, below: str) -> bool:
        return below in (CHAT, COMPLETIONS) or catalog.known_path(self._view(), below)

    def takes(self, head: Head) -> bool:
        """Of the front: is this request carried?"""
        if head.method != "POST":
            return False
        path = path_of(head.target)
        return path.startswith("/v1/") and self._carried(path[4:])

    def malformed(self, fault: Fault) -> Answer:
        """Of the front."""
        return envelope.malformed(fault)

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        """Of the front: one carried request, from its head to its answer's end."""
        closed = self._closed()  # before it counts itself
        exchange = Exchange(self._means, incoming, outgoing, path_of(incoming.head.target)[4:])
        self._open.add(exchange)
        self._idle.clear()
        try:
            if self._stopping:
                exchange.last()
            answer = await exchange.run(closed, self._leaving)
            if answer is not None:
                outgoing.whole(answer)
            elif outgoing.ended:
                return
            elif outgoing.status:
                outgoing.end()
            else:
                outgoing.abort()  # it has left
        finally:
            self._open.discard(exchange)
            if not self._open:
                self._idle.set()

    def _closed(self) -> Refusal | None:
        """Why this edge takes no request now."""
        if (leaving := self._leaving()) is not None:
            return leaving
        if len(self._open) >= self._settings.open_limit:
            return Refusal(ErrorCode.MESH_SATURATED, f"{self._settings.open_limit} requests are open here already")
        return None

    def _leaving(self) -> Refusal | None:
        """Asked again once a body is there: a node that has left its mesh meanwhile knows of nobody to send it to."""
        if not self._stopping:
            return None
        return Refusal(ErrorCode.NO_NODE_AVAILABLE, "this node is stopping", self._settings.stopping_retry_s)

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
            self._http,
            addresses=found.addresses or found.report.addresses,
            port=found.report.peer_port,
            settings=self._settings,
            count=self._count,
        )
