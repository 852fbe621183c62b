"""Carries one attempt of one request, from its opening to its end, whatever that is. The machine hears of it once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.openai import is_done, usage_of
from node.types import Usage
from router.attempt_events import Broke, ClientLeft, Completed, Event, FirstByte, Joined, Mismatch, Open
from router.handover import Handover
from router.io import envelope
from router.io.carry import Hop
from router.io.means import Means
from router.io.record import Record
from router.io.replies import Reply, WholeReply
from router.seam import Seam, SeamError

_USAGE = b": usage "


class Carrier:
    """All attempts of one request, one after the other. `feed` takes what happens; `explain_late` tells the client why
    when the head went out before that was known; `learn` hears (model, usage) of an answer that is whole."""

    def __init__(
        self,
        means: Means,
        record: Record,
        handover: Handover,
        *,
        feed: Callable[[Event], None],
        explain_late: Callable[[Reply], Awaitable[None]],
        learn: Callable[[str, Usage], None],
    ) -> None:
        self._means, self._record, self._handover = means, record, handover
        self._feed, self._explain_late, self._learn = feed, explain_late, learn
        self._clock = asyncio.get_running_loop().time
        self.carried: Open | None = None  # the upstream that counts now
        self._scope: asyncio.Timeout | None = None  # rescheduled to now when that upstream must stop
        self._writing = False  # to the client; left so by what a reply raises

    def stop(self, *, over: bool) -> None:
        """The upstream that is open counts no more. What is being written to the client goes out whole, for the answer
        goes on behind it; unless the request is `over`."""
        self.carried = None
        if self._scope is not None and (over or not self._writing):
            self._scope.reschedule(self._clock())
            self._scope = None  # it is told once: a scope that has begun to end raises

    async def stream(self, opened: Open, call: Call, reply: Reply) -> None:
        """A completion. Raises nothing but CancelledError."""
        if opened.mode == "start" and self._handover.restart():
            self._record.first_at = None
            reply.restart()

        async def run(hop: Hop) -> None:
            await self._stream(hop, call, opened, reply)

        await self._carry(opened, run)

    async def post(self, opened: Open, call: Call, reply: WholeReply) -> None:
        """Any other endpoint. Raises nothing but CancelledError."""

        async def run(hop: Hop) -> None:
            await self._post(hop, call, opened, reply)

        self._record.first_at = None
        await self._carry(opened, run)

    async def _carry(self, opened: Open, run: Callable[[Hop], Awaitable[None]]) -> None:
        self.carried, self._writing = opened, False
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scope = scope
                try:
                    await run(self._means.hop(opened.node))
                finally:
                    self._scope = None  # what is fed below closes nothing: this attempt's scope is over
        except TimeoutError:
            if not scope.expired():
                raise
        except NodeError as error:
            if self._writing:  # The reply could not put it together, however well it came.
                self._handover.spoil()
            self._feed(Broke(opened.attempt, error.code, error.message))
        except SeamError as error:
            self._feed(Mismatch(opened.attempt, str(error)))
        except ConnectionError:  # of the client: a hop's own are NodeErrors
            self._feed(ClientLeft())
        finally:
            self.carried = None

    async def _stream(self, hop: Hop, call: Call, opened: Open, reply: Reply) -> None:
        usage, complete, seam = Usage(), False, self._seam(opened)
        first = flows = False
        async with aclosing(hop.stream(call)) as blocks:
            async for block in blocks:
                if self.carried is not opened:
                    return  # closed while this block was on its way up, or the one before on its way to the client
                if block.startswith(b":"):
                    usage = await self._comment(block, reply) or usage
                elif not is_done(block):
                    if not first:
                        first = True
                        await self._first(block, opened, reply)
                    new = block if seam is None else seam.feed(block)
                    if new is None:
                        continue
                    if not flows:
                        flows = True
                        self._feed(Joined(opened.attempt))
                    self._handover.kept.add(new)
                    self._writing = True
                    await reply.block(new)
                    self._writing = False
                elif not first and opened.mode == "start":
                    raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine ended without an answer")
                else:
                    if seam is not None:
                        seam.end()
                    complete = True
                    await self._finish(usage, opened, reply)
        if not complete:
            raise NodeError(NodeErrorCode.UNREACHABLE, "the answer ended without [DONE]")

    async def _comment(self, block: bytes, reply: Reply) -> Usage | None:
        """A sign of life, which a client whose answer has begun sees too, or the answer's usage."""
        if block.startswith(_USAGE):
            return _usage(block)
        if self._record.first_at is not None:
            self._writing = True
            await reply.keep_alive(block)
            self._writing = False
        return None

    def _seam(self, opened: Open) -> Seam | None:
        """What a second run must pass. Raises NodeError when nothing can be done where it was granted."""
        if opened.mode == "start" and self._handover.begun:
            raise NodeError(NodeErrorCode.MODEL_NOT_FOUND, "it holds other weights by now than those it had")
        return self._handover.seam() if opened.mode == "replay" else None

    async def _first(self, block: bytes, opened: Open, reply: Reply) -> None:
        """The first `data:` block of this attempt."""
        early = usage_of(block)
        starts = opened.mode == "start"
        if starts:
            self._record.first_at = self._clock()
            self._handover.began(self._means.view(), opened.node, opened.model)
        self._feed(FirstByte(opened.attempt, early.usage.cached if early is not None else 0))
        if starts:
            self._writing = True
            await self._explain_late(reply)
            self._writing = False

    async def _finish(self, usage: Usage, opened: Open, reply: Reply) -> None:
        self._writing = True
        reply.seal(usage)
        self._learn(opened.model, usage)
        self._feed(Completed(opened.attempt, usage, self._handover.own(usage, opened.mode)))
        await reply.finish()

    async def _post(self, hop: Hop, call: Call, opened: Open, reply: WholeReply) -> None:
        status, content_type, body = await hop.post(call)
        if self.carried is not opened:
            return
        if status == 429:
            raise NodeError(NodeErrorCode.NODE_BUSY, "the engine is full")
        if status >= 500:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the engine answered {status}")
        self._record.first_at = self._clock()
        self._feed(FirstByte(opened.attempt))
        if status >= 400:
            content_type, body = "application/json", envelope.engine_refusal(status, body)
        reply.give(status, content_type, body)
        self._feed(Completed(opened.attempt, Usage()))


def _usage(block: bytes) -> Usage:
    """The node's own count. One that cannot be read counts nothing; the answer is none the worse."""
    try:
        return msgspec.json.decode(block[len(_USAGE) :].strip(), type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()
