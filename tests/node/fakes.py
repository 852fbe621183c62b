"""An engine whose workers are plain coroutines: the host's tests start, feed, break and stop them at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import CallFact, ModelFact, NodeFact
from node.io.calls import ALIVE, Call
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import Flow, Sink
from node.io.host import Host
from node.io.probe import Probe
from node.openai import DONE
from node.settings import NodeSettings
from node.types import Hardware, ModelReport, NodeId, Pressure, RequestId, Resume
from tests.node.scripted import Scripted, served

GIB = 2**30


def data(text: str) -> bytes:
    return b'data: {"choices": [{"delta": {"content": "' + text.encode() + b'"}}]}\n\n'


def usage(prompt: int, cached: int, completion: int) -> bytes:
    return (
        b'data: {"choices": [], "usage": {"prompt_tokens": %d, "completion_tokens": %d, '
        b'"prompt_tokens_details": {"cached_tokens": %d}}}\n\n' % (prompt, completion, cached)
    )


class FakeWorker:
    """Starts when `may_start` is set; each stream takes blocks from `blocks` (None: for ever silent)."""

    def __init__(self, spec: ModelSpec, engine: FakeEngine) -> None:
        self.spec, self._engine = spec, engine
        self.pid: int | None = 1000 + len(engine.workers)
        self.log_name = spec.name
        self.began = self.stopped = False
        self.probes = 0
        self.streams = self.most_streams = self.closed_streams = self.said = 0
        self.names: list[str] = []
        self.crash = asyncio.get_running_loop().create_future()
        self.alive = WorkerStats()

    @property
    def resume(self) -> Resume:
        return self._engine.resume

    async def start(self) -> None:
        self.began = True
        self._engine.starting += 1
        self._engine.most_starting = max(self._engine.most_starting, self._engine.starting)
        try:
            await self._engine.may_start.wait()
            if self.spec.name in self._engine.stuck:
                await asyncio.Event().wait()
        finally:
            self._engine.starting -= 1
        if self._engine.start_errors:
            raise self._engine.start_errors.pop(0)

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        return Scripted(self._stream(body, model_name), sink)

    async def _stream(self, body: bytes, model_name: str) -> AsyncIterator[bytes]:
        self.streams += 1
        self.most_streams = max(self.most_streams, self.streams)
        self.names.append(model_name)
        try:
            async for block in self._engine.answer(body):
                self.said += 1
                yield block
        finally:
            self.streams -= 1
            self.closed_streams += 1

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        if path != "embeddings":
            raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"no {path} here")
        await self._engine.may_post.wait()
        return 200, content_type, body[::-1]

    async def probe(self) -> None:
        self.probes += 1
        await self._engine.may_probe.wait()
        if self._engine.probe_errors:
            raise self._engine.probe_errors.pop(0)

    async def stats(self) -> WorkerStats:
        return self.alive

    async def stop(self, grace_s: float) -> None:
        await asyncio.sleep(0)  # others have their turn meanwhile, as with a process
        await self._engine.may_stop.wait()
        self.stopped = True

    async def exited(self) -> str:
        return await asyncio.shield(self.crash)


class FakeEngine:
    resume = Resume.REPLAY

    def __init__(self, slots: int = 2) -> None:
        self.default_slots = slots
        self.workers: list[FakeWorker] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.stuck: set[str] = set()  # models whose workers never become ready
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.start_errors: list[Exception] = []
        self.may_post = asyncio.Event()
        self.may_post.set()
        self.may_probe = asyncio.Event()
        self.may_probe.set()
        self.probe_errors: list[Exception] = []
        self.starting = self.most_starting = 0
        self.gate = asyncio.Event()  # b"gated" answers wait for it after their first block
        self.progress: list[Callable[[str], None]] = []

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> FakeWorker:
        self.progress.append(on_progress)
        self.workers.append(FakeWorker(spec, self))
        return self.workers[-1]

    def living(self) -> list[FakeWorker]:
        return [w for w in self.workers if not w.stopped]

    async def answer(self, body: bytes) -> AsyncIterator[bytes]:
        yield b": keepalive 1/2\n\n"
        if body == b"bad":
            raise NodeError(NodeErrorCode.BAD_REQUEST, "no such parameter")
        if body == b"bug":
            raise KeyError("choices")
        yield data("Hel")
        if body == b"gated":
            await self.gate.wait()
        if body == b"cut":
            return
        if body == b"flood":
            for n in range(300):
                yield data(str(n))
        yield data("lo")
        yield usage(40, 8, 2)
        yield DONE


class FakeProbe(Probe):
    """A machine with 16 GiB and nothing else to say, but what its workers take and which of them are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[int, int] = {}  # by pid
        self.stopped: set[int] = set()

    def worker_bytes(self, pid: int, *, children: bool = False) -> int:
        return self.taken.get(pid, 0)

    def frozen(self, pid: int) -> bool:
        return pid in self.stopped

    def hardware(self) -> Hardware:
        return Hardware(chip="Test", memory_bytes=16 * GIB)

    def working_set_bytes(self) -> int:
        return 0

    def pressure(self) -> Pressure:
        return Pressure.NORMAL


def spec(name: str = "a", **more: Any) -> ModelSpec:
    return ModelSpec(name=name, engine="external", **more)


def ours() -> ModelSpec:
    """One whose server is a process of this node's, unlike `spec()`."""
    return structs.replace(spec(), engine="command")


def call(request: str = "r", model: str = "a", body: bytes = b"", attempt: int = 1, **more: Any) -> Call:
    fields: dict[str, Any] = {"path": "chat/completions", "deadline_s": 60.0, **more}
    return Call(id=RequestId(request), attempt=attempt, edge=NodeId("e"), model=model, body=body, **fields)


FAST = NodeSettings(
    backoff_first_s=0.01,
    backoff_cap_s=0.05,
    stats_every_s=0.01,
    alive_every_s=0.02,
    hold_floor_s=0.2,
    request_gap_s=0.05,
    turn_s=0.5,
    probe_every_s=0.05,
)


class Rig:
    """A host on one fake engine, and all that it said."""

    def __init__(self, settings: NodeSettings = FAST, slots: int = 2) -> None:
        self.engine = FakeEngine(slots)
        self.probe = FakeProbe()
        self.facts: list[NodeFact] = []
        self.changes = 0
        self.host = Host(
            settings=settings,
            engines={"external": self.engine, "mlx-lm": self.engine, "command": self.engine},
            report=self.facts.append,
            changed=self._changed,
            probe=self.probe,
        )

    def _changed(self) -> None:
        self.changes += 1

    def model(self, name: str = "a") -> ModelReport:
        return next(m for m in self.host.models() if m.name == name)

    def ended(self) -> list[CallFact]:
        return [f for f in self.facts if isinstance(f, CallFact)]

    def states(self, name: str = "a") -> list[str]:
        return [f.state for f in self.facts if isinstance(f, ModelFact) and f.model == name]

    async def answer(self, asked: Call) -> list[bytes]:
        """All blocks of one call but the signs of life."""
        return [b async for b in served(self.host, asked) if b != ALIVE]


async def spoken(stream: AsyncIterator[bytes]) -> bytes:
    """Its next block that is no sign of life: how many of those come first is the machine's affair."""
    while (block := await anext(stream)) == ALIVE:
        pass
    return block


async def refused(rig: Rig, **fields: Any) -> NodeError:
    """The error of a call with these fields."""
    with pytest.raises(NodeError) as error:
        await rig.answer(call(**fields))
    return error.value


@asynccontextmanager
async def running(rig: Rig, *specs: ModelSpec) -> AsyncGenerator[Rig, None]:
    """The host drives `specs` inside the block; afterwards no worker may be left."""
    task = asyncio.create_task(rig.host.run())
    try:
        await rig.host.apply(specs)
        yield rig
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert rig.engine.living() == []
