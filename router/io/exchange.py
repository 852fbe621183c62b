"""One request on its way: reads it, drives its attempts, carries the answer back, and reports what happened, once.

All of it runs in the task of its handler. Events step the machine at the place where they happen, so that nothing is
written to the client that the machine does not know of.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.types import NodeId, RequestId, Usage
from router import asked as asking
from router import catalog
from router.attempts import (
    AskFor,
    Attempts,
    Broke,
    ClientLeft,
    CloseUpstream,
    Comfort,
    Completed,
    Denied,
    Effect,
    Event,
    Fail,
    Finish,
    FirstByte,
    NodeLost,
    Open,
    Placed,
    Tick,
)
from router.errors import RouterError
from router.events import Decision, Outcome, Request
from router.facts import RouteFact
from router.frames import CancelAsk, CoordinatorFrame, Done, First, Granted, Queued, Refused, Taken
from router.io import envelope
from router.io.bodies import Bodies
from router.io.carry import DONE, Hop
from router.io.replies import CLIENT_LEFT, Reply, StreamReply, WholeReply
from router.io.said import Said
from router.settings import EdgeSettings
from router.view import View

log = logging.getLogger(__name__)

_USAGE = b": usage "


class Placing(Protocol):
    """The edge's side of router/io/dispatch.py."""

    def ask(
        self,
        request: Request,
        attempt: int,
        age_s: float,
        last_outcome: Outcome | None,
        on_answer: Callable[[CoordinatorFrame], None],
    ) -> None: ...

    def taken(self, id: RequestId, attempt: int) -> None: ...  # noqa: A002

    def first(self, id: RequestId, attempt: int, cached_tokens: int) -> None: ...  # noqa: A002

    def done(self, id: RequestId, attempt: int, outcome: Outcome, usage: Usage) -> None: ...  # noqa: A002

    def cancel(self, id: RequestId, attempt: int) -> None: ...  # noqa: A002


@dataclass(frozen=True, slots=True)
class Means:
    """What every exchange of an edge works with. `hop` raises NodeError when there is no way to that node."""

    view: Callable[[], View]
    dispatch: Placing
    hop: Callable[[NodeId], Hop]
    bodies: Bodies
    settings: EdgeSettings
    report: Callable[[RouteFact], None]
    count: Callable[[str, int], None]


class Exchange:
    """One POST to `path` (below /v1). `run` it once; it returns the response, or raises when the client has left."""

    def __init__(self, means: Means, request: web.Request, path: str) -> None:
        self.id = RequestId(f"req-{secrets.token_hex(8)}")
        self._means, self._http, self._path = means, request, path
        self._settings = means.settings
        self._clock = asyncio.get_running_loop().time
        self._at, self._began = datetime.now(UTC), self._clock()
        self._ends_at = self._began + means.settings.request_timeout_s
        self._said: Said | None = None
        self._body = b""
        self._asked: asking.Asked | None = None
        self._wanted = catalog.Wanted(())
        self._machine: Attempts | None = None
        self._reply: Reply | None = None

        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()  # something to open, or the end
        self._to_open: Open | None = None
        self._carried: Open | None = None  # the upstream that counts now
        self._scope: asyncio.Timeout | None = None  # rescheduled to now when that upstream must stop
        self._end: Finish | Fail | None = None
        self._tasks: asyncio.TaskGroup | None = None

        self._coordinator: NodeId | None = None
        self._decision: Decision | None = None
        self._granted: Granted | None = None
        self._first_at: float | None = None

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead."""
        self._feed(NodeLost(node))

    def headers(self) -> dict[str, str]:
        """Of the response, as far as known: which node answers is certain once its first byte is there."""
        fields = {"x-request-id": str(self.id)}
        if self._machine is None:
            return fields
        if self._first_at is not None and self._granted is not None:
            fields["x-mesh-node"] = self._name(self._granted.node)
            fields["x-mesh-model"] = self._granted.model
        elif self._end is None:
            return fields  # the head goes out before anything is certain
        fields["x-mesh-attempts"] = str(self._attempts)
        fields["x-mesh-queue-ms"] = str(round(self._machine.waited_s * 1e3))
        return fields

    async def run(self) -> web.StreamResponse:
        """Never raises but CancelledError. The RouteFact is reported before it returns."""
        error: str | None = None
        status = 500
        outcome: Literal["refused", "failed", "cancelled"] = "failed"
        try:
            response = await self._run()
            status = response.status
            return response
        except RouterError as refused:
            response = envelope.refused(
                refused.refusal, self.headers(), retry_after_s=self._settings.retry_after_s
            )
            status, outcome, error = response.status, "refused", f"{refused.refusal.code.value}: {refused}"
            return response
        except (asyncio.CancelledError, ConnectionError) as gone:
            self._feed(ClientLeft())
            status, outcome = self._status or CLIENT_LEFT, "cancelled"
            if isinstance(gone, asyncio.CancelledError):
                raise
            return web.Response(status=status)
        except Exception:
            log.exception("request %s failed in the edge", self.id)
            self._feed(ClientLeft())
            error = "internal_error"
            return envelope.defect(self.headers())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._means.bodies.give_back(len(self._body))
            self._means.report(self._fact(status, outcome, error))

    async def _run(self) -> web.StreamResponse:
        self._said = Said.of(self._http)
        if (most_s := self._said.deadline_s) is not None:
            self._ends_at = self._began + min(most_s, self._settings.request_timeout_s)
        self._body = await self._means.bodies.read(self._http)
        self._means.count("client_in", len(self._body))
        self._asked = asking.read(self._path, self._body, self._said.content_type)
        self._wanted = catalog.wanted(self._means.view(), self._path, self._asked, self._settings.names_listed)
        streamed = self._asked.stream and self._generates
        if streamed:
            self._reply = StreamReply(self._http, self.headers, self._settings, self._means.count)
        else:
            self._reply = WholeReply(self.headers, self._settings, self._means.count)
        self._machine = Attempts(
            self.id,
            settings=self._settings,
            streamed=streamed,
            deadline_s=self._ends_at - self._clock(),
            now=self._clock(),
            barred=self._wanted.barred,
        )
        async with asyncio.TaskGroup() as self._tasks:
            await self._drive(self._reply)
        return self._reply.response()

    async def _drive(self, reply: Reply) -> None:
        self._feed(Tick())
        while self._end is None:
            await self._wake.wait()
            self._wake.clear()
            if (opened := self._to_open) is not None:
                self._to_open = None
                await self._carry(opened, reply)
        if isinstance(self._end, Fail):
            try:
                async with asyncio.timeout(self._settings.farewell_s):
                    await reply.fail(self._end.refusal)
            except (ConnectionError, TimeoutError):  # it left, or does not read: then it need not be told
                if self._http.transport is not None:
                    self._http.transport.abort()

    @property
    def _generates(self) -> bool:
        return self._path in (asking.CHAT, asking.COMPLETIONS)

    @property
    def _attempts(self) -> int:
        return (len(self._machine.facts) if self._machine else 0) + (self._carried is not None)

    @property
    def _status(self) -> int:
        return self._reply.status if self._reply is not None else 0

    # The machine and what it wants done

    def _feed(self, event: Event) -> None:
        """Step the machine. What happens because of it (an answer given at once) is stepped after it, not inside."""
        if self._machine is None:
            return
        self._inbox.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inbox:
                for effect in self._machine.step(self._inbox.popleft(), self._clock()):
                    self._perform(effect)
        finally:
            self._stepping = False
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if self._machine.over else loop.call_at(self._machine.deadline, self._feed, Tick())

    def _perform(self, effect: Effect) -> None:
        dispatch = self._means.dispatch
        match effect:
            case AskFor(attempt, excluded, last_outcome):
                request = self._placing(excluded)
                dispatch.ask(request, attempt, self._clock() - self._began, last_outcome, self._answered)
            case Open():
                self._to_open = effect
                self._wake.set()
            case CloseUpstream():
                self._to_open = self._carried = None
                if self._scope is not None:
                    self._scope.reschedule(self._clock())
            case Taken(id_, attempt):
                dispatch.taken(id_, attempt)
            case First(id_, attempt, cached):
                dispatch.first(id_, attempt, cached)
            case Done(id_, attempt, outcome, usage):
                dispatch.done(id_, attempt, outcome, usage)
            case CancelAsk(id_, attempt):
                dispatch.cancel(id_, attempt)
            case Comfort():
                assert self._tasks is not None
                self._tasks.create_task(self._comfort())
            case Finish() | Fail():
                self._end = effect
                self._wake.set()

    def _placing(self, excluded: tuple[NodeId, ...]) -> Request:
        assert self._asked is not None and self._said is not None
        return Request(
            id=self.id,
            models=self._wanted.models,
            prompt_tokens=round(len(self._body) / self._settings.bytes_per_token),
            max_tokens=self._asked.max_tokens,
            client=self._said.client,
            priority=self._said.priority,
            deadline=max(0.0, self._ends_at - self._clock()),
            excluded=excluded,
        )

    def _answered(self, frame: CoordinatorFrame) -> None:
        match frame:
            case Queued():
                return
            case Granted():
                if self._end is None:
                    self._granted, self._decision = frame, frame.decision
                    self._coordinator = self._means.view().coordinator
                self._feed(Placed(frame.attempt, frame.node, frame.model, frame.decision))
            case Refused():
                self._feed(Denied(frame.attempt, frame.error))

    async def _comfort(self) -> None:
        assert self._reply is not None
        try:
            await self._reply.comfort()
        except ConnectionError:
            self._feed(ClientLeft())

    # Carrying

    async def _carry(self, opened: Open, reply: Reply) -> None:
        """One attempt, from its opening to its end, whatever that is. The machine hears of it once."""
        assert self._asked is not None and self._said is not None
        call = Call(
            id=self.id,
            attempt=opened.attempt,
            edge=self._means.view().self_id,
            model=opened.model,
            path=self._path,
            body=self._body,
            wants_usage=self._asked.include_usage or not self._asked.stream,
            content_type="application/json" if self._generates else self._said.content_type,
            deadline_s=max(0.001, self._ends_at - self._clock()),
        )
        self._carried, self._first_at = opened, None
        reply.restart()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scope = scope
                hop = self._means.hop(opened.node)
                await (self._stream(hop, call, opened, reply) if self._generates else self._post(hop, call, opened))
        except TimeoutError:
            if not scope.expired():
                raise
        except NodeError as error:
            self._feed(Broke(opened.attempt, error.code, error.message))
        except ConnectionError:  # of the client: a hop's own are NodeErrors
            self._feed(ClientLeft())
        finally:
            self._scope = self._carried = None

    async def _stream(self, hop: Hop, call: Call, opened: Open, reply: Reply) -> None:
        usage, complete = Usage(), False
        async with aclosing(hop.stream(call)) as blocks:
            async for block in blocks:
                if self._carried is not opened:
                    return  # closed while this block was on its way up
                if block.startswith(b":"):
                    if block.startswith(_USAGE):
                        usage = _usage(block)
                    elif self._first_at is not None:
                        await reply.keep_alive(block)
                elif not block.startswith(DONE):
                    if self._first_at is None:
                        self._first_at = self._clock()
                        self._feed(FirstByte(opened.attempt))
                    await reply.block(block)
                elif self._first_at is None:
                    raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine ended without an answer")
                else:
                    complete = True
                    reply.seal(usage)
                    self._feed(Completed(opened.attempt, usage))
                    await reply.finish()
        if not complete:
            raise NodeError(NodeErrorCode.UNREACHABLE, "the answer ended without [DONE]")

    async def _post(self, hop: Hop, call: Call, opened: Open) -> None:
        status, content_type, body = await hop.post(call)
        if self._carried is not opened:
            return
        if status == 429:
            raise NodeError(NodeErrorCode.NODE_BUSY, "the engine is full")
        if status >= 500:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the engine answered {status}")
        self._first_at = self._clock()
        self._feed(FirstByte(opened.attempt))
        assert isinstance(self._reply, WholeReply)
        if status >= 400:
            content_type, body = "application/json", envelope.engine_refusal(status, body)
        self._reply.give(status, content_type, body)
        self._feed(Completed(opened.attempt, Usage()))

    # What happened

    def _name(self, node: NodeId | str) -> str:
        return self._means.view().names().get(NodeId(node), node)

    def _fact(
        self, status: int, otherwise: Literal["refused", "failed", "cancelled"], error: str | None
    ) -> RouteFact:
        view, machine, end = self._means.view(), self._machine, self._end
        now = self._clock()
        outcome: Literal["ok", "refused", "failed", "cancelled"] = otherwise
        if error is None and isinstance(end, Finish):
            outcome = end.outcome if status < 400 or end.outcome == "cancelled" else "refused"
        elif error is None and isinstance(end, Fail):
            outcome = "failed" if machine is not None and machine.facts and status != 400 else "refused"
            error = f"{end.refusal.code.value}: {end.refusal.message}"
        usage = end.usage if isinstance(end, Finish) else Usage()
        coordinator = self._coordinator or view.coordinator
        facts = machine.facts if machine is not None else []
        return RouteFact(
            id=self.id,
            client_request_id=self._said.client_request_id if self._said else None,
            at=self._at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            edge=self._name(view.self_id),
            node=self._name(facts[-1].node) if facts else None,
            coordinator=self._name(coordinator) if coordinator else None,
            model=catalog.shown(self._asked.model) if self._asked else "",
            served_model=self._granted.model if self._granted and self._first_at is not None else None,
            stream=bool(self._asked and self._asked.stream),
            status=self._status or status,
            outcome=outcome,
            queue_ms=_ms(machine.waited_s) if machine else 0.0,
            ttft_ms=None if self._first_at is None else _ms(self._first_at - self._began),
            total_ms=_ms(now - self._began),
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            attempts=tuple(msgspec.structs.replace(f, node=self._name(f.node)) for f in facts),
            decision=self._decision,
            error=error,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _usage(block: bytes) -> Usage:
    """The node's own count. One that cannot be read counts nothing; the answer is none the worse."""
    try:
        return msgspec.json.decode(block[len(_USAGE) :].strip(), type=Usage)
    except msgspec.DecodeError:
        return Usage()
