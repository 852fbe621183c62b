"""How an answer leaves the edge: as a stream, or whole. Both hold everything back until it can no longer be retried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from node.http_reply import Answer
from node.io.turn import Outgoing
from node.openai import DONE
from node.types import Usage
from router.assemble import Assembler
from router.errors import Refusal
from router.io import envelope
from router.settings import EdgeSettings

Headers = Callable[[], Mapping[str, str]]
COMFORT = b": working\n\n"
_STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Reply(Protocol):
    """One client's answer. Writing raises ConnectionError when the client is gone."""

    @property
    def status(self) -> int:
        """HTTP status the client was (or is about to be) sent, 0 = none yet."""

    async def block(self, block: bytes) -> None:
        """One `data:` block of the answer."""

    async def keep_alive(self, block: bytes) -> None:
        """A comment of the node: a sign of life."""

    def comfort(self) -> None:
        """Nothing has come for long. Not waited for: a client that still has something to read needs none."""

    def restart(self) -> None:
        """The attempt failed; what it gave does not count. Only before anything was sent."""

    def seal(self, usage: Usage) -> None:
        """`[DONE]` has come. Raises NodeError when what came is no answer; then it can still be retried."""

    async def finish(self) -> None:
        """The sealed answer's end goes out."""

    async def fail(self, refusal: Refusal) -> None:
        """Instead of an answer, or of the rest of one."""

    def answer(self) -> Answer | None:
        """What is still to be sent when it is over; None: at most the end of a stream."""


class StreamReply:
    """Blocks pass through as bytes; a slow reader holds the writer up, and so the node."""

    def __init__(
        self, out: Outgoing, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]
    ) -> None:
        self._out, self._headers, self._settings, self._count = out, headers, settings, count
        self._refused: Answer | None = None

    @property
    def status(self) -> int:
        return self._out.status or (self._refused.status if self._refused is not None else 0)

    async def block(self, block: bytes) -> None:
        self._write(block)
        if self._out.full:
            await self._out.drained()

    def _write(self, block: bytes) -> None:
        if not self._out.status:
            self._out.begin(200, {**_STREAM, **self._headers()})
        self._count("client_out", len(block))
        self._out.write(block)

    async def keep_alive(self, block: bytes) -> None:
        await self.block(block)

    def comfort(self) -> None:
        if not self._out.full:
            self._write(COMFORT)

    def restart(self) -> None:
        """Nothing is kept."""

    def seal(self, usage: Usage) -> None:
        """The client has all of it already, the usage too if it asked."""

    async def finish(self) -> None:
        await self.block(DONE)

    async def fail(self, refusal: Refusal) -> None:
        if self._out.status:
            await self.block(envelope.event(refusal))
            await self._out.drained()
        else:
            self._refused = envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)

    def answer(self) -> Answer | None:
        return self._refused


class WholeReply:
    """The answer is put together here and sent once it is whole, so it can be retried until then."""

    def __init__(self, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]) -> None:
        self._headers, self._settings, self._count = headers, settings, count
        self._assembler = Assembler(settings.answer_limit_bytes)
        self._answer: Answer | None = None

    @property
    def status(self) -> int:
        return self._answer.status if self._answer is not None else 0

    async def block(self, block: bytes) -> None:
        self._assembler.feed(block)

    async def keep_alive(self, block: bytes) -> None:
        """Nothing can be said before the status is known."""

    def comfort(self) -> None:
        """Nor here."""

    def restart(self) -> None:
        self._assembler = Assembler(self._settings.answer_limit_bytes)

    def seal(self, usage: Usage) -> None:
        self.give(200, "application/json", self._assembler.answer(usage))

    def give(self, status: int, content_type: str, body: bytes) -> None:
        """An answer that came in one piece."""
        fields = {**self._headers(), "content-type": content_type}
        self._answer = Answer(status, fields, body)
        self._count("client_out", len(body))

    async def finish(self) -> None:
        """It goes out when all is reported."""

    async def fail(self, refusal: Refusal) -> None:
        self._answer = envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)

    def answer(self) -> Answer | None:
        return self._answer
