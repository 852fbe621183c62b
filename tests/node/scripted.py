"""What an async generator says, as a flow: workers and nodes of tests are scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.flow import Flow, Sink, gathered
from node.openai import DONE


class Serves(Protocol):
    def pour(self, call: Call, sink: Sink) -> Flow: ...


class Pours(Protocol):
    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow: ...


def served(host: Serves, call: Call) -> AsyncGenerator[bytes, None]:
    """A call's blocks, one after the other, `[DONE]` last. Raises NodeError."""
    return gathered(lambda sink: host.pour(call, sink))


def streamed(worker: Pours, path: str, body: bytes, *, model_name: str) -> AsyncGenerator[bytes, None]:
    """What a worker says, likewise."""
    return gathered(lambda sink: worker.pour(path, body, model_name=model_name, sink=sink))


class Scripted:
    """A Flow that says the blocks into `sink`. The script is closed when it is left, in a turn of the loop."""

    def __init__(
        self,
        blocks: AsyncIterator[bytes],
        sink: Sink,
        *,
        cut: NodeError | None = None,
        over: Callable[[], None] = lambda: None,
    ) -> None:
        """`cut` is what a script that ends without `[DONE]` comes to; `over` is called once, when it is closed or has
        ended."""
        self._blocks, self._sink, self._over = blocks, sink, over
        self._cut = cut or NodeError(NodeErrorCode.MODEL_FAILED, "the answer ended without [DONE]")
        self._runs = asyncio.Event()
        self._runs.set()
        self._task = asyncio.ensure_future(self._say())

    def pause(self) -> None:
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    def close(self) -> None:
        over, self._over = self._over, lambda: None
        over()
        if self._task is not asyncio.current_task():
            self._task.cancel()

    async def _say(self) -> None:
        error: NodeError | None = self._cut
        try:
            async for block in self._blocks:
                if block == DONE:
                    error = None
                    break
                self._sink.block(block)
                await self._runs.wait()
        except NodeError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - a script may raise anything
            error = NodeError(NodeErrorCode.INTERNAL, f"{type(failure).__name__}: {failure}")
        finally:
            if isinstance(self._blocks, AsyncGenerator):
                await self._blocks.aclose()
        self.close()
        self._sink.done(error)
