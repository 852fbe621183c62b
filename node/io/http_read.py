"""An answer that is read part by part, as fast as its reader likes."""

from __future__ import annotations

import asyncio

from node.http_answer import AnswerHead
from node.io.http_wire import Answer, HttpError
from node.settings import HttpSettings


class ReadAnswer(Answer):
    """`headed` first. A bounded part of the body waits here for a slow reader; then the connection is not read."""

    def __init__(self, settings: HttpSettings, silence_s: float) -> None:
        super().__init__(settings, silence_s)
        self._parts: list[bytes] = []
        self._held = 0  # bytes in them
        self._waiter: asyncio.Future[None] | None = None

    async def headed(self) -> AnswerHead:
        """Its head. Raises HttpError."""
        while self.head is None:
            if self.error is not None:
                raise self.error
            await self._news()
        return self.head

    @property
    def headers(self) -> AnswerHead:
        """Once `headed` has returned."""
        assert self.head is not None
        return self.head

    @property
    def status(self) -> int:
        return self.headers.status

    async def read(self) -> bytes:
        """What has come since the last call; waits for it. Empty at the end. Raises HttpError."""
        while not self._parts:
            if self.error is not None:
                raise self.error
            if not self.wanted:
                return b""
            await self._news()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        self.resume()
        return data

    async def whole(self, limit_bytes: int) -> bytes | None:
        """All of the body, None when it is longer. Raises HttpError."""
        parts, size = [], 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                return None
        return b"".join(parts)

    async def start(self, limit_bytes: int) -> bytes:
        """The first bytes of the body, or all of it. Raises HttpError."""
        found = b""
        while len(found) < limit_bytes and (part := await self.read()):
            found += part
        return found[:limit_bytes]

    def on_head(self, head: AnswerHead) -> None:  # noqa: ARG002 - the hook's
        self._wake()

    def on_part(self, body: bytes) -> None:
        self._parts.append(body)
        self._held += len(body)
        if self._held > self._settings.buffer_bytes:
            self.pause()
        self._wake()

    def on_end(self, error: HttpError | None) -> None:  # noqa: ARG002 - the hook's
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
