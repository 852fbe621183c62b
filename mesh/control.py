"""What the admin API can ask of a daemon: the words of the command line turned into calls on its parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import to_builtins

from mesh import config as configuration
from mesh import values
from mesh.config import ConfigError
from mesh.edge_tls import local_url
from mesh.errors import MeshError
from mesh.gather import Gatherer
from mesh.lookup import bare_address
from mesh.names import resolve
from mesh.status import Json, mesh_json, model_details, node_json
from mesh.store import route_json
from node.types import NodeId
from router.view import NodeState, NodeView

if TYPE_CHECKING:
    from mesh.daemon import Daemon
    from mesh.overlay import Overlay

JOINED_S = 2.0  # for an answer to say who coordinates; a node alone decides in half a second
ADDED_S = 2.0  # for a peer that was added to be linked and heard before its state is told
MESH_LOOK_EVERY_S = 0.02  # at what is awaited of others
TOLD_TO_ALL = ("hold", "release")  # of what a drill asks
FOLLOW_LOOK_S = 1.0  # who follows the routes of a node without any is looked for so often
DRAIN_SEEN_S = 5.0  # until a drain asked of another node must show in its report,
DRAIN_RENEWED_S = 1.0  # and the new end of one that is on already: it may be the same again


T = TypeVar("T")


class DaemonControl:
    """mesh.admin.Control over one Daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._gather = Gatherer(daemon)

    # Looking

    async def status(self) -> Json:
        d = self._daemon
        d.publish()
        view, names = self._view_and_names()
        own = view.node(d.id)
        assert own is not None
        return {
            "version": d.version,
            "pid": os.getpid(),
            "home": str(d.home.root),
            "started_at": d.started_at,
            "uptime_s": round(d.uptime_s(), 1),
            "url": local_url(d.config.port, d.edge_tls),
            "port": d.config.port,
            "peer_port": d.config.peer_port,
            "no_stack": d.no_stack,
            "message": "no stack file: this node serves the models of the mesh only" if d.no_stack else "",
            "warnings": d.warnings,
            "mesh": await self.mesh_status(),
            "node": node_json(own, view, names[d.id], None, model_details),
        }

    async def mesh_status(self) -> Json:
        """Counts come from the coordinator, asked now: only it knows every open request of the mesh."""
        d = self._daemon
        d.publish()
        account = await self._gather.account()
        view, names = self._view_and_names()
        notes = [*filter(None, [d.mesh.renamed, d.mesh.fallen]), *(d.overlay.notes() if d.overlay else ())]
        return mesh_json(view, names, account, notes)

    async def routes(self, last: int) -> Json:
        return await self._gather.routes(last)

    async def route(self, route_id: str) -> Json:
        found = await self._gather.route(route_id)
        if found is None:
            hint = "`mlx-stack mesh routes` lists the ids"
            raise MeshError("no_such_route", f"no route '{route_id}' on any node that answers", hint=hint, status=404)
        return found

    async def follow(self) -> AsyncGenerator[Json | None, None]:
        """Each route as it ends, until the daemon stops; None now and then, so that a caller who left is noticed."""
        with self._daemon.observer.routes.follow() as ended:
            while not self._daemon.stopping:
                route = await self._next(ended)
                yield None if route is None else route_json(route)

    async def _next(self, queue: asyncio.Queue[T]) -> T | None:
        """What comes next; None when nothing came for FOLLOW_LOOK_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_LOOK_S):
                return await queue.get()
        return None

    async def events(self, last: int, model: str) -> Json:
        return {"events": await asyncio.to_thread(self._daemon.events.last, last, self._model_name(model))}

    async def follow_events(self, last: int, model: str) -> AsyncGenerator[Json | None, None]:
        model = self._model_name(model)
        with self._daemon.observer.events.follow() as happened:
            kept = await asyncio.to_thread(self._daemon.events.last, last, model)
            for event in kept:
                yield event
            while not self._daemon.stopping:
                fact = await self._next(happened)
                event = to_builtins(fact)
                if fact is None or (model in ("", event["model"]) and event not in kept):  # one may have come meanwhile
                    yield event

    # The mesh

    async def enable(self, priority: int | None, name: str | None) -> Json:
        changes: dict[str, object] = {"mesh-enabled": True}
        if priority is not None:
            changes["mesh-priority"] = priority
        if name is not None:
            changes["mesh-name"] = name
        return await self._set_mesh(changes)

    async def disable(self) -> Json:
        return await self._set_mesh({"mesh-enabled": False})

    async def _set_mesh(self, changes: dict[str, object]) -> Json:
        """Writes config.yaml first: what the file says is what a restart does."""
        d = self._daemon
        before = configuration.read_file(d.home.config)
        self._write(changes)
        try:
            config = configuration.load(d.home)
            for name, wanted in changes.items():
                key = configuration.find_key(name, "the command line")
                if config.value(key) != wanted:
                    raise ConfigError(f"'{name}' cannot be changed: {config.source(key)} says {config.value(key)}")
            await d.mesh.turn(config)
        except (ConfigError, MeshError):
            self._write({name: before.get(name) for name in changes})
            raise
        if config.mesh_enabled:
            await self._until(lambda: d.membership.view().coordinator is not None, JOINED_S)
        return await self.mesh_status()

    def _write(self, changes: dict[str, object]) -> None:
        configuration.set_values(self._daemon.home, changes)

    async def add_peer(self, address: str) -> Json:
        address = bare_address(address)
        peer = await self._overlay().static.add(address)
        await self._set_peers([*self._daemon.config.mesh_peers, address])

        def found() -> NodeView | None:
            return self._daemon.membership.view().node(peer.id)

        unsettled = (NodeState.WAITING, NodeState.SUSPECT)
        await self._until(lambda: (node := found()) is not None and node.state not in unsettled, ADDED_S)
        _, names = self._view_and_names()
        node = found()
        there = {"state": NodeState.WAITING.value, "reason": "", "far": peer.far, "via": peer.via}
        if node is not None:
            there = {"state": node.state.value, "reason": node.reason, "far": node.far, "via": node.via}
        return {"name": names.get(peer.id, peer.name), "id": peer.id, **there}

    async def tailnet(self) -> Json:
        """Asked now, on request only: every machine there would see it."""
        running = await self._overlay().lookup.running()
        known = {n.report.id for n in self._daemon.membership.view().nodes}
        return {
            "running": [
                {"name": r.name, "node": r.node.name, "id": r.node.id, "mesh": r.node.mesh, "version": r.node.version,
                 "address": r.address, "added": r.node.id in known}
                for r in running
            ]
        }  # fmt: skip

    def _overlay(self) -> Overlay:
        """Raises MeshError(mesh_disabled)."""
        if self._daemon.overlay is None:
            raise MeshError("mesh_disabled", "the mesh is off on this node", hint="`mlx-stack mesh enable`", status=409)
        return self._daemon.overlay

    async def remove_node(self, name: str) -> Json:
        d = self._daemon
        node = resolve(d.membership.view(), name)
        if node == d.id:
            raise MeshError("self", "this is the node itself", hint="`mlx-stack mesh disable` leaves the mesh")
        shown = d.membership.view().names()[node]
        overlay = self._overlay()
        found = d.membership.view().node(node)
        assert found is not None
        hosts = (found.report.name.lower(), *found.addresses)
        others = overlay.static.others(node, {(host, found.report.port) for host in hosts})
        overlay.remove(node)
        await self._set_peers(others)
        return {"removed": shown, "id": node}

    async def _set_peers(self, addresses: list[str]) -> None:
        """`mesh-peers` outlives a change of address and a week of absence, which the cache of peers does not."""
        d = self._daemon
        wanted = tuple(dict.fromkeys(addresses))
        if wanted != d.config.mesh_peers:
            self._write({"mesh-peers": list(wanted)})
            await d.mesh.turn(configuration.load(d.home))

    async def drain(self, node: str, for_s: float | None, now: bool = False) -> Json:
        return await self._set_drain(node, True, for_s, now)

    async def undrain(self, node: str) -> Json:
        return await self._set_drain(node, False, None)

    async def _set_drain(self, text: str, on: bool, for_s: float | None, now: bool = False) -> Json:
        d = self._daemon
        if for_s is not None and for_s <= 0:
            raise MeshError("bad_request", f"a drain lasts longer than {for_s:g} s")
        view = d.membership.view()
        node = resolve(view, text)
        shown = view.names()[node]
        before = self._reason(node) if self._drains(node) else ""
        if node == d.id:
            self.drain_here(on, for_s, now)
            await d.files.flush()
        elif d.overlay is None or not d.overlay.ask_drain(node, on, for_s, now):
            found = view.node(node)
            why = f"it is {found.state.value}: {found.reason}".rstrip(": ") if found else "it is gone"
            word = "drain" if on else "undrain"
            hint = f"run `mlx-stack mesh {word} {shown}` on that machine, or again when it is back"
            raise MeshError("unreachable", f"{shown} cannot be told now, {why}", hint=hint, status=503)
        if not await self._until(lambda: self._drains(node) is on, DRAIN_SEEN_S):
            hint = "`mlx-stack mesh status` shows its state"
            text = f"{shown} has not confirmed within {DRAIN_SEEN_S:.0f} s"
            raise MeshError("unanswered", text, hint=hint, status=504)
        if on and node != d.id and before:
            await self._until(lambda: self._reason(node) != before, DRAIN_RENEWED_S)
        return {"node": shown, "id": node, "draining": on, "reason": self._reason(node)}

    async def drill(self, ask: str, drill: str, node: str, model: str, for_s: float) -> Json:
        d = self._daemon
        self._overlay()
        if not node and ask not in TOLD_TO_ALL:
            raise MeshError("bad_request", f"a drill's '{ask}' names the node that it stops")
        nodes = [resolve(d.membership.view(), node)] if node else [d.id, *sorted(d.membership.alive())]
        names, found = d.membership.view().names(), await d.drilling.ask(nodes, ask, drill, model, for_s)
        return {
            "answers": [
                {"node": names.get(n, n), "id": n, "why": why, "in_s": in_s, "at": at}
                for n, (at, why, in_s) in found.items()
            ],
            "silent": [{"node": names.get(n, n), "id": n} for n in nodes if n not in found],
        }

    async def drill_seen(self) -> Json:
        return {"seen": [to_builtins(note) for note in self._daemon.drilling.notes]}

    def drain_here(self, on: bool, for_s: float | None, now: bool = False) -> None:
        """Drains this node (for `for_s` seconds; None: until undrained), or ends that. It holds over restarts. `now`:
        what it runs is broken off, and goes on elsewhere."""
        d = self._daemon
        if d.stopping:  # it takes nothing more whatever is said now
            return
        if on:
            d.draining.begin(for_s)
            if now:
                d.host.break_off("this node was drained at once")
        else:
            d.draining.end()
        d.publish()

    def _reason(self, node: NodeId) -> str:
        found = self._daemon.membership.view().node(node)
        return found.report.drain_reason if found else ""

    def _drains(self, node: NodeId) -> bool | None:
        found = self._daemon.membership.view().node(node)
        return found.report.draining if found else None

    # Keys of clients

    async def keys(self) -> Json:
        return self._daemon.keys.listed()

    async def create_key(self, name: str, first: bool) -> Json:
        try:
            name = values.name(name)
        except ValueError as error:
            raise MeshError("bad_request", f"the name of a key must be {error}") from None
        return await self._kept(self._daemon.keys.create(name, first=first))

    async def revoke_key(self, wanted: str) -> Json:
        return await self._kept(self._daemon.keys.revoke(wanted))

    async def keys_off(self) -> Json:
        return await self._kept(self._daemon.keys.off())

    async def _kept(self, answer: Json) -> Json:
        """Said once it is on the disk, so that it holds over a power cut."""
        await self._daemon.files.flush()
        return answer

    # Models

    async def models(self) -> Json:
        return {"models": [model_details(m) for m in self._daemon.host.models()]}

    async def model(self, name: str) -> Json:
        for model in self._daemon.host.models():
            if name == model.name or name in model.aliases:
                return model_details(model)
        there = ", ".join(m.name for m in self._daemon.host.models()) or "none"
        raise MeshError("model_not_found", f"no model '{name}' on this node; there is: {there}", status=404)

    def _model_name(self, name: str) -> str:
        """MODEL.name of a name or alias; as it is when there is no such model, for it may have been."""
        models = self._daemon.host.models()
        return next((m.name for m in models if name in (m.name, *m.aliases)), name)

    async def load(self, name: str) -> Json:
        await self._daemon.host.load(name)
        return await self.model(name)

    async def unload(self, name: str) -> Json:
        await self._daemon.host.unload(name)
        return await self.model(name)

    # The daemon

    async def reload(self) -> Json:
        return {"changed": await self._daemon.reload()}

    async def stop(self, grace_s: float | None) -> Json:
        self._daemon.stop(grace_s)
        return {"stopping": True}

    def _view_and_names(self) -> tuple[Any, dict[NodeId, str]]:
        view = self._daemon.membership.view()
        return view, view.names()

    @staticmethod
    async def _until(holds: Callable[[], bool], limit_s: float) -> bool:
        """Did what peers or the election bring come within `limit_s`? That is no change of this node, so
        `Daemon.until` would not hear of it; it is looked for instead."""
        end = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(MESH_LOOK_EVERY_S)
        return True
