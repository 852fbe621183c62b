"""The edge: the OpenAI API at :4000. Which path is whose is decided here; one request is an Exchange."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from node.crowd import Crowd
from node.errors import NodeError, NodeErrorCode
from node.http_reply import Answer
from node.http_request import Fault, Head, path_of
from node.io.http_client import HttpClient
from node.io.turn import Incoming, Outgoing
from node.settings import CrowdSettings
from node.types import NodeId
from router import catalog
from router.asked import CHAT, COMPLETIONS
from router.errors import ErrorCode, Refusal
from router.facts import RouteFact
from router.guard import Denied, Guard, Passed
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

    `guard` says who may ask; who may not leaves no route, and `turned_away` hears of it and of the client's address.
    `report` gets one RouteFact per other POST, whatever happened. `count` is told ("client_in" | "client_out" |
    "peer_in" | "peer_out", bytes) of bodies and blocks. `metrics` gives the body of /metrics. `limited` hears the name
    of each limit that a request met. `tls` believes one member; for a stranger there is none.
    """

    def __init__(
        self,
        *,
        view: Callable[[], View],
        dispatch: Placing,
        host: Serving,
        http: HttpClient,
        tls: Callable[[NodeId], ssl.SSLContext | None],
        settings: EdgeSettings,
        report: Callable[[RouteFact], None],
        count_bytes: Callable[[str, int], None],
        metrics: Callable[[], bytes],
        guard: Guard,
        turned_away: Callable[[Denied, str], None] = lambda _denied, _client: None,
        limited: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._guard, self._turned_away = guard, turned_away
        self._view, self._host, self._settings = view, host, settings
        self._http, self._tls = http, tls
        self._count = count_bytes
        self._means = Means(
            view=view,
            dispatch=dispatch,
            hop=self._hop,
            bodies=Bodies(settings, limited),
            keep=Keep(settings.kept_stream_bytes, settings.kept_limit_bytes),
            lengths=Lengths(settings.prompt),
            lately=Lately(settings.lately_s, settings.lately_names),
            settings=settings,
            report=report,
            count=count_bytes,
            limited=limited,
        )
        self._limited = limited
        self._open: dict[Exchange, Passed] = {}
        self._crowd = Crowd(
            CrowdSettings(
                all_max=settings.open_limit,
                address_max=settings.open_address_limit,
                loopback_max=settings.open_loopback_limit,
            )
        )
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

    def middleware(self) -> Middleware:
        """The same guard, before what is aiohttp's."""

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            fields = {name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers}
            verdict = self._guard.judge(request.method, request.path, fields, request.remote or "")
            if isinstance(verdict, Denied):
                self._turned_away(verdict, request.remote or "")
                return envelope.as_web(envelope.denied(verdict))
            if not isinstance(verdict, Passed):
                return envelope.as_web(envelope.preflight(verdict))
            response = await handler(request)
            response.headers.update(verdict.fields)
            return response

        return guarded

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead: what runs there is taken elsewhere without waiting for its sockets."""
        if (found := self._view().node(node)) is not None:
            names = (name for model in found.report.models for name in catalog.names_of(model))
            self._means.lately.lost(names, asyncio.get_running_loop().time())
        for exchange in tuple(self._open):
            exchange.node_lost(node)

    def keys_changed(self) -> None:
        """Ends what was asked with a key that counts no more."""
        for exchange, passed in tuple(self._open.items()):
            if not self._guard.still(passed):
                exchange.dismiss()

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
            return envelope.as_web(envelope.wrong_method(f"{catalog.shown(path)} can only be read (GET)", "GET, HEAD"))
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
        head, path = incoming.head, path_of(incoming.head.target)
        verdict = self._guard.judge(head.method, path, head.fields, incoming.client)
        if not isinstance(verdict, Passed):
            assert isinstance(verdict, Denied), "no POST is a preflight"
            self._turned_away(verdict, incoming.client)
            outgoing.whole(envelope.denied(verdict))
            return
        outgoing.also = verdict.fields
        closed = self._closed(incoming.client)  # before it counts itself
        exchange = Exchange(self._means, incoming, outgoing, path[4:], verdict.key)
        self._open[exchange] = verdict
        self._crowd.enter(incoming.client)
        self._idle.clear()
        try:
            if self._stopping:
                exchange.last()
            answer = await exchange.run(closed, lambda: self._leaving() or self._revoked(verdict))
            if answer is not None:
                outgoing.whole(answer)
            elif outgoing.ended:
                return
            elif outgoing.status:
                outgoing.end()
            else:
                outgoing.abort()  # it has left
        finally:
            del self._open[exchange]
            self._crowd.leave(incoming.client)
            if not self._open:
                self._idle.set()

    def _closed(self, client: str) -> Refusal | None:
        """Why this edge takes no request of that address now."""
        if (leaving := self._leaving()) is not None:
            return leaving
        match self._crowd.full(client):
            case "address":
                self._limited("address_streams")
                most = self._crowd.most(client)
                return Refusal(
                    ErrorCode.RATE_LIMITED,
                    f"{most} requests from your address are open here already (`requests-per-address`)",
                )
            case "all":
                self._limited("streams")
                return Refusal(ErrorCode.MESH_SATURATED, f"{self._crowd.count} requests are open here already")
            case None:
                return None

    def _leaving(self) -> Refusal | None:
        """Asked again once a body is there: a node that has left its mesh meanwhile knows of nobody to send it to."""
        if not self._stopping:
            return None
        return Refusal(ErrorCode.NO_NODE_AVAILABLE, "this node is stopping", self._settings.stopping_retry_s)

    def _revoked(self, passed: Passed) -> Refusal | None:
        """While its body came."""
        if self._guard.still(passed):
            return None
        return Refusal(ErrorCode.INVALID_API_KEY, f"the API key '{passed.key}' was revoked meanwhile")

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
        if (tls := self._tls(node)) is None:
            raise NodeError(NodeErrorCode.UNREACHABLE, f"{found.report.name} is no member of this mesh")
        return HttpHop(
            self._http,
            addresses=found.addresses or found.report.addresses,
            port=found.report.peer_port,
            tls=tls,
            settings=self._settings,
            count=self._count,
        )
