"""Carries one attempt of one request, from its opening to its end, whatever that is. The machine hears of it once.

Nothing waits here: what the node says goes to the client in the callback that brings it, and a slow client holds the
node up.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

import msgspec

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.flow import Flow
from node.openai import usage_of
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


class Owner(Protocol):
    """Whose attempt it is: router/io/exchange.py."""

    def feed(self, event: Event) -> None:
        """What has happened."""

    def explain_late(self) -> None:
        """The client is told why here, when its head went out before that was known. Raises ConnectionError."""

    def learn(self, model: str, usage: Usage) -> None:
        """The answer is whole."""

    def defect(self, error: Exception) -> None:
        """Of ours, which ends the request."""


class Carrier:
    """One attempt: a Sink for a completion, or the task of a post. After `close` it says nothing."""

    __slots__ = (
        "_first", "_flow", "_flows", "_handover", "_means", "_opened", "_over", "_owner", "_paused", "_posting",
        "_record", "_reply", "_seam", "_usage",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, means: Means, opened: Open, *, record: Record, handover: Handover, reply: Reply
    ) -> None:
        self._owner, self._means, self._record = owner, means, record
        self._handover, self._reply, self._opened = handover, reply, opened
        self._flow: Flow | None = None
        self._posting: asyncio.Task[None] | None = None
        self._seam: Seam | None = None  # what a second run must pass
        self._usage = Usage()
        self._first = False  # its first byte has come,
        self._flows = False  # and something that the client did not have
        self._paused = self._over = False

    def stream(self, call: Call) -> None:
        """A completion."""
        if self._opened.mode == "start" and self._handover.restart():
            self._record.first_at = None
            self._reply.restart()
        try:
            hop = self._means.hop(self._opened.node)
            self._seam = self._second_run()
            self._flow = hop.pour(call, self)
        except NodeError as error:
            self._broke(error)
        except SeamError as error:
            self._end(Mismatch(self._opened.attempt, str(error)))

    def post(self, call: Call, reply: WholeReply) -> None:
        """Any other endpoint."""
        self._record.first_at = None
        try:
            hop = self._means.hop(self._opened.node)
        except NodeError as error:
            self._broke(error)
        else:
            self._posting = asyncio.ensure_future(self._post(hop, call, reply))

    def close(self) -> None:
        """It counts no more: the node is told to stop."""
        self._over = True
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        if self._posting is not None and self._posting is not asyncio.current_task():
            self._posting.cancel()

    # Sink

    def block(self, block: bytes) -> None:
        if self._over:
            return
        try:
            if block.startswith(b":"):
                self._comment(block)
            else:
                self._data(block)
        except Exception as error:  # noqa: BLE001 - what brings blocks must not end of it
            self._failed(error)
        if self._reply.full and not self._paused and self._flow is not None:
            self._paused = True
            self._flow.pause()
            self._reply.when_room(self._go_on)

    def done(self, error: NodeError | None) -> None:
        if self._over:
            return
        if error is not None:
            self._broke(error)
        elif not self._first and self._opened.mode == "start":
            self._broke(NodeError(NodeErrorCode.MODEL_FAILED, "the engine ended without an answer"))
        else:
            try:
                self._finish()
            except Exception as found:  # noqa: BLE001 - as above
                self._failed(found)

    # What it does with what comes

    def _data(self, block: bytes) -> None:
        if not self._first:
            self._first = True
            self._began(block)
        new = block if self._seam is None else self._seam.feed(block)
        if new is None:
            return
        if not self._flows:
            self._flows = True
            self._owner.feed(Joined(self._opened.attempt))
        self._handover.kept.add(new)
        if not self._over:
            self._reply.block(new)

    def _comment(self, block: bytes) -> None:
        """The answer's usage, or a sign of life, which a client whose answer has begun sees too."""
        if block.startswith(_USAGE):
            self._usage = _usage(block)
        elif self._record.first_at is not None and not self._reply.full:
            self._reply.keep_alive(block)

    def _began(self, block: bytes) -> None:
        """The first `data:` block of this attempt."""
        early = usage_of(block)
        opened, starts = self._opened, self._opened.mode == "start"
        if starts:
            self._record.first_at = asyncio.get_running_loop().time()
            self._handover.began(self._means.view(), opened.node, opened.model)
        self._owner.feed(FirstByte(opened.attempt, early.usage.cached if early is not None else 0))
        if starts:
            self._owner.explain_late()

    def _finish(self) -> None:
        if self._seam is not None:
            self._seam.end()
        opened, usage = self._opened, self._usage
        self._reply.seal(usage)
        self._say_end()
        self._owner.learn(opened.model, usage)
        self._end(Completed(opened.attempt, usage, self._handover.own(usage, opened.mode)))

    def _say_end(self) -> None:
        """Before anything is noted of it, as nobody waits for that. A client that has left now did so in vain."""
        with suppress(ConnectionError):
            self._reply.finish()

    def _second_run(self) -> Seam | None:
        """Raises NodeError when nothing can be done where it was granted, SeamError when nothing can be anywhere."""
        if self._opened.mode == "start" and self._handover.begun:
            raise NodeError(NodeErrorCode.MODEL_NOT_FOUND, "it holds other weights by now than those it had")
        return self._handover.seam() if self._opened.mode == "replay" else None

    def _go_on(self) -> None:
        self._paused = False
        if self._flow is not None:
            self._flow.resume()

    async def _post(self, hop: Hop, call: Call, reply: WholeReply) -> None:
        try:
            status, content_type, body = await hop.post(call)
            if self._over:
                return
            if status == 429:
                raise NodeError(NodeErrorCode.NODE_BUSY, "the engine is full")
            if status >= 500:
                raise NodeError(NodeErrorCode.MODEL_FAILED, f"the engine answered {status}")
            self._record.first_at = asyncio.get_running_loop().time()
            self._owner.feed(FirstByte(self._opened.attempt))
            if status >= 400:
                content_type, body = "application/json", envelope.engine_refusal(status, body)
            reply.give(status, content_type, body)
            self._say_end()
            self._end(Completed(self._opened.attempt, Usage()))
        except NodeError as error:
            if not self._over:
                self._broke(error)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    # How it ends

    def _failed(self, error: Exception) -> None:
        """What came cannot be passed on."""
        match error:
            case NodeError():
                self._handover.spoil()  # The reply could not put it together, however well it came.
                self._broke(error)
            case SeamError():
                self._end(Mismatch(self._opened.attempt, str(error)))
            case ConnectionError():
                self._end(ClientLeft())
            case _:
                self.close()
                self._owner.defect(error)

    def _broke(self, error: NodeError) -> None:
        self._end(Broke(self._opened.attempt, error.code, error.message))

    def _end(self, event: Event) -> None:
        self.close()
        self._owner.feed(event)


def _usage(block: bytes) -> Usage:
    """The node's own count. One that cannot be read counts nothing; the answer is none the worse."""
    try:
        return msgspec.json.decode(block[len(_USAGE) :].strip(), type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()
