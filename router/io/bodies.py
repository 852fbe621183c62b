"""Clients' bodies in memory: each has a limit, and so have all of them together."""

from __future__ import annotations

import asyncio

from aiohttp import web

from router.errors import ErrorCode, RouterError
from router.settings import EdgeSettings


class Bodies:
    """Counts what is held. Give back what `read` took, once, when the request is over."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self.held_bytes = 0

    def give_back(self, taken_bytes: int) -> None:
        self.held_bytes -= taken_bytes
        assert self.held_bytes >= 0

    async def read(self, request: web.Request) -> bytes:
        """The whole body, decompressed. Raises RouterError: too large, too slow, broken, or no room for it now."""
        body = bytearray()
        try:
            self._fits(request.content_length or 0)
            async with asyncio.timeout(self._settings.body_timeout_s):
                async for part in request.content.iter_any():
                    body += part
                    self.held_bytes += len(part)
                    self._fits(len(body))
            return bytes(body)
        except BaseException as error:
            self.give_back(len(body))
            if isinstance(error, TimeoutError):
                message = f"the body did not arrive within {self._settings.body_timeout_s:.0f} s"
                raise RouterError(ErrorCode.INVALID_REQUEST, message) from error
            if isinstance(error, web.RequestPayloadError):
                raise RouterError(ErrorCode.INVALID_REQUEST, "the body is broken") from error
            raise

    def _fits(self, size_bytes: int) -> None:
        if size_bytes > self._settings.body_limit_bytes:
            message = f"the body is larger than {self._settings.body_limit_bytes} bytes"
            raise RouterError(ErrorCode.REQUEST_TOO_LARGE, message)
        if self.held_bytes > self._settings.bodies_limit_bytes:
            message = f"open requests hold {self._settings.bodies_limit_bytes} bytes here already"
            raise RouterError(ErrorCode.MESH_SATURATED, message)
