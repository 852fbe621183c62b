"""How an answer leaves the edge: as a stream, or whole. Both hold everything back until it can no longer be retried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web

from node.openai import DONE
from node.types import Usage
from router.assemble import Assembler
from router.errors import Refusal
from router.io import envelope
from router.io.record import CLIENT_LEFT
from router.settings import EdgeSettings

Headers = Callable[[], Mapping[str, str]]
COMFORT = b": working\n\n"


class Reply(Protocol):
    """One client's answer. Writing raises ConnectionError when the client is gone."""

    @property
    def status(self) -> int:
        """HTTP status the client was (or is about to be) sent, 0 = none yet."""

    async def block(self, block: bytes) -> None:
        """One `data:` block of the answer."""

    async def keep_alive(self, block: bytes) -> None:
        """A comment of the node: a sign of life."""

    async def comfort(self) -> None:
        """Nothing has come for long."""

    def restart(self) -> None:
        """The attempt failed; what it gave does not count. Only before anything was sent."""

    def seal(self, usage: Usage) -> None:
        """`[DONE]` has come. Raises NodeError when what came is no answer; then it can still be retried."""

    async def finish(self) -> None:
        """The sealed answer's end goes out."""

    async def fail(self, refusal: Refusal) -> None:
        """Instead of an answer, or of the rest of one."""

    def response(self) -> web.StreamResponse:
        """What the handler returns when it is over."""


class StreamReply:
    """Blocks pass through as bytes; a slow reader holds the writer up, and so the node."""

    def __init__(
        self, request: web.Request, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]
    ) -> None:
        self._request, self._headers, self._settings, self._count = request, headers, settings, count
        self._stream: web.StreamResponse | None = None
        self._refused: web.Response | None = None
        self._head = asyncio.Lock()  # comfort and the first byte may come together

    @property
    def status(self) -> int:
        response = self._stream or self._refused
        return response.status if response is not None else 0

    async def block(self, block: bytes) -> None:
        stream = self._stream
        if stream is None or not stream.prepared:
            stream = await self._start()
        self._count("client_out", len(block))
        await stream.write(block)

    async def keep_alive(self, block: bytes) -> None:
        await self.block(block)

    async def comfort(self) -> None:
        await self.block(COMFORT)

    def restart(self) -> None:
        """Nothing is kept."""

    def seal(self, usage: Usage) -> None:
        """The client has all of it already, the usage too if it asked."""

    async def finish(self) -> None:
        await self.block(DONE)

    async def fail(self, refusal: Refusal) -> None:
        if self._stream is not None:
            await self.block(envelope.event(refusal))
            await self._stream.write_eof()  # returns when the client has taken it
        else:
            self._refused = envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)

    def response(self) -> web.StreamResponse:
        return self._stream or self._refused or web.Response(status=CLIENT_LEFT)

    async def _start(self) -> web.StreamResponse:
        async with self._head:
            if self._stream is None:
                fields = {"cache-control": "no-cache", "x-accel-buffering": "no", **self._headers()}
                self._stream = web.StreamResponse(headers=fields)
                self._stream.content_type = "text/event-stream"
                await self._stream.prepare(self._request)
            return self._stream


class WholeReply:
    """The answer is put together here and sent once it is whole, so it can be retried until then."""

    def __init__(self, headers: Headers, settings: EdgeSettings, count: Callable[[str, int], None]) -> None:
        self._headers, self._settings, self._count = headers, settings, count
        self._assembler = Assembler(settings.answer_limit_bytes)
        self._response: web.Response | None = None

    @property
    def status(self) -> int:
        return self._response.status if self._response is not None else 0

    async def block(self, block: bytes) -> None:
        self._assembler.feed(block)

    async def keep_alive(self, block: bytes) -> None:
        """Nothing can be said before the status is known."""

    async def comfort(self) -> None:
        """Nor here."""

    def restart(self) -> None:
        self._assembler = Assembler(self._settings.answer_limit_bytes)

    def seal(self, usage: Usage) -> None:
        self.give(200, "application/json", self._assembler.answer(usage))

    def give(self, status: int, content_type: str, body: bytes) -> None:
        """An answer that came in one piece."""
        fields = {**self._headers(), "content-type": content_type}
        self._response = web.Response(status=status, body=body, headers=fields)
        self._count("client_out", len(body))

    async def finish(self) -> None:
        """It goes out when the handler returns it."""

    async def fail(self, refusal: Refusal) -> None:
        self._response = envelope.refused(refusal, self._headers(), retry_after_s=self._settings.retry_after_s)

    def response(self) -> web.StreamResponse:
        return self._response or web.Response(status=CLIENT_LEFT)
