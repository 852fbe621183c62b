"""Peers' bodies in memory: each has a limit and a time to arrive in, and all of them together have a limit."""

from __future__ import annotations

import asyncio

from node.errors import NodeError, NodeErrorCode
from node.io.turn import BrokenBodyError, Incoming
from node.settings import DoorSettings


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

    def __init__(self, settings: DoorSettings) -> None:
        self._settings = settings
        self.held_bytes = 0

    def hold(self, incoming: Incoming) -> Held:
        """Its body, counted as long as the context is open."""
        return Held(self, incoming)

    async def read(self, incoming: Incoming, held: Held) -> bytes:
        """The whole body. Raises NodeError: BAD_REQUEST when it is too large or not framed as HTTP has it, UNREACHABLE
        when it does not arrive in time, NODE_BUSY when there is no room for it now."""
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
                message = f"the body did not arrive within {self._settings.body_timeout_s:g} s"
                raise NodeError(NodeErrorCode.UNREACHABLE, message) from error
            except BrokenBodyError as error:
                raise NodeError(NodeErrorCode.BAD_REQUEST, str(error)) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self, incoming: Incoming, held: Held, parts: list[bytes]) -> None:
        for part in incoming.take():
            parts.append(part)
            held.size_bytes += len(part)
            self.held_bytes += len(part)
        self._fits(held.size_bytes)

    def _fits(self, size_bytes: int) -> None:
        s = self._settings
        if size_bytes > s.body_limit_bytes:
            raise NodeError(NodeErrorCode.BAD_REQUEST, f"the body is larger than {s.body_limit_bytes} bytes")
        if self.held_bytes > s.bodies_limit_bytes:
            message = f"open calls hold {s.bodies_limit_bytes} bytes here already"
            raise NodeError(NodeErrorCode.NODE_BUSY, message, retry_after_s=s.retry_after_s)
