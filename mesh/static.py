"""Peers by hand: `mesh add`, and `mesh-peers`, whose addresses are looked up again for as long as their nodes are not
there: a name may lead elsewhere tomorrow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from mesh.errors import MeshError
from mesh.lookup import split_address
from mesh.member import incompatible
from mesh.settings import PeersSettings
from mesh.wire import PeerSeen
from node.types import NodeId

_TAKE_OUT = "`mlx-stack mesh add` takes it back; else take the address out of `mesh-peers`"


class Finds(Protocol):
    """Lookup, as far as it is needed here."""

    async def node(self, text: str) -> PeerSeen: ...


class StaticPeers:
    """`on_found(peer, by_hand)` is told who answers at an address; `by_hand`: a person has just written it, so a
    removal is taken back. `missing(node)`: it is not there; `removed(node)`: nor should it be. `tell` gets each problem
    once, for the log; `problems` has those of now, by address."""

    def __init__(
        self,
        lookup: Finds,
        *,
        on_found: Callable[[PeerSeen, bool], None],
        missing: Callable[[NodeId], bool],
        removed: Callable[[NodeId], bool],
        tell: Callable[[str], None],
        settings: PeersSettings | None = None,
    ) -> None:
        self._lookup, self._on_found, self._tell = lookup, on_found, tell
        self._missing, self._removed = missing, removed
        self._settings = settings or PeersSettings()
        self._addresses: Sequence[str] | None = None
        self._edited = asyncio.Event()
        self._by_hand: set[str] = set()
        self._told: dict[str, str] = {}
        self.found: dict[str, NodeId] = {}
        self.problems: dict[str, str] = {}

    def set(self, addresses: Sequence[str]) -> None:
        """`mesh-peers` is this now. What is new since the last time was written by hand; what it is first is not."""
        if addresses == self._addresses:
            return
        if self._addresses is not None:
            self._by_hand |= set(addresses) - set(self._addresses) - set(self.found)
        self._addresses = addresses
        self._edited.set()

    async def add(self, address: str) -> PeerSeen:
        """`mesh add`: looks once, now. Raises MeshError: those of Lookup, and other_version."""
        peer = await self._lookup.node(address)
        why = incompatible(peer.protocol, peer.version)
        if why:
            raise MeshError("other_version", f"{peer.name} at {address} {why}", status=409)
        self.found[address] = peer.id
        self._on_found(peer, True)
        return peer

    def others(self, node: NodeId, places: Collection[tuple[str, int]]) -> list[str]:
        """`mesh-peers` without the addresses of this node; `places` are its name, its addresses and its port, for what
        has not been looked up yet."""

        def its_own(address: str) -> bool:
            if address in self.found:
                return self.found[address] == node
            host, port = split_address(address, self._settings.port)
            return bool({(host.lower(), port), (host.lower().partition(".")[0], port)} & set(places))

        return [address for address in self._addresses or () if not its_own(address)]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._edited.clear()
            addresses = self._addresses or ()
            for kept in (self.found, self.problems, self._told):
                for address in set(kept) - set(addresses):
                    del kept[address]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep(address)) for address in addresses]
                await self._edited.wait()
                for task in tasks:
                    task.cancel()

    async def _keep(self, address: str) -> None:
        """Looks with growing pauses while nobody, or not the node found last, is there."""
        s = self._settings
        pause_s = s.retry_first_s
        while True:
            node = self.found.get(address)
            if node is not None and self._removed(node):
                self._problem(address, MeshError("removed", "that node was removed from this mesh", hint=_TAKE_OUT))
            elif node is not None and not self._missing(node):
                self.problems.pop(address, None)
                self._told.pop(address, None)
            else:
                await self._look(address)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, s.retry_max_s)
                continue
            pause_s = s.retry_first_s
            await asyncio.sleep(s.look_s)

    async def _look(self, address: str) -> None:
        try:
            peer = await self._lookup.node(address)
        except MeshError as error:
            self._problem(address, error)
            return
        self.problems.pop(address, None)
        self.found[address] = peer.id
        self._on_found(peer, address in self._by_hand)
        self._by_hand.discard(address)

    def _problem(self, address: str, error: MeshError) -> None:
        self.problems[address] = str(error)
        if self._told.get(address) != error.code:
            self._told[address] = error.code
            self._tell(f"mesh-peers {address}: {error}")
