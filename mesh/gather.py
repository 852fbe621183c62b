"""What only other nodes know: the coordinator's account, and the routes each edge keeps. Asked over the peer port."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Struct
from yarl import URL

from mesh.status import Json
from router.account import Account
from router.view import NodeState, NodeView

if TYPE_CHECKING:
    from mesh.daemon import Daemon

T = TypeVar("T")
STATUS = "/mesh/v1/status"
ACCOUNT_S = 0.5  # a coordinator on the LAN answers in milliseconds; after this its last account stands
ROUTES_S = 2.0
LAST_MAX = 100_000


class _PeerStatus(Struct, frozen=True):
    """The part of a coordinator's /mesh/v1/status that is asked for."""

    account: Account


class Gatherer:
    """Asks and answers such questions for one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes_defs(self) -> list[web.RouteDef]:
        """What this node answers on its peer port."""
        return [
            web.get(STATUS, self._answer_status),
            web.get("/mesh/v1/routes", self._answer_routes),
            web.get("/mesh/v1/routes/{id}", self._answer_route),
        ]

    async def account(self) -> Account:
        """The coordinator's count of every open request, as of now; its last one, or our own, if it does not answer."""
        view = self._daemon.membership.view()
        if view.coordinator not in (None, self._daemon.id):
            node = view.node(view.coordinator)
            answer = await self._ask(node, STATUS, _PeerStatus, ACCOUNT_S) if node else None
            if answer is not None:
                return answer.account
            overlay = self._daemon.overlay
            if overlay is not None and overlay.last_account is not None:
                return overlay.last_account
        return self._daemon.dispatch.account()

    async def routes(self, last: int) -> Json:
        """The newest `last` routes of all nodes together, and the names of those that did not answer, the dead too:
        what came in there is missing."""
        others = [n for n in self._daemon.membership.view().nodes if self._is_other(n)]
        own, *answers = await asyncio.gather(
            asyncio.to_thread(self._daemon.store.last, last),
            *(self._ask(n, f"/mesh/v1/routes?last={last}", list[dict[str, Any]], ROUTES_S) for n in others),
        )
        names = self._daemon.membership.view().names()
        routes = list(own)
        for answer in answers:
            routes += answer or []
        routes.sort(key=lambda route: str(route.get("at")), reverse=True)
        dead = [n for n in self._daemon.membership.view().nodes if n.state is NodeState.DEAD]
        silent = [n for n, answer in zip(others, answers, strict=True) if answer is None]
        unreachable = sorted({names[n.report.id] for n in (*silent, *dead) if n.report.id in names})
        return {"routes": routes[:last], "unreachable": unreachable}

    async def route(self, route_id: str) -> Json | None:
        """The route with this id (or unique start of one, or client's request id), from whichever node keeps it."""
        own = await asyncio.to_thread(self._daemon.store.find, route_id)
        if own is not None:
            return own
        others = [n for n in self._daemon.membership.view().nodes if self._is_other(n)]
        answers = await asyncio.gather(
            *(self._ask(n, f"/mesh/v1/routes/{quote(route_id, safe='')}", dict[str, Any], ROUTES_S) for n in others)
        )
        return next((answer for answer in answers if answer), None)

    def _is_other(self, node: NodeView) -> bool:
        """Worth asking: alive or nearly."""
        alive = (NodeState.OK, NodeState.SUSPECT, NodeState.DRAINING)
        return node.report.id != self._daemon.id and node.state in alive

    async def _ask(self, node: NodeView | None, path: str, answer: type[T], limit_s: float) -> T | None:
        """GET `path` from a member's peer port; None when it does not answer in time, or not sensibly."""
        tls = self._daemon.peer_tls.client(node.report.id) if node is not None else None
        if node is None or tls is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for address in node.addresses:
                    with suppress(aiohttp.ClientError, msgspec.MsgspecError, OSError, ValueError, RecursionError):
                        url = URL.build(scheme="https", host=address, port=node.report.peer_port).join(URL(path))
                        async with self._daemon.session.get(url, ssl=tls) as response:
                            if response.status == 200:
                                return msgspec.json.decode(await response.read(), type=answer)
                            if response.status == 404:
                                return None
        return None

    async def _answer_status(self, _request: web.Request) -> web.Response:
        d = self._daemon
        view = d.membership.view()
        body = {"id": d.id, "coordinator": view.coordinator, "term": view.term, "account": d.dispatch.account()}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _answer_routes(self, request: web.Request) -> web.Response:
        text = request.query.get("last", "20")
        last = min(int(text), LAST_MAX) if text.isdecimal() else 20
        found = await asyncio.to_thread(self._daemon.store.last, last)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _answer_route(self, request: web.Request) -> web.Response:
        found = await asyncio.to_thread(self._daemon.store.find, request.match_info["id"])
        if found is None:
            return web.json_response({}, status=404)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")
