"""Who belongs, as the admin API asks for it: open, close, accept, invite, add, remove."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mesh import clock
from mesh.checks import Token
from mesh.errors import MeshError
from mesh.lookup import bare_address
from mesh.names import resolve
from mesh.status import Json
from mesh.wire import PeerSeen
from node.types import NodeId
from router.view import NodeState

if TYPE_CHECKING:
    from mesh.daemon import Daemon
    from mesh.overlay import Overlay

ADDED_S = 2.0  # for a peer that was added to be linked and heard before its state is told
JOINED_S = 15.0  # for two meshes to become one: a join call, leaving the old mesh, links


class TrustControl:
    """`overlay` raises MeshError while the mesh is off; `set_peers` writes `mesh-peers`; `until` waits."""

    def __init__(
        self,
        daemon: Daemon,
        overlay: Callable[[], Overlay],
        set_peers: Callable[[list[str]], Awaitable[None]],
        until: Callable[[Callable[[], bool], float], Awaitable[bool]],
    ) -> None:
        self._daemon, self._overlay, self._set_peers, self._until = daemon, overlay, set_peers, until

    async def open_window(self, for_s: float | None) -> Json:
        left_s = self._overlay().joins.porter.open(for_s)
        await self._daemon.files.flush()
        return {"open": True, "for_s": round(left_s, 1), "mesh_id": self._daemon.trust.mesh_id}

    async def close_window(self) -> Json:
        self._overlay().joins.porter.close_window()
        await self._daemon.files.flush()
        return {"open": False, "for_s": 0.0, "mesh_id": self._daemon.trust.mesh_id}

    async def invite(self) -> Json:
        joins = self._overlay().joins
        token = joins.porter.invite().text()
        await self._daemon.files.flush()
        command = f"mlx-stack mesh enable --invite {token}"
        return {"token": token, "for_s": joins.settings.invite_s, "command": command}

    async def accept(self, name: str, check: str) -> Json:
        node, shown, done = self._overlay().joins.porter.accept(name, check)
        await self._daemon.files.flush()
        return {"name": shown, "id": node, "done": done}

    async def use_invite(self, token: Token) -> None:
        """`mesh enable --invite`: returns once this node is in that mesh. Raises MeshError."""
        await self._joined(token, None)

    async def add_peer(self, address: str, invite: str) -> Json:
        address, overlay = bare_address(address), self._overlay()
        if invite:
            token = Token.parse(invite)
            peer = await overlay.lookup.node(address, any_mesh=True)
            await self._joined(token, peer)
            return await self._added(peer)  # it is on the side that was there before; `mesh-peers` would say otherwise
        peer = await overlay.static.add(address)
        if peer.id not in self._daemon.trust.members:
            await self._together(peer, address)
        await self._set_peers([*self._daemon.config.mesh_peers, address])
        return await self._added(peer)

    async def _joined(self, token: Token, peer: PeerSeen | None) -> None:
        d, before = self._daemon, self._overlay()
        if await before.joins.use(token, peer):
            await self._until(lambda: d.overlay not in (None, before), JOINED_S)
        await self._until(lambda: bool(d.membership.alive()), JOINED_S)

    async def _together(self, peer: PeerSeen, address: str) -> None:
        """Two that are not in one mesh: one goes to the other where the windows allow it; else says what to do."""
        d, joins = self._daemon, self._overlay().joins
        known = d.trust.removed.get(peer.id)
        if known is not None:
            raise MeshError(
                "removed", f"{peer.name} was removed from this mesh", status=409,
                hint=f"it asks to be let back while it runs: `mlx-stack mesh accept {known.name}`",
            )  # fmt: skip
        await joins.knock(peer.addresses, peer.peer_port)

        def settled() -> bool:
            here = d.overlay
            return peer.id in d.trust.members or (here is not None and here.joins.waits_for(peer.id))

        await self._until(settled, JOINED_S)
        if d.overlay is not None and d.overlay.joins.waits_for(peer.id):
            return
        if peer.id not in d.trust.members:
            raise MeshError(
                "not_a_member", f"{peer.name} at {address} is in another mesh, and neither lets the other in by itself",
                hint="`mlx-stack mesh invite` here, then there `mlx-stack mesh add HOST --invite TOKEN` with the "
                "address of this Mac", status=409,
            )  # fmt: skip

    async def _added(self, peer: PeerSeen) -> Json:
        d = self._daemon
        unsettled = (NodeState.WAITING, NodeState.SUSPECT)

        def heard() -> bool:
            found = d.membership.view().node(peer.id)
            return found is not None and (found.state not in unsettled or not found.member)

        await self._until(heard, ADDED_S)
        names, node = d.membership.view().names(), d.membership.view().node(peer.id)
        there = {"state": NodeState.WAITING.value, "reason": "", "far": peer.far, "via": peer.via}
        if node is not None:
            there = {"state": node.state.value, "reason": node.reason, "far": node.far, "via": node.via}
        return {"name": names.get(peer.id, peer.name), "id": peer.id, **there}

    async def remove_node(self, name: str) -> Json:
        d = self._daemon
        view = d.membership.view()
        node = self._meant(name)
        if node == d.id:
            raise MeshError("self", "this is the node itself", hint="`mlx-stack mesh disable` leaves the mesh")
        overlay = self._overlay()
        found = view.node(node)
        member = d.trust.members.get(node)
        shown = view.names().get(node) or (member.name if member else node)
        hosts = (shown.lower(), *(found.addresses if found else ()))
        port = found.report.port if found else d.config.port
        others = overlay.static.others(node, {(host, port) for host in hosts})
        if member is not None:
            d.trust.remove(node)
        waited = overlay.joins.porter.forget(node)
        if member is None and not waited:
            overlay.remove(node)
        await d.files.flush()
        await self._set_peers(others)
        return {"removed": shown, "id": node, "member": member is not None}

    def _meant(self, name: str) -> NodeId:
        """Also a member that was not seen for so long that it is shown no more. Raises MeshError."""
        try:
            return resolve(self._daemon.membership.view(), name)
        except MeshError as error:
            members = self._daemon.trust.members.values()
            meant = [m.node for m in members if name.strip().lower() in (m.name.lower(), m.node)]
            if error.code != "unknown_node" or len(meant) != 1:
                raise
            return meant[0]

    def checks(self) -> dict[NodeId, str]:
        """The numbers that people compare."""
        return self._daemon.overlay.joins.porter.checks() if self._daemon.overlay is not None else {}

    def window_s(self) -> float:
        """For how long the mesh lets nodes in by themselves; 0 when it does not."""
        if self._daemon.overlay is None or not self._daemon.trust.belongs:
            return 0.0
        return round(self._daemon.doors.door.left_s(clock.now()), 1)
