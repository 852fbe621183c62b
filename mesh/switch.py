"""The mesh, on and off: joins it, leaves it in order, and begins anew when it failed. The node serves all the while."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from mesh import clock
from mesh import config as configuration
from mesh.errors import MeshError
from mesh.events import Switch
from mesh.log import event
from mesh.overlay import Overlay
from mesh.wire import KeysFrame
from node.types import RunningReport

if TYPE_CHECKING:
    from mesh.config import Config
    from mesh.daemon import Daemon
    from mesh.joiner import Way

REJOIN_S = 5.0
LEAVE_GRACE_S = 30.0  # for peers' requests to end here before this node says goodbye

_log = logging.getLogger("mesh.switch")


class MeshSwitch:
    """One daemon's stays in the mesh, one after another; `overlay` is the present one. `leaving` says why this node
    takes no more of the mesh's requests, while it leaves."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._task: asyncio.Task[None] | None = None
        self._switching = asyncio.Lock()
        self._tasks: asyncio.TaskGroup
        self.overlay: Overlay | None = None
        self.leaving = ""
        self.fallen = ""  # why this node is out of the mesh for a moment, for people
        self.renamed = ""  # why this node has another id than at its start, for people

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Its tasks run in `tasks` from now on."""
        self._tasks = tasks

    async def turn(self, config: Config) -> None:
        """Makes the mesh what `config` says: off, or on with its name, priority and static peers. Raises MeshError when
        it cannot be joined; then the daemon's configuration is what it was."""
        d = self._daemon
        async with self._switching:
            if config.mesh_name != d.config.mesh_name:
                # It may be older than an invite that has led into a mesh of another name meanwhile.
                config = structs.replace(config, mesh_name=configuration.load(d.home).mesh_name)
            config = d.in_effect(config)
            before, d.config = d.config, config
            if self.overlay is not None and (not config.mesh_enabled or config.mesh_name != before.mesh_name):
                await self._leave(LEAVE_GRACE_S)
            if self.overlay is not None:
                self.overlay.retune(config)
            elif config.mesh_enabled and not d.stopping:
                try:
                    await self._join()
                except MeshError:
                    d.config = before
                    if before.mesh_enabled:
                        self._tasks.create_task(self._begin_anew(None))
                    raise
        d.publish()

    async def leave(self, why: str, grace_s: float) -> None:
        """For good: finishes what peers asked of this node, says goodbye, and goes on alone."""
        self.leaving = why
        async with self._switching:
            if self.overlay is not None:
                await self._leave(grace_s)

    def tell_keys(self, frame: KeysFrame) -> None:
        """The keys of clients have changed here."""
        if self.overlay is not None:
            self.overlay.tell_keys(frame)

    def take_new_id(self, other: str, address: str) -> None:
        """`other`, which runs longer, has this node's id: its disk was copied. Goes on under a new one, at once."""
        self._tasks.create_task(self._renew(other, address))

    async def _renew(self, other: str, address: str) -> None:
        d = self._daemon
        async with self._switching:
            before = d.id
            try:
                if self.overlay is not None:
                    await self._leave(LEAVE_GRACE_S)
                await d.take_new_id()
                self.renamed = (
                    f"this node has the new id {d.id}: {other} at {address}, which runs longer, has the one it had, "
                    f"{before} (a copied disk); nothing is left to do"
                )
                event(_log, logging.WARNING, "clone", self.renamed)
                if self._wanted():
                    await self._join()
            except Exception as e:  # noqa: BLE001 - as in _keep
                event(_log, logging.ERROR, "mesh", f"the mesh cannot be begun under a new id: {e}; trying again")
                self._tasks.create_task(self._begin_anew(None))
        d.publish()

    def fall(self, for_s: float, why: str) -> None:
        """Out of the mesh at once, as a crash looks to the others; after `for_s` seconds it joins again by itself."""
        self._tasks.create_task(self._fall(for_s, why))

    async def _fall(self, for_s: float, why: str) -> None:
        d = self._daemon
        async with self._switching:
            overlay = self.overlay
            if overlay is None:
                return
            self.fallen = why
            event(_log, logging.WARNING, "drill", why)
            try:
                await overlay.fall()
            except Exception:  # noqa: BLE001 - as in _leave
                _log.exception("falling out of the mesh")
            await self._left(overlay)
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await d.until_stopped()
        self.fallen = ""
        try:
            async with self._switching:
                if self._wanted():
                    await self._join()
        except Exception as e:  # noqa: BLE001 - as in _keep
            event(_log, logging.ERROR, "mesh", f"the mesh cannot be begun after a drill: {e}; trying again")
            self._tasks.create_task(self._begin_anew(None))
        d.publish()

    async def _join(self) -> None:
        d = self._daemon
        d.boot = secrets.token_hex(4)  # each stay is a life of its own: no term or datagram of an earlier one
        name = d.config.mesh_name
        self._found(name)
        d.membership.step(Switch(True, name, d.trust.mesh_id), clock.now())
        try:
            overlay = Overlay(d)
            await overlay.open()
        except BaseException:
            d.membership.step(Switch(False, name, d.trust.mesh_id), clock.now())
            raise
        self.overlay = overlay
        self._task = self._tasks.create_task(self._keep(overlay))

    def _found(self, name: str) -> None:
        """Who has no mesh of this name founds one; whether it stays there it sees when it has looked around."""
        d = self._daemon
        if not d.trust.mesh_id or d.trust.mesh_name != name:
            d.trust.found(name, d.config.node_name)
            d.doors.founded(d.trust.mesh_id)

    def move(self, way: Way) -> None:
        """Leaves the present mesh for the one that has let this node in."""
        self._tasks.create_task(self._move(way, self.overlay))

    async def _move(self, way: Way, left: Overlay | None) -> None:
        d = self._daemon
        async with self._switching:
            if self.overlay is not left or left is None:
                return
            try:
                await self._leave(LEAVE_GRACE_S)
                d.trust.adopt(way.records, way.mesh)
                d.take_mesh_name(d.trust.mesh_name)
                d.doors.adopt(way.mesh, way.doors, way.node, d.trust.members.keys())
                await self._join()
            except Exception as e:  # noqa: BLE001 - as in _keep
                event(_log, logging.ERROR, "mesh", f"the mesh {way.mesh} cannot be joined: {e}; trying again")
                self._tasks.create_task(self._begin_anew(None))
        d.publish()

    async def _keep(self, overlay: Overlay) -> None:
        """The mesh is an overlay, not a dependency: a fault in it is logged, the mesh begun anew, the node serves."""
        try:
            await overlay.run()
        except Exception:  # noqa: BLE001 - whatever it is, this node's own clients are served
            _log.exception("the mesh failed; beginning anew in %.0f s", REJOIN_S)
            self._tasks.create_task(self._begin_anew(overlay))

    async def _begin_anew(self, failed: Overlay | None) -> None:
        """Leaves `failed`, if it is still there, and joins again as soon as that works."""
        d = self._daemon
        async with self._switching:
            if failed is not None and self.overlay is failed:
                await self._leave(0.0)
        while self._wanted():
            with suppress(TimeoutError):
                async with asyncio.timeout(REJOIN_S):
                    await d.until_stopped()
            try:
                async with self._switching:
                    if self._wanted():
                        await self._join()
            except Exception as e:  # noqa: BLE001 - as in _keep
                event(_log, logging.ERROR, "mesh", f"the mesh cannot be begun: {e}; trying again")

    def _wanted(self) -> bool:
        return self.overlay is None and self._daemon.config.mesh_enabled and not self._daemon.stopping

    async def _leave(self, grace_s: float) -> None:
        d, overlay = self._daemon, self.overlay
        assert overlay is not None
        why, self.leaving = self.leaving, self.leaving or "leaving the mesh"
        d.publish()
        if not await d.until(lambda: not self.of_peers(), grace_s):
            event(_log, logging.WARNING, "leave", f"left with {len(self.of_peers())} requests of peers unfinished")
        try:
            await overlay.leave(why or "mesh disabled")
        except Exception:  # noqa: BLE001 - a goodbye that fails must not leave this node half in the mesh
            _log.exception("leaving the mesh")
        self.leaving = why
        await self._left(overlay)

    async def _left(self, overlay: Overlay) -> None:
        """Alone from now on: everything of that stay is closed."""
        d, task = self._daemon, self._task
        assert task is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await d.files.flush()  # the next stay in a mesh reads them
        self.overlay, self._task = None, None
        overlay.forget_all()
        d.dispatch.follow(d.id, d.membership.view().term, ruling=True)
        d.publish()

    def of_peers(self) -> tuple[RunningReport, ...]:
        """Requests that run here for other nodes' clients."""
        return tuple(r for r in self._daemon.host.running() if r.edge != self._daemon.id)
