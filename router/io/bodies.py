"""Clients' bodies in memory: each has a limit, and so have all of them together."""

from __future__ import annotations

import asyncio
import zlib

from node.io.turn import BrokenBodyError, Incoming
from router.errors import ErrorCode, RouterError
from router.settings import EdgeSettings

_ZIPPED = ("gzip", "x-gzip", "deflate")
_ANY_ZIP = 32 + zlib.MAX_WBITS  # zlib's word for gzip or zlib, by what comes first


class Held:
    """One body, as `async with`: given back at its end."""

    __slots__ = ("_bodies", "_incoming", "size_bytes")

    def __init__(self, bodies: Bodies, incoming: Incoming) -> None:
        self._bodies, self._incoming = bodies, incoming
        self.size_bytes = 0

    async def __aenter__(self) -> bytes:
        try:
            return await self._bodies.read(self._incoming, self)
        except BaseException:
            self._give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._bodies.held_bytes -= self.size_bytes
        assert self._bodies.held_bytes >= 0


class Bodies:
    """Counts what is held."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self.held_bytes = 0

    def hold(self, incoming: Incoming) -> Held:
        """Its body, counted as long as the context is open."""
        return Held(self, incoming)

    async def read(self, incoming: Incoming, held: Held) -> bytes:
        """The whole body, decompressed. Raises RouterError: too large, too slow, broken, or no room for it now."""
        self._fits(incoming.head.length or 0)
        parts: list[bytes] = []
        if incoming.whole:
            self._take(incoming, held, parts)
        else:
            try:
                async with asyncio.timeout(self._settings.body_timeout_s):
                    self._take(incoming, held, parts)
                    while not incoming.whole:
                        await incoming.more()
                        self._take(incoming, held, parts)
            except TimeoutError as error:
                message = f"the body did not arrive within {self._settings.body_timeout_s:.0f} s"
                raise RouterError(ErrorCode.INVALID_REQUEST, message) from error
            except BrokenBodyError as error:
                raise RouterError(ErrorCode.INVALID_REQUEST, str(error)) from error
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if (coding := incoming.head.fields.get("content-encoding", "identity").lower()) != "identity":
            parts.clear()
            body = await self._plain(body, coding)
            self._count(held, len(body) - held.size_bytes)
        return body

    def _take(self, incoming: Incoming, held: Held, parts: list[bytes]) -> None:
        for part in incoming.take():
            parts.append(part)
            self._count(held, len(part))

    def _count(self, held: Held, size_bytes: int) -> None:
        held.size_bytes += size_bytes
        self.held_bytes += size_bytes
        self._fits(held.size_bytes)

    async def _plain(self, body: bytes, coding: str) -> bytes:
        if coding not in _ZIPPED:
            message = "content-encoding can be gzip, deflate or identity"
            raise RouterError(ErrorCode.INVALID_REQUEST, message, param="content-encoding")
        s = self._settings
        if len(body) <= s.zipped_inline_bytes:  # which may still make a thousand times as much
            plain = _unzipped(body, min(s.body_limit_bytes, s.plain_inline_bytes))
            if len(plain) <= s.plain_inline_bytes:
                return plain
        return await asyncio.to_thread(_unzipped, body, s.body_limit_bytes)

    def _fits(self, size_bytes: int) -> None:
        if size_bytes > self._settings.body_limit_bytes:
            message = f"the body is larger than {self._settings.body_limit_bytes} bytes"
            raise RouterError(ErrorCode.REQUEST_TOO_LARGE, message)
        if self.held_bytes > self._settings.bodies_limit_bytes:
            message = f"open requests hold {self._settings.bodies_limit_bytes} bytes here already"
            raise RouterError(ErrorCode.MESH_SATURATED, message)


def _unzipped(body: bytes, limit: int) -> bytes:
    """At most one byte more than `limit`. Raises RouterError when it is no zip, or not all of one."""
    unzip = zlib.decompressobj(_ANY_ZIP)
    try:
        plain = unzip.decompress(body, limit + 1)
    except zlib.error as error:
        raise RouterError(ErrorCode.INVALID_REQUEST, "the body is not what content-encoding says") from error
    if len(plain) <= limit and (not unzip.eof or unzip.unused_data):
        raise RouterError(ErrorCode.INVALID_REQUEST, "the body is not what content-encoding says")
    return plain
