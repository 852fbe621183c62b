"""One call from its admission to its end: what the edge sent, and the blocks that travel back to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.facts import CallFact
from node.io.alarm import Alarm
from node.io.engine import Worker, pouring
from node.io.flow import Flow
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
    """A call in a model's queue. Its worker fills `_out`, pushing (it is a Sink) or iterated over by its pump;
    `next_block` empties it towards the edge.

    Times are the event loop's. What is between the two is bounded: for a slow reader the worker is not read.
    """

    def __init__(self, call: Call, model: str, settings: NodeSettings, too_late: Callable[[float], NodeError]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._settings = settings
        self._out: deque[bytes] = deque()
        self._error: NodeError | None = None
        self._pump: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._full = False  # the flow is paused
        self._waiter: asyncio.Future[bool] | None = None  # of the reader: whether something has come
        self._room: asyncio.Future[None] | None = None  # of the pump
        self._alarm = Alarm(self._rang)
        self.call, self.model = call, model  # MODEL.name, which `call.model` may be an alias of
        self.key: Key = (call.id, call.attempt)
        self.hold_until: float | None = None  # while its model is not in memory: how long it waits for that
        self._too_late = too_late  # given the seconds waited: what to say then
        self.admitted_at = self._clock()
        self.deadline = self.admitted_at + call.deadline_s
        self.started_at: float | None = None
        self.first_at: float | None = None  # first `data:` block
        self.last_at: float | None = None
        self.usage = Usage()
        self.cold = False  # its model was not in memory when it came
        self.answer: tuple[int, str, bytes] | None = None  # of a post

    def start(self, worker: Worker, tasks: asyncio.TaskGroup) -> None:
        """It has a slot: the worker begins."""
        self.started_at, self.hold_until = self._clock(), None
        if self.call.resumes and worker.resume is not Resume.CONTINUE:
            self.fail(cannot_resume(self.model))  # Its engine promised more than this worker can.
        elif self.call.path not in STREAMED:
            self._pump = tasks.create_task(self._guard(self._post, worker))
        elif (pours := pouring(worker)) is None:
            self._pump = tasks.create_task(self._guard(self._stream, worker))
        else:
            try:
                self._flow = pours.pour(self.call.path, self.call.body, model_name=self.model, sink=self)
            except NodeError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - a fault in an engine ends this call, not the daemon
                self.fail(_fault(error))

    def fail(self, error: NodeError) -> None:
        """Ends it: what has been generated still goes out, then `error` is raised. The first error stays."""
        if self._error is None:
            self._error = error
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
        if self._flow is not None:
            self._flow.close()
        self._wake()

    def block(self, block: bytes) -> None:
        """Sink.block. The worker's signs of life are dropped; ours take their place."""
        if not block.startswith(b"data:"):
            return
        self.last_at = self._clock()
        if self.first_at is None:
            self.first_at = self.last_at
        if b'"usage"' in block and (found := usage_of(block)) is not None:
            self.usage = found.usage
            if found.alone and not self.call.wants_usage:
                return
        self._out.append(block)
        if self._holds_enough(block) and self._flow is not None and not self._full:
            self._full = True
            self._flow.pause()
        self._wake()

    def _holds_enough(self, block: bytes) -> bool:
        """Now that `block` has come. Only where it is larger than most is it worth adding up."""
        s, out = self._settings, self._out
        if len(out) >= s.stream_blocks:
            return True
        return len(block) * s.stream_blocks > s.stream_bytes and len(out) > 1 and sum(map(len, out)) >= s.stream_bytes

    def done(self, error: NodeError | None) -> None:
        """Sink.done."""
        if error is not None:
            self.fail(error)
        elif self._error is None:
            self._out += (b": usage " + msgspec.json.encode(self.usage) + b"\n\n", DONE)
            self._wake()

    async def next_block(self) -> bytes:
        """The next block for the edge, ALIVE after a second without one; DONE is the last. Raises NodeError."""
        while not self._out:
            if self._error is not None:
                raise self._error
            self._alarm.set(self._patient_until())
            self._waiter = self._loop.create_future()
            if not await self._waiter:
                self._patient_until()
                return ALIVE
        block = self._out.popleft()
        if self._full and len(self._out) <= self._settings.stream_blocks // 2 and not self._holds_enough(block):
            self._full = False
            assert self._flow is not None
            self._flow.resume()
        elif self._room is not None and not self._room.done():
            self._room.set_result(None)
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
        self._alarm.close()
        if self._flow is not None:
            self._flow.close()
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump}, timeout=self._settings.close_limit_s)

    def _wake(self, *, news: bool = True) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(news)

    def _rang(self) -> None:
        self._wake(news=False)

    def _patient_until(self) -> float:
        """The next sign of life, or when there will be no more to wait for. Raises NodeError(NODE_BUSY) then: not a
        failure of the model, the mesh plans again or gives up itself."""
        now, hold_until, ends = self._clock(), self.hold_until, self.deadline
        if hold_until is not None:
            if now >= hold_until:
                raise self._too_late(now - self.admitted_at)
            ends = min(ends, hold_until)
        if now >= self.deadline:
            doing = "waiting for a slot" if self.started_at is None else "running"
            raise NodeError(NodeErrorCode.NODE_BUSY, f"the request's deadline passed while it was {doing}")
        return min(now + self._settings.alive_every_s, ends)

    async def _guard(self, run: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
        try:
            await run(worker)
        except NodeError as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(NodeError(NodeErrorCode.DRAINING, "this node stopped"))  # Unless the reason is known already.
            raise
        except Exception as error:  # noqa: BLE001 - a fault in an engine ends this call, not the daemon
            self.fail(_fault(error))

    async def _stream(self, worker: Worker) -> None:
        async with _closing(worker.stream(self.call.path, self.call.body, model_name=self.model)) as blocks:
            async for block in blocks:
                if block == DONE:
                    self.done(None)
                    return
                while self._holds_enough(block):
                    self._room = self._loop.create_future()
                    await self._room
                self.block(block)
        raise NodeError(NodeErrorCode.MODEL_FAILED, "the answer ended without [DONE]")

    async def _post(self, worker: Worker) -> None:
        self.answer = await worker.post(self.call.path, self.call.body, self.call.content_type)
        self.first_at = self._clock()
        self._out.append(DONE)
        self._wake()


def _fault(error: Exception) -> NodeError:
    return NodeError(NodeErrorCode.INTERNAL, f"{type(error).__name__}: {error}")


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
