"""ServerWorker: what every model server that is a child process of ours has in common."""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from node.errors import NodeError, NodeErrorCode
from node.io.diagnosis import PORT_TAKEN
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import Flow, Meter, Metered, Sink
from node.io.process import HOST, Child, child_environment, free_port
from node.io.registry import Registry
from node.io.upstream import Upstream
from node.settings import EngineSettings
from node.types import Resume


def log_name_of(model: str) -> str:
    """The file below logs/ that holds a model's output: its name, with only what file names bear."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._") or "model"


def stats_of(meter: Meter, *, why_dead: str = "") -> WorkerStats:
    """The counters so far."""
    return WorkerStats(meter.generated, meter.prompt, meter.active, not why_dead, why_dead, meter.signs)


class ServerWorker(ABC):
    """A Worker (node/io/engine.py) on a child process that speaks OpenAI's API on a loopback port."""

    resume = Resume.REPLAY

    def __init__(
        self,
        spec: ModelSpec,
        settings: EngineSettings,
        *,
        logs: Path,
        registry: Registry,
        on_progress: Callable[[str], None],
    ) -> None:
        self.spec, self.settings = spec, settings
        self.log_name = log_name_of(spec.name)
        self.meter = Meter()
        self._log, self._registry, self._on_progress = logs / f"{self.log_name}.log", registry, on_progress
        self._child: Child | None = None
        self._upstream: Upstream | None = None

    @abstractmethod
    def argv(self, port: int) -> Sequence[str]:
        """The command line that serves the model on `port`."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """What is added to our own environment."""

    @abstractmethod
    def check(self) -> None:
        """What can be known to fail before a process is started. Raises NodeError(MODEL_FAILED)."""

    @abstractmethod
    def connect(self, base: str) -> Upstream:
        """The client of the server at `base`."""

    @abstractmethod
    async def ready(self, upstream: Upstream) -> None:
        """Returns when it has generated a token; raises NodeError when it never will."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def child(self) -> Child | None:
        """The process, once it has been started."""
        return self._child

    @property
    def upstream(self) -> Upstream:
        """The client of the running server. Raises NodeError(MODEL_FAILED) before start and after stop."""
        if self._upstream is None:
            raise self._failed("it is not running")
        return self._upstream

    async def start(self) -> None:
        """Worker.start: a port that somebody takes from under us is exchanged for another."""
        self.check()
        wanted = self.spec.port
        for left in reversed(range(self.settings.port_tries)):
            try:
                await self._start(free_port(wanted))
            except NodeError as error:
                await self.stop(0.0)
                if left and PORT_TAKEN in error.message:
                    wanted = 0
                    continue
                raise
            except BaseException:
                await self.stop(0.0)
                raise
            return

    async def _start(self, port: int) -> None:
        self._on_progress("starting")
        env = child_environment(self._registry.token, self.environment())
        try:
            child = await Child.spawn(
                self.argv(port),
                env=env,
                log=self._log,
                tail_bytes=self.settings.tail_bytes,
                nice=self.settings.worker_nice,
            )
        except OSError as error:
            raise self._failed(f"cannot start it: {error}") from error
        self._child, self._upstream = child, self.connect(f"http://{HOST}:{port}/v1")
        await asyncio.to_thread(self._registry.add, child.pid, self.spec.name, port)
        limit_s = self.settings.start_limit_s
        try:
            async with asyncio.timeout(limit_s):
                await self._ready_or_exit(child, self._upstream)
        except TimeoutError as error:
            raise self._failed(f"it was not ready after {limit_s:g} s; {child.diagnosis()}") from error

    async def _ready_or_exit(self, child: Child, upstream: Upstream) -> None:
        """Waits for a first token, but no longer than the process lives."""
        exited = asyncio.ensure_future(child.exited())
        ready = asyncio.ensure_future(self.ready(upstream))
        began = time.monotonic()
        try:
            while not (await asyncio.wait({ready, exited}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED))[0]:
                self._on_progress(f"loading, {time.monotonic() - began:.0f} s")
            try:
                if ready.done():
                    ready.result()
                    return
            except NodeError as error:
                await asyncio.wait({exited}, timeout=self.settings.exit_notice_s)
                if not exited.done():
                    raise self._failed(error.message) from error
            raise self._failed(exited.result())
        finally:
            await ended(ready, exited)

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        """Worker.pour, with the reason when the process broke off."""
        upstream = self.upstream
        return Metered(self.meter, sink, self._explained).through(
            lambda counting: upstream.pour(path, body, model_name=model_name, sink=counting)
        )

    async def _explained(self, error: NodeError) -> NodeError:
        """A broken connection is often the first sign of a process that ended: waits a moment for the reason."""
        child = self._child
        if child is not None:
            try:
                async with asyncio.timeout(self.settings.exit_notice_s):
                    return self._failed(await child.exited())
            except TimeoutError:
                pass
        return self._failed(error.message)

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """Worker.post."""
        return await self.upstream.post(path, body, content_type)

    async def probe(self) -> None:
        """Worker.probe."""
        await self.upstream.probe(chat_first=True)

    async def stats(self) -> WorkerStats:
        """Worker.stats, by our own count."""
        return stats_of(self.meter, why_dead=self.why_dead())

    def why_dead(self) -> str:
        """The diagnosis once the process has ended, else empty."""
        if self._child is None:
            return "it is not running"
        return self._child.diagnosis() if self._child.exit_code is not None else ""

    async def stop(self, grace_s: float) -> None:
        """Worker.stop."""
        upstream, self._upstream = self._upstream, None
        try:
            if self._child is not None:
                await self._child.stop(grace_s)
                await asyncio.to_thread(self._registry.remove, self._child.pid)
        finally:
            if upstream is not None:
                await upstream.close()

    async def exited(self) -> str:
        """Worker.exited."""
        if self._child is None:
            raise self._failed("it was never started")
        return await self._child.exited()

    def _failed(self, why: str) -> NodeError:
        return NodeError(NodeErrorCode.MODEL_FAILED, f"model {self.spec.name}: {why}")


async def ended(*tasks: asyncio.Future[str] | asyncio.Future[None]) -> None:
    """Cancels what still runs and waits for it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
