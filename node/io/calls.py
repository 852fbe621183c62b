"""One call from its admission to its end: what the edge sent, and how the answer travels back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.facts import CallFact
from node.io.alarm import Alarm
from node.io.engine import Worker
from node.io.flow import Flow, Sink
from node.openai import usage_of
from node.queue import Key
from node.settings import NodeSettings
from node.types import NodeId, RequestId, Resume, Usage

ALIVE: Final = b": alive\n\n"
Outcome: TypeAlias = Literal["ok", "busy", "failed", "cancelled"]
STREAMED: Final = ("chat/completions", "completions")  # always streamed; all other paths are posts
_BUSY: Final = (NodeErrorCode.NODE_BUSY, NodeErrorCode.DRAINING)


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
    """A call in a model's queue: a Sink to its worker and a Flow to whoever asked, whose `sink` gets what the worker
    says in the same callback, our signs of life in place of the worker's, and `: usage {...}` before the end.

    `left` is told once how it ended. Times are the event loop's. Nothing is kept here: while a slow reader pauses it,
    the worker is not read.
    """

    def __init__(
        self,
        call: Call,
        model: str,
        settings: NodeSettings,
        *,
        sink: Sink,
        too_late: Callable[[float], NodeError],
        left: Callable[[AdmittedCall, Outcome, NodeError | None], None],
    ) -> None:
        """`too_late` is given the seconds waited for a model that does not come: what to say then."""
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._settings, self._sink, self._too_late, self._left = settings, sink, too_late, left
        self._error: NodeError | None = None  # said in a moment
        self._over = False  # nothing more is said
        self._gone = False  # `left` was told
        self._posting: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._paused = False
        self._alarm = Alarm(self._rang)
        self.call, self.model = call, model  # MODEL.name, which `call.model` may be an alias of
        self.key: Key = (call.id, call.attempt)
        self.hold_until: float | None = None  # while its model is not in memory: how long it waits for that
        self.admitted_at = self._clock()
        self._alive_at = self.admitted_at + settings.alive_every_s  # the next sign of life, if nothing comes before
        self.deadline = self.admitted_at + call.deadline_s
        self.started_at: float | None = None
        self.first_at: float | None = None  # first `data:` block
        self.last_at: float | None = None
        self.usage = Usage()
        self.cold = False  # its model was not in memory when it came
        self.answer: tuple[int, str, bytes] | None = None  # of a post

    # For the host

    def watch(self) -> None:
        """From now on there are signs of life, and bounds to what it waits for: it is admitted."""
        if not self._over:
            self._alarm.set(min(self._alive_at, self._ends_at()))

    def start(self, worker: Worker, tasks: asyncio.TaskGroup) -> None:
        """It has a slot: the worker begins."""
        self.started_at, self.hold_until = self._clock(), None
        if self.call.resumes and worker.resume is not Resume.CONTINUE:
            self.fail(cannot_resume(self.model))  # Its engine promised more than this worker can.
        elif self.call.path not in STREAMED:
            self._posting = tasks.create_task(self._post(worker))
        else:
            try:
                self._flow = worker.pour(self.call.path, self.call.body, model_name=self.model, sink=self)
            except NodeError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - a fault in an engine ends this call, not the daemon
                self.fail(_fault(error))
            else:
                if self._paused:
                    self._flow.pause()

    def fail(self, error: NodeError) -> None:
        """Ends it, in the next turn of the loop: who says so is in the midst of something. The first error stays."""
        if self._over or self._error is not None:
            return
        self._error = error
        self._stop()
        self._loop.call_soon(self._failed, error)

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

    # Sink, for the worker

    def block(self, block: bytes) -> None:
        """The worker's signs of life are dropped; ours take their place."""
        if not block.startswith(b"data:"):
            return
        self.last_at = self._clock()
        if self.first_at is None:
            self.first_at = self.last_at
        if b'"usage"' in block and (found := usage_of(block)) is not None:
            self.usage = found.usage
            if found.alone and not self.call.wants_usage:
                return
        self._sink.block(block)

    def done(self, error: NodeError | None) -> None:
        if error is not None:
            self.fail(error)
        elif not self._over and self._error is None:
            self._sink.block(b": usage " + msgspec.json.encode(self.usage) + b"\n\n")
            self._end("ok", None)

    # Flow, for whoever asked

    def pause(self) -> None:
        self._paused = True
        if self._flow is not None:
            self._flow.pause()

    def resume(self) -> None:
        self._paused = False
        if self._flow is not None:
            self._flow.resume()

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._leave("cancelled", None)

    # Its end

    def _failed(self, error: NodeError) -> None:
        self._end("busy" if error.code in _BUSY else "failed", error)

    def _end(self, outcome: Outcome, error: NodeError | None) -> None:
        if not self._over:
            self._over = True
            self._sink.done(error)  # first: the client's answer does not wait for our books
            self._leave(outcome, error)

    def _leave(self, outcome: Outcome, error: NodeError | None) -> None:
        """A post's slot is free when its task has ended, but that is waited for a bounded time only."""
        self._stop()
        self._alarm.close()
        posting = self._posting
        if posting is None or posting.done():
            self._tell(outcome, error)
            return
        limit = self._loop.call_later(self._settings.close_limit_s, self._tell, outcome, error)

        def ended(_: asyncio.Future[None]) -> None:
            limit.cancel()
            self._tell(outcome, error)

        posting.add_done_callback(ended)

    def _tell(self, outcome: Outcome, error: NodeError | None) -> None:
        if not self._gone:
            self._gone = True
            self._left(self, outcome, error)

    def _stop(self) -> None:
        """The worker shall go on with it no more."""
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        if self._posting is not None and self._posting is not asyncio.current_task():
            self._posting.cancel()

    # Its patience

    def _rang(self) -> None:
        now = self._clock()
        if now >= self._ends_at():
            self.fail(self._late(now))
            return
        if now >= self._alive_at:
            every_s = self._settings.alive_every_s
            due = now if self.last_at is None else self.last_at + every_s
            if due > now or self._paused:
                self._alive_at = max(due, now + every_s / 2)
            else:
                self._alive_at = now + every_s
                self._sink.block(ALIVE)
        self.watch()

    def _ends_at(self) -> float:
        return self.deadline if self.hold_until is None else min(self.deadline, self.hold_until)

    def _late(self, now: float) -> NodeError:
        """NODE_BUSY: not a failure of the model, the mesh plans again or gives up itself."""
        if self.hold_until is not None and now >= self.hold_until:
            return self._too_late(now - self.admitted_at)
        doing = "waiting for a slot" if self.started_at is None else "running"
        return NodeError(NodeErrorCode.NODE_BUSY, f"the request's deadline passed while it was {doing}")

    async def _post(self, worker: Worker) -> None:
        try:
            self.answer = await worker.post(self.call.path, self.call.body, self.call.content_type)
        except NodeError as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(NodeError(NodeErrorCode.DRAINING, "this node stopped"))  # Unless the reason is known already.
            raise
        except Exception as error:  # noqa: BLE001 - a fault in an engine ends this call, not the daemon
            self.fail(_fault(error))
        else:
            self.first_at = self._clock()
            self._loop.call_soon(self._posted)

    def _posted(self) -> None:
        if self._error is None:
            self._end("ok", None)


def _fault(error: Exception) -> NodeError:
    return NodeError(NodeErrorCode.INTERNAL, f"{type(error).__name__}: {error}")


def cannot_resume(model: str) -> NodeError:
    """The answer to a call that `resumes` where nothing can: whoever asks runs it again from its start."""
    return NodeError(NodeErrorCode.CANNOT_RESUME, f"{model}: its engine cannot go on with an answer begun elsewhere")
