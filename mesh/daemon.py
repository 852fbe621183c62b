"""The daemon: builds every part, owns the tasks, starts and ends them in order. `mlx-stack up --foreground` is this."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import aiohttp
from aiohttp import web
from msgspec import structs

from mesh import clock, stack
from mesh import config as configuration
from mesh.access import Access
from mesh.addresses import listening
from mesh.admin import admin_app
from mesh.awake import Awake
from mesh.chores import Stamps, rotate_logs, watch_files
from mesh.config import Config
from mesh.config_keys import KEYS
from mesh.control import DaemonControl
from mesh.door_store import DoorStore
from mesh.draining import Draining
from mesh.drilling import Drilling
from mesh.edge_tls import EdgeTls, local_url
from mesh.event_store import EventStore
from mesh.events import SelfChanged
from mesh.gauges import gauges_of
from mesh.home import Home
from mesh.http import Server, guards, tcp_sockets
from mesh.keyring import KeyRing
from mesh.late import LateWriter
from mesh.limits import descriptors, limits_of, node_settings
from mesh.log import DaemonLog, event, utc
from mesh.membership import Membership
from mesh.metrics import Metrics
from mesh.observe import Observer
from mesh.overlay import Overlay
from mesh.pace import Pace
from mesh.peers import PeerStore
from mesh.settings import PublishSettings
from mesh.store import RouteStore
from mesh.switch import MeshSwitch
from mesh.tls import PeerTls
from mesh.trust import Trust
from mesh.wire import PROTOCOL
from node.errors import NodeError
from node.io import identity as identities
from node.io.command import CommandEngine
from node.io.engine import ModelSpec
from node.io.external import ExternalEngine
from node.io.host import Host
from node.io.http_client import HttpClient
from node.io.measured import Measured
from node.io.mlx import MlxEngine
from node.io.probe import Probe
from node.io.registry import Registry
from node.settings import EngineSettings
from node.types import NodeId, NodeReport, status_of
from router.frames import CoordinatorFrame, EdgeFrame
from router.io.dispatch import Dispatch
from router.io.edge import Edge
from router.io.sockets import PeerSockets

STOP_GRACE_S = 30.0

_log = logging.getLogger("mesh.daemon")


def program_version() -> str:
    try:
        return version("mlx-stack-mesh")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "0+unknown"


class Daemon:
    """One node. Build it, `await run()`; `stop()` ends it in order. Not reusable.

    Raises MeshError or ConfigError from `run()` when it cannot start, with what to do.
    """

    def __init__(self, home: Home, config: Config, log: DaemonLog, *, tiers: Sequence[str] = ()) -> None:
        self.home, self.config, self.tiers = home, config, tuple(tiers)
        self.limits = limits_of(config, descriptors())
        self.version = program_version()
        identity = identities.load(home.root, self._note)
        self.id = identity.id
        self.boot = secrets.token_hex(4)
        self.started_at, self._started = utc(time.time()), time.monotonic()
        self.warnings: list[str] = []
        self.no_stack = False
        self.stamps = Stamps(home.config, home.stack)
        self.mesh = MeshSwitch(self)
        self._dirty = asyncio.Event()  # the next report will differ
        self._news = asyncio.Event()  # for who waits for a change of this node
        self.probe = Probe()
        self.registry = Registry(home.node / "workers.json", self.probe)
        self.store = RouteStore(home.routes, self._note)
        self.events = EventStore(home.events, self._note)
        self.metrics = Metrics(lambda: gauges_of(self))
        self.observer = Observer(metrics=self.metrics, store=self.store, events=self.events)
        engine_settings = EngineSettings()
        self.host = Host(
            settings=node_settings(config),
            engines={
                "mlx-lm": MlxEngine(engine_settings, logs=home.logs, registry=self.registry),
                "command": CommandEngine(engine_settings, logs=home.logs, registry=self.registry),
                "external": ExternalEngine(engine_settings),
            },
            report=self.observer.report,
            changed=self.changed,
            probe=self.probe,
            measured=Measured(home.node / "measured.json"),
        )
        self.awake = Awake()
        self.files = LateWriter(self._note)
        self.trust = Trust(home.mesh, identity, self._note, self.files.write)
        self.peer_tls = PeerTls(self.trust)
        self.doors = DoorStore(home.mesh, self._note, self.files.write)
        self.draining = Draining(home.node / "drain.json", self.host, tell=self._note, write=self.files.write)
        self.peers = PeerStore(home.mesh, self._note, self.files.write)
        self.keys = KeyRing(home.mesh, tell=self._note, write=self.files.write, spread=self.mesh.tell_keys)
        self.edge_tls: EdgeTls | None = None  # of :4000, from `run()` on
        self.access = Access(self.keys, count=self.metrics.turned_away)
        self.membership = Membership(
            self.report(),
            mesh_name=config.mesh_name,
            mesh_id=self.trust.mesh_id,
        )
        self.dispatch = Dispatch(
            self_id=self.id,
            settings=self.limits.router,
            rng=random.Random(),  # noqa: S311 - spreads retries, keeps no secret
            send=self._send,
            lives=lambda node: self.overlay is not None and self.overlay.vouched(node),
        )
        self.access.look(config, self.membership.view().mesh_id)
        self.drilling = Drilling(self)
        self.control = DaemonControl(self)
        self.elections = 0
        self.sockets = PeerSockets()
        self.session: aiohttp.ClientSession
        self.edge: Edge
        self._daemon_log = log
        self._stop = asyncio.Event()
        self._grace_s = STOP_GRACE_S
        self._servers: dict[str, Server] = {}

    # Its life

    async def run(self) -> None:
        """Serves until `stop()`, SIGTERM or SIGINT; a second signal ends it at once."""
        self.edge_tls = EdgeTls.of(self.config, self.home, self._note)
        context = self.edge_tls.context if self.edge_tls else None
        edge_sockets = await tcp_sockets(self.config.port, listening(self.config.bind), self.probe.port_holder)
        for said in await asyncio.to_thread(self.registry.end_orphans):
            self._note(said)
            self.observer.life("orphan", said)
        specs = self._read_stack(self.config)
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=self.sockets.connector()) as self.session,
            HttpClient(make=self.sockets.make) as http,
        ):
            self.trust.watch(lambda _: self._keys_changed(http))
            self.edge = Edge(
                view=self.membership.view,
                dispatch=self.dispatch,
                host=self.host,
                http=http,
                tls=self.peer_tls.client,
                settings=self.limits.edge,
                limited=self.metrics.limited("edge"),
                report=self.observer.report,
                count_bytes=self.metrics.count_bytes,
                metrics=self.metrics.text,
                guard=self.access.guard,
                turned_away=self.access.turned_away,
            )
            self.keys.watch(self.edge.keys_changed)
            edge_app = web.Application(middlewares=[*guards(self.config.bind), self.edge.middleware()])
            edge_app.add_routes(self.edge.routes())
            self._servers = {
                "edge": Server(
                    edge_app,
                    raw=self.edge,
                    guarded=not self.config.bind,
                    settings=self.limits.edge_server,
                    limited=self.metrics.limited("edge"),
                ),
                "admin": Server(admin_app(self.control), cancels=False),
            }
            self._trap_signals()
            try:
                async with asyncio.TaskGroup() as group:
                    self.mesh.begin(group)
                    tasks = [group.create_task(part) for part in (self.host.run(), self.dispatch.run())]
                    self.draining.restore()
                    self.dispatch.node_up(status_of(self.report()))
                    self.dispatch.follow(self.id, 0, ruling=True)
                    await self._servers["edge"].listen(edge_sockets, context)
                    socket_path = self.home.prepare_socket()
                    await self._servers["admin"].listen_unix(socket_path)
                    self.home.write_pid(socket_path)
                    tasks += [
                        group.create_task(part) for part in (self._publish(), watch_files(self), rotate_logs(self))
                    ]
                    if self.config.mesh_enabled:
                        await self.mesh.turn(self.config)
                    self._note_start()
                    tasks.append(group.create_task(self.host.apply(specs)))
                    await self._stop.wait()
                    await self._wind_down()
                    for task in tasks:
                        task.cancel()
            finally:
                for server in self._servers.values():
                    await server.close()
                self.home.pid_file.unlink(missing_ok=True)
                self.awake.close()
                self.store.close()
                self.events.close()

    def stop(self, grace_s: float | None = None) -> None:
        """Ends `run()` in order: leave the mesh, finish what is open (at most `grace_s` seconds), stop the workers."""
        if grace_s is not None:
            self._grace_s = grace_s
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """`stop()` was called, or a signal came."""
        return self._stop.is_set()

    async def until_stopped(self) -> None:
        await self._stop.wait()

    @property
    def overlay(self) -> Overlay | None:
        """The present stay in the mesh."""
        return self.mesh.overlay

    async def _wind_down(self) -> None:
        event(_log, logging.INFO, "stopping", f"stopping, at most {self._grace_s:.0f} s for what is open")
        self.observer.life("stop", f"pid {os.getpid()} was told to end")
        self.draining.pause()
        deadline = time.monotonic() + self._grace_s
        await self.mesh.leave("stopping", self._grace_s)
        await self.edge.drain(max(0.0, deadline - time.monotonic()))
        await self.host.stop(max(0.0, deadline - time.monotonic()))

    def _trap_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stop.is_set():
                event(_log, logging.WARNING, "forced", "second signal: ending at once")
                self._daemon_log.close()
                self.home.pid_file.unlink(missing_ok=True)
                self.registry.kill()  # those that are frozen would not notice that their parent is gone
                os._exit(1)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)

    async def take_new_id(self) -> None:
        """A new id and key, let into the mesh by the ones before. Call it between two stays in the mesh. What is open
        here goes on. What cannot be kept on disk holds until the next start, and is taken anew then."""
        try:
            identity = await asyncio.to_thread(identities.renew, self.home.root)
        except NodeError as error:
            self._note(error.message)
            identity = identities.fresh(Path(tempfile.mkdtemp(prefix="mlx-stack-")))  # TLS reads keys from files only
            await asyncio.to_thread(identities.keep, identity)
        self.trust.renew(identity, self.config.node_name)
        self.id = identity.id
        report = self.report()
        self.membership.step(SelfChanged(report), clock.now())
        self.dispatch.rename(self.id, status_of(report), report.running)

    def take_mesh_name(self, name: str) -> None:
        """An invite led into a mesh of another name: a restart must find it again."""
        if name != self.config.mesh_name:
            configuration.set_values(self.home, {"mesh-name": name})
            self.config = structs.replace(self.config, mesh_name=name)

    def _keys_changed(self, http: HttpClient) -> None:
        """Who was put out is asked nothing more, and what it was asked ends here."""
        http.end(self.peer_tls.renew())

    # What it says of itself

    def report(self) -> NodeReport:
        """This node now, as its peers will hear it."""
        draining = self.mesh.leaving or (self.host.drain_reason if self.host.draining else "")
        return NodeReport(
            id=self.id,
            boot=self.boot,
            name=self.config.node_name,
            version=self.version,
            protocol=PROTOCOL,
            priority=self.config.mesh_priority,
            uptime_s=time.monotonic() - self._started,
            addresses=self.overlay.addresses() if self.overlay else (),
            port=self.config.port,
            tls=self.edge_tls is not None,
            peer_port=self.config.peer_port,
            draining=bool(draining),
            drain_reason=draining,
            hardware=self.host.hardware(),
            memory=self.host.memory(),
            models=self.host.models(),
            running=self.host.running(),
        )

    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    def changed(self) -> None:
        """Something a report would show has changed: publish soon."""
        self._dirty.set()
        self._news.set()

    def publish(self) -> NodeReport:
        """Tells membership, the scheduler here and every peer what this node is now."""
        report = self.report()
        self.access.look(self.config, self.membership.view().mesh_id)
        self.membership.step(SelfChanged(report), clock.now())
        self.dispatch.node_changed(status_of(report))
        self.dispatch.node_running(self.id, report.running)
        if self.overlay is not None:
            self.overlay.publish(report)
        return report

    async def _publish(self) -> None:
        settings = PublishSettings()
        pace = Pace(settings, clock.now())
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.every_s):
                    await self._dirty.wait()
            changed = self._dirty.is_set()
            self._dirty.clear()
            serving = self.edge.open_requests > 0 or bool(self.host.running())
            self.awake.look(serving, time.monotonic())
            busy = serving or self.dispatch.account().total > 0
            began = time.thread_time()
            if pace.due(self.membership.alive(), changed=changed, busy=busy, now=clock.now()):
                self.publish()
            if changed:
                await asyncio.sleep(pace.pause_s(time.thread_time() - began))

    def _send(self, node: NodeId, frame: EdgeFrame | CoordinatorFrame) -> bool:
        return self.overlay is not None and self.overlay.send(node, frame)

    def in_effect(self, config: Config) -> Config:
        """`config`, but what only a start changes stays as it is: peers and people are told the ports that are open.
        The peer port opens with the mesh, so it counts from the next `mesh enable` on."""
        kept = [k for k in KEYS if k.applies != "at once" and (k.name != "peer-port" or self.overlay)]
        return structs.replace(config, **{k.field: self.config.value(k) for k in kept})

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Waits for `holds`, looking after every change of this node. False: it did not within `limit_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        return holds()

    # Files

    def _read_stack(self, config: Config) -> tuple[ModelSpec, ...]:
        found = stack.load(self.home, config, tiers=self.tiers)
        self.no_stack = not found.found
        before, self.warnings = self.warnings, [*config.warnings, *found.warnings]
        for warning in self.warnings:
            if warning not in before:
                self._note(warning)
        return found.specs

    async def reload(self) -> list[str]:
        """Reads config.yaml and the stack file again and carries out what can change while running. Returns the names
        of what changed. Raises ConfigError; then nothing has changed."""
        config = configuration.load(self.home)
        changed = [k.name for k in KEYS if config.value(k) != self.config.value(k)]
        specs = self._read_stack(self.in_effect(config))
        later = [k.name for k in KEYS if k.name in changed and k.applies != "at once"]
        if later:
            self._note(f"takes effect at the next start: {', '.join(later)}")
        self.host.retune(node_settings(config))
        await self.mesh.turn(config)
        await self.host.apply(specs)
        return changed

    # Small things

    def _note(self, text: str) -> None:
        event(_log, logging.WARNING, "note", text)

    def _note_start(self) -> None:
        where = local_url(self.config.port, self.edge_tls)
        self.observer.life("start", f"version {self.version}, pid {os.getpid()}")
        event(_log, logging.INFO, "started", f"{self.config.node_name} {self.version} serves {where}", pid=os.getpid())

    def connections(self) -> dict[str, int]:
        """Open connections, by server."""
        return {name: server.connections for name, server in self._servers.items()}

    @property
    def log_lines_dropped(self) -> int:
        return self._daemon_log.dropped
