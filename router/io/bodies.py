"""Clients' bodies in memory, unpacked when they came compressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from node.io import bodies
from node.io.bodies import Held
from node.io.turn import Incoming
from router.errors import ErrorCode, RouterError
from router.settings import EdgeSettings

_ZIPPED = ("gzip", "x-gzip", "deflate")
_ANY_ZIP = 32 + zlib.MAX_WBITS  # zlib's word for gzip or zlib, by what comes first
_LIMITS: dict[bodies.Why, str] = {
    "too_large": "body_bytes",
    "slow": "slow_sender",
    "full": "bodies_bytes",
    "share": "address_bodies_bytes",
}
_CODES: dict[bodies.Why, ErrorCode] = {
    "too_large": ErrorCode.REQUEST_TOO_LARGE,
    "slow": ErrorCode.INVALID_REQUEST,
    "broken": ErrorCode.INVALID_REQUEST,
    "full": ErrorCode.MESH_SATURATED,
    "share": ErrorCode.RATE_LIMITED,
}


class Bodies(bodies.Bodies):
    """`read` raises RouterError. `limited` hears the name of a limit that was met."""

    def __init__(self, settings: EdgeSettings, limited: Callable[[str], None] = lambda _: None) -> None:
        def refuse(why: bodies.Why, message: str) -> RouterError:
            if why in _LIMITS:
                limited(_LIMITS[why])
            return RouterError(_CODES[why], message)

        super().__init__(settings, refuse)
        self._settings = settings

    async def read(self, incoming: Incoming, held: Held) -> bytes:
        """The whole body, decompressed: what it is then is what its limit is for."""
        body = await super().read(incoming, held)
        if (coding := incoming.head.fields.get("content-encoding", "identity").lower()) == "identity":
            return body
        plain = await self._plain(body, coding)
        self.count(held, len(plain) - held.size_bytes)
        return plain

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
