"""An answer on its way from a model server: pushed block by block into a sink, in the callback that brings it.

A task that waits for each block costs a wake-up a block, 2 us of the 15 that carrying one may take; a callback none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from node.errors import NodeError, NodeErrorCode
from node.openai import DONE, is_comment, usage_of

GATHERED_BLOCKS = 64  # kept for one who iterates slowly; then the server is not read


class Sink(Protocol):
    """Takes an answer. Called from callbacks: it must not wait, and raises nothing. It is not called before whoever
    pours into it has been given the flow."""

    def block(self, block: bytes) -> None:
        """One whole SSE block, `[DONE]` excepted."""

    def done(self, error: NodeError | None) -> None:
        """`[DONE]` has come, or `error` instead. Once, and the last that is said; never after Flow.close."""


class Flow(Protocol):
    """The way an answer comes, for whoever takes it."""

    def pause(self) -> None:
        """No more blocks for now (a few may still come): the server has to wait."""

    def resume(self) -> None:
        """Go on."""

    def close(self) -> None:
        """Not wanted any more: cancels what is generated. Idempotent; nothing after `done`."""


async def gathered(pour: Callable[[Sink], Flow]) -> AsyncGenerator[bytes, None]:
    """The blocks one after the other, `[DONE]` last, for whoever would rather wait. Raises what `pour` does, and
    NodeError. Closing it closes the flow."""
    sink = _Gathered()
    flow = pour(sink)
    try:
        while True:
            while sink.blocks:
                yield sink.blocks.popleft()
            if sink.error is not None:
                raise sink.error
            if sink.whole:
                yield DONE
                return
            flow.resume()
            sink.flow = flow
            await sink.news()
    finally:
        flow.close()


class Awaited:
    """A sink for whoever only waits for the end."""

    def __init__(self) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # raises NodeError

    def block(self, block: bytes) -> None:
        """Passes by."""

    def done(self, error: NodeError | None) -> None:
        if self.end.done():
            return
        if error is None:
            self.end.set_result(None)
        else:
            self.end.set_exception(error)


class _Gathered:
    def __init__(self) -> None:
        self.blocks: deque[bytes] = deque()
        self.error: NodeError | None = None
        self.whole = False
        self.flow: Flow | None = None
        self._waiter: asyncio.Future[None] | None = None

    def block(self, block: bytes) -> None:
        self.blocks.append(block)
        if len(self.blocks) == GATHERED_BLOCKS and self.flow is not None:
            self.flow.pause()
        self._wake()

    def done(self, error: NodeError | None) -> None:
        self.error, self.whole = error, error is None
        self._wake()

    async def news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Meter:
    """Counts what passes through a worker that cannot tell: one data block is about one token."""

    def __init__(self) -> None:
        self.generated = self.prompt = self.active = self.signs = 0

    def count(self, block: bytes) -> None:
        """It has passed."""
        if (found := usage_of(block)) is not None:
            self.prompt += found.usage.prompt
        elif is_comment(block):
            self.signs += 1
        else:
            self.generated += 1


class Metered:
    """A sink and a flow between two others: counts, and says why a server broke off if `explain` knows better."""

    def __init__(
        self, meter: Meter, sink: Sink, explain: Callable[[NodeError], Awaitable[NodeError]] | None = None
    ) -> None:
        self._meter, self._sink, self._explain = meter, sink, explain
        self._explaining: asyncio.Future[None] | None = None
        self._flow: Flow | None = None
        self._over = False
        meter.active += 1

    def through(self, pour: Callable[[Sink], Flow]) -> Flow:
        """Begins. Raises what `pour` does."""
        try:
            self._flow = pour(self)
        except BaseException:
            self._end()
            raise
        return self

    def block(self, block: bytes) -> None:
        if block.startswith(b"data: {") and b'"usage"' not in block:
            self._meter.generated += 1  # as nearly all are
        else:
            self._meter.count(block)
        self._sink.block(block)

    def done(self, error: NodeError | None) -> None:
        self._end()
        if error is None or self._explain is None or error.code is not NodeErrorCode.MODEL_FAILED:
            self._sink.done(error)
        else:
            self._explaining = asyncio.ensure_future(self._explained(self._explain, error))

    def pause(self) -> None:
        if self._flow is not None:
            self._flow.pause()

    def resume(self) -> None:
        if self._flow is not None:
            self._flow.resume()

    def close(self) -> None:
        flow = self._flow
        self._end()
        if self._explaining is not None:
            self._explaining.cancel()
        if flow is not None:
            flow.close()

    async def _explained(self, explain: Callable[[NodeError], Awaitable[NodeError]], error: NodeError) -> None:
        try:
            error = await explain(error)
        except Exception:  # noqa: BLE001 - a fault of the explanation leaves what is known
            self._sink.done(error)
        else:
            self._sink.done(error)

    def _end(self) -> None:
        self._flow = None  # which holds this as its sink: without that, the collector would have to find them
        if not self._over:
            self._over = True
            self._meter.active -= 1
