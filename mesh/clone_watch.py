"""Whether another machine has a node's id, as it is noticed here: mDNS, gossip, heartbeats and links all tell of it.
clones.py decides; this asks, says and has this node take a new id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, assert_never

import aiohttp
from yarl import URL

from mesh import clones, events
from mesh.addresses import Addresses
from mesh.clones import Ask, Clones, Met, Say, Spoke, Suspected, TakeNewId, Tick
from mesh.driver import Driver
from mesh.gather import STATUS
from mesh.log import event as log_event
from mesh.lookup import body_of
from mesh.settings import CloneSettings
from node.types import NodeId

if TYPE_CHECKING:
    from mesh.daemon import Daemon

_log = logging.getLogger("mesh.clones")


class CloneWatch:
    """One stay in the mesh. `hear` is told all that membership is told; `ask_who` is Links'; `failed` as Driver's."""

    def __init__(
        self,
        daemon: Daemon,
        addresses: Addresses,
        *,
        ask_who: Callable[[Ask], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._daemon, self._addresses, self._ask_who = daemon, addresses, ask_who
        self._settings = CloneSettings()
        self._machine = Clones(daemon.id, self._settings)
        self._driver: Driver[clones.Event, clones.Effect] = Driver(self._machine, Tick(), self._perform, failed=failed)
        self._linked: dict[NodeId, str] = {}
        self._to_ask: asyncio.Queue[Ask] = asyncio.Queue(self._settings.places_max)

    async def run(self) -> None:
        """Until cancelled: asks whom there is to ask."""
        while True:
            place = await self._to_ask.get()
            if await self._is_of_this_id(place):
                self._ask_who(place)

    def close(self) -> None:
        self._driver.close()

    def notes(self) -> list[str]:
        return self._machine.notes()

    def hear(self, event: events.Event) -> None:
        match event:
            case events.Beat(node, boot) if self._linked.get(node) == boot:
                pass  # ten times a second; its link says as much each second
            case events.Beat(node, boot):
                self.tell(Spoke(node, boot))
            case events.LinkUp(hello, address):
                self._linked[hello.id] = hello.boot
                self.tell(Spoke(hello.id, hello.boot, f"{hello.name} at {address}"))
            case events.Rtt(node):  # each second: its link lives
                self.tell(Spoke(node, self._linked.get(node, "")))
            case events.LinkClosed(node):
                self._linked.pop(node, None)
            case events.Seen(peer) | events.Added(peer) if peer.id == self._daemon.id:
                self.suspect(peer.addresses, peer.peer_port)

    def suspect(self, addresses: Sequence[str], peer_port: int) -> None:
        """Somebody says that this node is there."""
        own = {*self._addresses.advertised(), "127.0.0.1", "::1"}
        mine = {(address, self._daemon.config.peer_port) for address in own}
        self.tell(Suspected(tuple(sorted({(address, peer_port) for address in addresses} - mine))))

    def tell(self, event: Spoke | Met | Suspected) -> None:
        self._driver.tell(event)

    def _perform(self, effect: clones.Effect) -> None:
        match effect:
            case Ask():
                with suppress(asyncio.QueueFull):  # it is asked again
                    self._to_ask.put_nowait(effect)
            case TakeNewId(theirs, address):
                self._daemon.mesh.take_new_id(theirs.name, address)
            case Say(text):
                log_event(_log, logging.WARNING, "clone", text)
            case _:
                assert_never(effect)

    async def _is_of_this_id(self, place: Ask) -> bool:
        """Asked without a hello first: another node might take that for a lost link. A copied disk has this node's key;
        of who has another one nothing is believed."""
        tls = self._daemon.peer_tls.client(self._daemon.id)
        if tls is None:
            return False
        url = URL.build(scheme="https", host=place.address, port=place.peer_port, path=STATUS)
        with suppress(TimeoutError, aiohttp.ClientError, OSError, ValueError, RecursionError):
            async with (
                asyncio.timeout(self._settings.answer_s),
                self._daemon.session.get(url, ssl=tls, allow_redirects=False) as answer,
            ):
                said: Any = json.loads(await body_of(answer, self._settings.answer_bytes))
                return isinstance(said, dict) and said.get("id") == self._daemon.id
        return False
