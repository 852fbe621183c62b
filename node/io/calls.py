"""One call from its admission to its end: what the edge sent, and the blocks that travel back to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.facts import CallFact
from node.io.engine import Worker
from node.openai import DONE, usage_of
from node.queue import Key
from node.settings import NodeSettings
from node.types import NodeId, RequestId, Resume, Usage

ALIVE: Final = b": alive\n\n"
Outcome: TypeAlias = Literal["ok", "busy", "failed", "cancelled"]
STREAMED: Final = ("chat/completions", "completions")  # always streamed; all other paths are posts


class Call(Struct, frozen=True, kw_only=True):
    """What an edge asks this node to run. `model` is MODEL.name here, `path` is below /v1, `body` the client's own.

    `wants_usage` keeps the usage event in the stream; `deadline_s` seconds left of the client's patience.
    `keep_alive` seconds its model stays in memory after this (infinite: for ever; None: as before); `alone`: no other
    node could answer it, so it is held here until its deadline if need be. `resumes`: the body carries the
    continuation (node/continuation.py) of an answer that was begun elsewhere.
    """

    id: RequestId
    attempt: int
    edge: NodeId
    model: str
    path: str
    body: bytes
    wants_usage: bool = False
    content_type: str = "application/json"
    deadline_s: float
    keep_alive: float | None = None
    alone: bool = False
    resumes: bool = False


class AdmittedCall:
    """A call in a model's queue. Its pump fills `_out` from the worker; `next_block` empties it towards the edge.

    Times are the event loop's. The queue between the two is bounded: a slow reader stops the pump, and with it the
    reading of the worker.
    """

    def __init__(self, call: Call, model: str, settings: NodeSettings, too_late: Callable[[float], NodeError]) -> None:
        self._clock = asyncio.get_running_loop().time
        self._settings = settings
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue(settings.stream_blocks)
        self._error: NodeError | None = None
        self._pump: asyncio.Task[None] | None = None
        self.call, self.model = call, model  # MODEL.name, which `call.model` may be an alias of
        self.key: Key = (call.id, call.attempt)
        self.hold_until: float | None = None  # while its model is not in memory: how long it waits for that
        self._too_late = too_late  # given the seconds waited: what to say then
        self.admitted_at = self._clock()
        self.started_at: float | None = None
        self.first_at: float | None = None  # first `data:` block
        self.last_at: float | None = None
        self.usage = Usage()
        self.cold = False  # its model was not in memory when it came
        self.answer: tuple[int, str, bytes] | None = None  # of a post

    @property
    def deadline(self) -> float:
        return self.admitted_at + self.call.deadline_s

    def start(self, worker: Worker, tasks: asyncio.TaskGroup) -> None:
        """It has a slot: the worker begins."""
        self.started_at, self.hold_until = self._clock(), None
        run = self._stream if self.call.path in STREAMED else self._post
        self._pump = tasks.create_task(self._guard(run, worker))

    def fail(self, error: NodeError) -> None:
        """Ends it: what has been generated still goes out, then `error` is raised. The first error stays."""
        if self._error is None:
            self._error = error
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
        if self._out.empty():
            self._out.put_nowait(None)  # Wakes the reader.

    async def next_block(self) -> bytes:
        """The next block for the edge, ALIVE after a second without one; DONE is the last. Raises NodeError."""
        while self._out.empty():
            if self._error is not None:
                raise self._error
            self._check_patience()
            try:
                async with asyncio.timeout(self._patience_s()):
                    block = await self._out.get()
            except TimeoutError:
                self._check_patience()
                return ALIVE
            if block is not None:
                return block
        block = self._out.get_nowait()
        if block is None:
            assert self._error is not None
            raise self._error
        return block

    def fact(self, outcome: Outcome, error: NodeError | None, now: float) -> CallFact:
        """What is reported of it when it is over."""

        def ms(at: float | None) -> float | None:
            return None if at is None else 1000.0 * (at - self.admitted_at)

        return CallFact(
            id=self.call.id,
            attempt=self.call.attempt,
            edge=self.call.edge,
            model=self.model,
            outcome=outcome,
            error=None if error is None else f"{error.code}: {error.message}",
            wait_ms=ms(self.started_at),
            ttft_ms=ms(self.first_at),
            total_ms=1000.0 * (now - self.admitted_at),
            usage=self.usage,
            cold=self.cold,
        )

    async def close(self) -> None:
        """Closes the worker's stream, which cancels what it generates; waits a bounded time for that."""
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump}, timeout=self._settings.close_limit_s)

    def _patience_s(self) -> float:
        """Until the next sign of life, or until there will be no more to wait for."""
        ends = self.deadline if self.hold_until is None else min(self.deadline, self.hold_until)
        return max(0.0, min(self._settings.alive_every_s, ends - self._clock()))

    def _check_patience(self) -> None:
        """Raises NodeError(NODE_BUSY): not a failure of the model, the mesh plans again or gives up itself."""
        now = self._clock()
        if self.hold_until is not None and now >= self.hold_until:
            raise self._too_late(now - self.admitted_at)
        if now >= self.deadline:
            doing = "waiting for a slot" if self.started_at is None else "running"
            raise NodeError(NodeErrorCode.NODE_BUSY, f"the request's deadline passed while it was {doing}")

    async def _guard(self, run: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
        try:
            await run(worker)
        except NodeError as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(NodeError(NodeErrorCode.DRAINING, "this node stopped"))  # Unless the reason is known already.
            raise
        except Exception as error:  # noqa: BLE001 - a fault in an engine ends this call, not the daemon
            self.fail(NodeError(NodeErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))

    async def _stream(self, worker: Worker) -> None:
        call = self.call
        if call.resumes and worker.resume is not Resume.CONTINUE:
            raise cannot_resume(self.model)  # Its engine promised more than this worker can.
        async with _closing(worker.stream(call.path, call.body, model_name=self.model)) as blocks:
            async for block in blocks:
                if not block.startswith(b"data:"):
                    continue  # The worker's signs of life; ours take their place.
                if block == DONE:
                    break
                self.last_at = self._clock()
                self.first_at = self.first_at or self.last_at
                found = usage_of(block)
                if found is not None:
                    self.usage = found.usage
                if found is None or not found.alone or call.wants_usage:
                    await self._out.put(block)
            else:
                raise NodeError(NodeErrorCode.MODEL_FAILED, "the answer ended without [DONE]")
        await self._out.put(b": usage " + msgspec.json.encode(self.usage) + b"\n\n")
        await self._out.put(DONE)

    async def _post(self, worker: Worker) -> None:
        self.answer = await worker.post(self.call.path, self.call.body, self.call.content_type)
        self.first_at = self._clock()
        await self._out.put(DONE)


def cannot_resume(model: str) -> NodeError:
    """The answer to a call that `resumes` where nothing can: whoever asks runs it again from its start."""
    return NodeError(NodeErrorCode.CANNOT_RESUME, f"{model}: its engine cannot go on with an answer begun elsewhere")


@asynccontextmanager
async def _closing(blocks: AsyncIterator[bytes]) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """Closes an iterator that can be closed (async generators can), also when it was left half-way."""
    try:
        yield blocks
    finally:
        if isinstance(blocks, AsyncGenerator):
            await blocks.aclose()
