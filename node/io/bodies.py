"""Bodies in memory: each has a limit and a time to arrive in, and all of them together have a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from node.io.turn import BrokenBodyError, Incoming

Why: TypeAlias = Literal["too_large", "slow", "broken", "full"]
Refuse: TypeAlias = Callable[[Why, str], Exception]


class Bounds(Protocol):
    """What a settings Struct must name."""

    @property
    def body_limit_bytes(self) -> int:
        """Of one body: too_large."""

    @property
    def bodies_limit_bytes(self) -> int:
        """Of all that are open: full."""

    @property
    def body_timeout_s(self) -> float:
        """From its head to its end: slow."""


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
    """Counts what is held. `refuse` makes the exception that says why one is not, in the words of its port."""

    def __init__(self, bounds: Bounds, refuse: Refuse) -> None:
        self._bounds, self._refuse = bounds, refuse
        self.held_bytes = 0

    def hold(self, incoming: Incoming) -> Held:
        """Its body, counted as long as the context is open."""
        return Held(self, incoming)

    async def read(self, incoming: Incoming, held: Held) -> bytes:
        """The whole body. Raises what `refuse` makes."""
        self._fits(incoming.head.length or 0)
        parts: list[bytes] = []
        if incoming.whole:
            self._take(incoming, held, parts)
        else:
            try:
                async with asyncio.timeout(self._bounds.body_timeout_s):
                    self._take(incoming, held, parts)
                    while not incoming.whole:
                        await incoming.more()
                        self._take(incoming, held, parts)
            except TimeoutError as error:
                message = f"the body did not arrive within {self._bounds.body_timeout_s:g} s"
                raise self._refuse("slow", message) from error
            except BrokenBodyError as error:
                raise self._refuse("broken", str(error)) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def count(self, held: Held, size_bytes: int) -> None:
        """`held` is so much larger now (or smaller). Raises what `refuse` makes."""
        held.size_bytes += size_bytes
        self.held_bytes += size_bytes
        self._fits(held.size_bytes)

    def _take(self, incoming: Incoming, held: Held, parts: list[bytes]) -> None:
        for part in incoming.take():
            parts.append(part)
            self.count(held, len(part))

    def _fits(self, size_bytes: int) -> None:
        bounds = self._bounds
        if size_bytes > bounds.body_limit_bytes:
            raise self._refuse("too_large", f"the body is larger than {bounds.body_limit_bytes} bytes")
        if self.held_bytes > bounds.bodies_limit_bytes:
            raise self._refuse("full", f"open requests hold {bounds.bodies_limit_bytes} bytes here already")
