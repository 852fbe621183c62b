"""One request on its way: reads it, drives its attempts, carries the answer back, and reports what happened, once.

All of it runs in the task of its handler. Events step the machine at the place where they happen, so that nothing is
written to the client that the machine does not know of.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from contextlib import aclosing

import msgspec
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.openai import is_done, usage_of
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
from router.errors import Refusal, RouterError
from router.events import Request, Why
from router.explain import compact
from router.frames import CancelAsk, CoordinatorFrame, Done, First, Granted, Queued, Refused, Taken
from router.io import envelope
from router.io.carry import Hop
from router.io.means import Means
from router.io.record import CLIENT_LEFT, Record
from router.io.replies import Reply, StreamReply, WholeReply
from router.io.said import Said

log = logging.getLogger(__name__)

_USAGE = b": usage "


class Exchange:
    """One POST to `path` (below /v1). `run` it once."""

    def __init__(self, means: Means, request: web.Request, path: str) -> None:
        self._means, self._http, self._path = means, request, path
        self._settings = means.settings
        self._clock = asyncio.get_running_loop().time
        self._record = Record(RequestId(f"req-{secrets.token_hex(8)}"), self._clock())
        self._ends_at = self._record.began + means.settings.request_timeout_s
        self._body = b""
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
        self._tasks: asyncio.TaskGroup | None = None

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead."""
        self._feed(NodeLost(node))

    def headers(self) -> dict[str, str]:
        """Of the response, as far as known: which node answers is certain once its first byte is there."""
        record, machine = self._record, self._machine
        fields = {"x-request-id": str(record.id)}
        if record.first_at is None and record.end is None and record.refusal is None:
            return fields  # the head goes out before anything is certain
        if (explained := self._explained()) is not None:
            fields["x-mesh-decision"] = explained
        if record.first_at is not None and record.granted is not None:
            node = record.granted.node
            fields["x-mesh-node"] = self._means.view().names().get(node, node)
            fields["x-mesh-model"] = record.granted.model
        if machine is not None:
            fields["x-mesh-attempts"] = str(len(machine.facts) + (self._carried is not None))
            fields["x-mesh-queue-ms"] = str(round(machine.waited_s * 1e3))
        return fields

    def _explained(self) -> str | None:
        """The decision, when the client wants to know."""
        if self._record.said is None or not self._record.said.explain:
            return None
        decision = self._record.decision(self._means.view())
        return compact(decision, self._settings.explain_limit_bytes) if decision is not None else None

    async def run(self, closed: Refusal | None) -> web.StreamResponse:
        """`closed`: it is refused with this, unread. Raises nothing but CancelledError. The RouteFact is reported
        before it returns."""
        record = self._record
        response: web.StreamResponse = web.Response(status=CLIENT_LEFT)
        try:
            if closed is not None:
                raise RouterError.of(closed)
            async with self._means.bodies.hold(self._http) as self._body:
                response = await self._run()
        except RouterError as error:
            record.refusal = error.refusal
            response = envelope.refused(error.refusal, self.headers(), retry_after_s=self._settings.retry_after_s)
        except ConnectionError:
            log.debug("request %s: the client left while it sent the body", record.id)
        except asyncio.CancelledError:
            self._feed(ClientLeft())
            record.status = self._reply.status if self._reply is not None else 0
            raise
        except Exception:
            log.exception("request %s failed in the edge", record.id)
            self._feed(ClientLeft())
            record.defect = True
            response = envelope.defect(self.headers())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            record.status = record.status or response.status
            self._means.report(record.fact(self._means.view(), self._clock()))
        return response

    async def _run(self) -> web.StreamResponse:
        record = self._record
        self._means.count("client_in", len(self._body))
        record.said = said = Said.of(self._http)
        if said.deadline_s is not None:
            self._ends_at = record.began + min(said.deadline_s, self._settings.request_timeout_s)
        record.asked = asked = asking.read(self._path, self._body, said.content_type, self._settings.prompt)
        self._wanted = catalog.wanted(self._means.view(), self._path, asked, self._settings.names_listed)
        streamed = asked.stream and self._generates
        if streamed:
            self._reply = StreamReply(self._http, self.headers, self._settings, self._means.count)
        else:
            self._reply = WholeReply(self.headers, self._settings, self._means.count)
        now = self._clock()
        self._machine = record.machine = Attempts(
            record.id,
            settings=self._settings,
            streamed=streamed,
            deadline_s=self._ends_at - now,
            now=now,
            barred=self._wanted.barred,
        )
        async with asyncio.TaskGroup() as self._tasks:
            await self._drive(self._reply)
        return self._reply.response()

    async def _drive(self, reply: Reply) -> None:
        self._feed(Tick())
        while self._record.end is None:
            await self._wake.wait()
            self._wake.clear()
            if (opened := self._to_open) is not None:
                self._to_open = None
                await self._carry(opened, reply)
        end = self._record.end
        if isinstance(end, Fail) and not await self._told(reply, end.refusal) and self._http.transport is not None:
            self._http.transport.abort()

    async def _told(self, reply: Reply, refusal: Refusal) -> bool:
        """Whether the client took the news. One that left or does not read need not be told."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._settings.farewell_s):
                if self._record.first_at is None:
                    await self._explain_late(reply)
                await reply.fail(refusal)
        except (ConnectionError, TimeoutError):
            return False
        except asyncio.CancelledError:
            if task is not None and task.cancelling():
                raise
            return False  # Of aiohttp's making: a write that the deadline broke off is over for all later ones too.
        return True

    @property
    def _generates(self) -> bool:
        return self._path in (asking.CHAT, asking.COMPLETIONS)

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
                dispatch.ask(request, attempt, self._clock() - self._record.began, last_outcome, self._answered)
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
                self._record.end = effect
                self._wake.set()

    def _placing(self, excluded: tuple[NodeId, ...]) -> Request:
        asked, said = self._record.asked, self._record.said
        assert asked is not None
        assert said is not None
        lengths, model = self._means.lengths, self._wanted.models[0]
        left_s = max(0.0, self._ends_at - self._clock())
        return Request(
            id=self._record.id,
            models=self._wanted.models,
            prompt_tokens=lengths.tokens(model, asked.prompt),
            blocks=asked.prompt.blocks,
            block_tokens=lengths.block_tokens(model),
            whole=asked.prompt.whole,
            follows=asked.prompt.follows,
            max_tokens=asked.max_tokens,
            client=said.client,
            priority=said.priority,
            deadline=left_s - min(self._settings.placed_ahead_s, left_s / 20),
            excluded=excluded,
        )

    def _answered(self, frame: CoordinatorFrame) -> None:
        match frame:
            case Queued():
                return
            case Granted():
                if self._record.end is None:
                    self._record.granted = frame
                    self._decided(frame.why)
                self._feed(Placed(frame.attempt, frame.node, frame.model, frame.why))
            case Refused():
                if self._record.end is None and frame.decision is not None:
                    self._decided(Why(frame.decision))
                self._feed(Denied(frame.attempt, frame.error))

    def _decided(self, why: Why) -> None:
        self._record.decided, self._record.coordinator = why, self._means.view().coordinator

    async def _explain_late(self, reply: Reply) -> None:
        """The head went out before the decision was known."""
        if reply.status and (explained := self._explained()) is not None:
            await reply.keep_alive(f": x-mesh-decision {explained}\n\n".encode())

    async def _comfort(self) -> None:
        assert self._reply is not None
        try:
            await self._reply.comfort()
        except ConnectionError:
            self._feed(ClientLeft())

    # Carrying

    async def _carry(self, opened: Open, reply: Reply) -> None:
        """One attempt, from its opening to its end, whatever that is. The machine hears of it once."""
        asked, said = self._record.asked, self._record.said
        assert asked is not None
        assert said is not None
        call = Call(
            id=self._record.id,
            attempt=opened.attempt,
            edge=self._means.view().self_id,
            model=opened.model,
            path=self._path,
            body=self._body,
            wants_usage=asked.include_usage or not asked.stream,
            content_type="application/json" if self._generates else said.content_type,
            deadline_s=max(0.001, self._ends_at - self._clock()),
            keep_alive=asked.keep_alive,
            alone=self._means.view().alone,
        )
        self._carried, self._record.first_at = opened, None
        reply.restart()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scope = scope
                try:
                    hop = self._means.hop(opened.node)
                    await (self._stream(hop, call, opened, reply) if self._generates else self._post(hop, call, opened))
                finally:
                    self._scope = None  # what is fed below closes nothing: this attempt's scope is over
        except TimeoutError:
            if not scope.expired():
                raise
        except NodeError as error:
            self._feed(Broke(opened.attempt, error.code, error.message))
        except ConnectionError:  # of the client: a hop's own are NodeErrors
            self._feed(ClientLeft())
        finally:
            self._carried = None

    async def _stream(self, hop: Hop, call: Call, opened: Open, reply: Reply) -> None:
        usage, complete = Usage(), False
        async with aclosing(hop.stream(call)) as blocks:
            async for block in blocks:
                if self._carried is not opened:
                    return  # closed while this block was on its way up
                if block.startswith(b":"):
                    if block.startswith(_USAGE):
                        usage = _usage(block)
                    elif self._record.first_at is not None:
                        await reply.keep_alive(block)
                elif not is_done(block):
                    if self._record.first_at is None:
                        self._record.first_at = self._clock()
                        early = usage_of(block)
                        self._feed(FirstByte(opened.attempt, early.usage.cached if early is not None else 0))
                        await self._explain_late(reply)
                    await reply.block(block)
                elif self._record.first_at is None:
                    raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine ended without an answer")
                else:
                    complete = True
                    reply.seal(usage)
                    self._learn(opened.model, usage)
                    self._feed(Completed(opened.attempt, usage))
                    await reply.finish()
        if not complete:
            raise NodeError(NodeErrorCode.UNREACHABLE, "the answer ended without [DONE]")

    def _learn(self, served: str, usage: Usage) -> None:
        """How long the prompt really was, under the name asked for and the one that answered."""
        assert self._record.asked is not None
        for name in {self._wanted.models[0], served}:
            self._means.lengths.learn(name, self._record.asked.prompt, usage.prompt)

    async def _post(self, hop: Hop, call: Call, opened: Open) -> None:
        status, content_type, body = await hop.post(call)
        if self._carried is not opened:
            return
        if status == 429:
            raise NodeError(NodeErrorCode.NODE_BUSY, "the engine is full")
        if status >= 500:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the engine answered {status}")
        self._record.first_at = self._clock()
        self._feed(FirstByte(opened.attempt))
        assert isinstance(self._reply, WholeReply)
        if status >= 400:
            content_type, body = "application/json", envelope.engine_refusal(status, body)
        self._reply.give(status, content_type, body)
        self._feed(Completed(opened.attempt, Usage()))


def _usage(block: bytes) -> Usage:
    """The node's own count. One that cannot be read counts nothing; the answer is none the worse."""
    try:
        return msgspec.json.decode(block[len(_USAGE) :].strip(), type=Usage)
    except msgspec.DecodeError:
        return Usage()
