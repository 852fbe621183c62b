"""Clients' bodies in memory: each has a limit, and so have all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from router.errors import ErrorCode, RouterError
from router.settings import EdgeSettings


class Bodies:
    """Counts what is held."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self.held_bytes = 0

    @asynccontextmanager
    async def hold(self, request: web.Request) -> AsyncIterator[bytes]:
        """The whole body, decompressed. Raises RouterError: too large, too slow, broken, or no room for it now."""
        body = bytearray()
        taken = 0
        try:
            self._fits(request.content_length or 0)
            try:
                async with asyncio.timeout(self._settings.body_timeout_s):
                    async for part in request.content.iter_any():
                        body += part
                        taken += len(part)
                        self.held_bytes += len(part)
                        self._fits(taken)
            except TimeoutError as error:
                message = f"the body did not arrive within {self._settings.body_timeout_s:.0f} s"
                raise RouterError(ErrorCode.INVALID_REQUEST, message) from error
            except web.RequestPayloadError as error:
                raise RouterError(ErrorCode.INVALID_REQUEST, "the body is broken") from error
            whole = bytes(body)
            body.clear()
            yield whole
        finally:
            self.held_bytes -= taken
            assert self.held_bytes >= 0

    def _fits(self, size_bytes: int) -> None:
        if size_bytes > self._settings.body_limit_bytes:
            message = f"the body is larger than {self._settings.body_limit_bytes} bytes"
            raise RouterError(ErrorCode.REQUEST_TOO_LARGE, message)
        if self.held_bytes > self._settings.bodies_limit_bytes:
            message = f"open requests hold {self._settings.bodies_limit_bytes} bytes here already"
            raise RouterError(ErrorCode.MESH_SATURATED, message)
