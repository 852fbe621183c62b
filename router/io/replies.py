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
    """One client's answer, written in the callback that brings it. Writing raises ConnectionError when the client is
    gone."""

    @property
    def status(self) -> int:
        """HTTP status the client was (or is about to be) sent, 0 = none yet."""

    @property
    def full(self) -> bool:
        """Enough waits for a slow client: see `when_room`."""

    def when_room(self, call: Callable[[], None]) -> None:
        """`full` now: `call` once it is not, or when the client has gone."""

    def block(self, block: bytes) -> None:
        """One `data:` block of the answer. Raises NodeError when it cannot be part of one."""

    def keep_alive(self, block: bytes) -> None:
        """A comment of the node: a sign of life."""

    def comfort(self) -> None:
        """Nothing has come for long. A client that still has something to read needs none."""

    def restart(self) -> None:
        """The attempt failed; what it gave does not count. Only before anything was sent."""

    def seal(self, usage: Usage) -> None:
        """`[DONE]` has come. Raises NodeError when what came is no answer; then it can still be retried."""

    def finish(self) -> None:
        """The sealed answer goes out to its end."""

    def fail(self, refusal: Refusal) -> Answer | None:
        """Instead of an answer, which is returned if it is still to be sent, or of the rest of one."""


class StreamReply:
    """Blocks pass through as bytes."""

    __slots__ = ("_count", "_headers", "_out", "_settings")

    def __init__(
        self, out: Outgoing, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]
    ) -> None:
        self._out, self._headers, self._settings, self._count = out, headers, settings, count

    @property
    def status(self) -> int:
        return self._out.status

    @property
    def full(self) -> bool:
        return self._out.full

    def when_room(self, call: Callable[[], None]) -> None:
        self._out.when_room(call)

    def block(self, block: bytes) -> None:
        if not self._out.status:
            self._out.begin(200, {**_STREAM, **self._headers()})
        self._count("client_out", len(block))
        self._out.write(block)

    def keep_alive(self, block: bytes) -> None:
        self.block(block)

    def comfort(self) -> None:
        if not self._out.full:
            self.block(COMFORT)

    def restart(self) -> None:
        """Nothing is kept."""

    def seal(self, usage: Usage) -> None:
        """The client has all of it already, the usage too if it asked."""

    def finish(self) -> None:
        self._count("client_out", len(DONE))
        self._out.end(DONE)

    def fail(self, refusal: Refusal) -> Answer | None:
        if not self._out.status:
            return envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)
        self.block(envelope.event(refusal))
        return None


class WholeReply:
    """The answer is put together here and sent once it is whole, so it can be retried until then."""

    __slots__ = ("_answer", "_assembler", "_count", "_headers", "_out", "_settings")

    def __init__(
        self, out: Outgoing, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]
    ) -> None:
        self._out, self._headers, self._settings, self._count = out, headers, settings, count
        self._assembler = Assembler(settings.answer_limit_bytes)
        self._answer: Answer | None = None

    full = False

    @property
    def status(self) -> int:
        return self._answer.status if self._answer is not None else 0

    def when_room(self, call: Callable[[], None]) -> None:
        call()

    def block(self, block: bytes) -> None:
        self._assembler.feed(block)

    def keep_alive(self, block: bytes) -> None:
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

    def finish(self) -> None:
        assert self._answer is not None
        self._out.whole(self._answer)

    def fail(self, refusal: Refusal) -> Answer | None:
        return envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)
