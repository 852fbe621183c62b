"""The coordinator's host names: who may hold them, and when to take and leave them. name_owner.py does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from election.messages import Role
from mesh.addresses import Addresses
from mesh.name_owner import NameOwner, hosts_of
from node.types import NodeId
from router.view import View


class Title:
    """Claims the names for this node when it coordinates, lets them go when it does not. `name` is the one held for
    people, "" for none; `changed` is called when it differs."""

    def __init__(
        self, owner: NameOwner, addresses: Addresses, view: Callable[[], View], changed: Callable[[], None]
    ) -> None:
        self._owner, self._addresses, self._view, self._changed = owner, addresses, view, changed
        self._role: Role = Role.FOLLOWER
        self._coordinator: NodeId | None = None
        self._news = asyncio.Event()
        self.name = ""

    def rule(self, role: Role, coordinator: NodeId | None) -> None:
        """What the election says now."""
        self._role, self._coordinator = role, coordinator
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        predecessor: tuple[str, ...] = ()  # addresses of the coordinator before
        while True:
            await self._news.wait()
            self._news.clear()
            view = self._view()
            if self._may_hold(view):
                self.name = await self._owner.claim(
                    hosts_of(view.mesh_name),
                    self._addresses.advertised(),
                    old_addresses=predecessor,
                    ours=[address for node in view.nodes for address in node.report.addresses],
                    fallback=f"mlx-mesh-{view.mesh_id[:4]}.local.",
                )
            elif self.name:
                self._owner.release(goodbye=self._coordinator is None)
                self.name = ""
            holder = view.node(self._coordinator) if self._coordinator else None
            if holder is not None:
                predecessor = holder.report.addresses
            self._changed()

    def _may_hold(self, view: View) -> bool:
        """The coordinator does; a lone node too, unless it never coordinates (then it follows nobody)."""
        return self._role is Role.COORDINATOR or (self._role is Role.ALONE and self._coordinator == view.self_id)
