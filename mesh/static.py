"""`mesh-peers`: nodes named by address, looked for until they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mesh.errors import MeshError
from mesh.peers import find_static
from mesh.wire import PeerSeen
from node.types import NodeId


class StaticPeers:
    """`found` says who answered at which address, `problems` why the others have not."""

    def __init__(self, resolve: Callable[[str], Awaitable[PeerSeen]], on_found: Callable[[PeerSeen], None]) -> None:
        self._resolve, self._on_found = resolve, on_found
        self._addresses: Sequence[str] = ()
        self._edited = asyncio.Event()
        self.found: dict[str, NodeId] = {}
        self.problems: dict[str, str] = {}

    def set(self, addresses: Sequence[str]) -> None:
        """Looks for these from now on."""
        if addresses != self._addresses:
            self._addresses = addresses
            self._edited.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._edited.clear()
            self.problems.clear()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._find(address)) for address in self._addresses]
                await self._edited.wait()
                for task in tasks:
                    task.cancel()

    async def _find(self, address: str) -> None:
        def found(peer: PeerSeen) -> None:
            self.problems.pop(address, None)
            self.found[address] = peer.id
            self._on_found(peer)

        def failed(text: str, error: MeshError) -> None:
            self.problems[text] = str(error)

        await find_static(address, self._resolve, on_found=found, on_problem=failed)
