"""Bodies in memory: each has a limit and a time to arrive in, and all of them together have a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from node.crowd import is_loopback
from node.io.turn import BrokenBodyError, Incoming

Why: TypeAlias = Literal["too_large", "slow", "broken", "full", "share"]
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
    def bodies_address_bytes(self) -> int:
        """Of those of one address, where it is not this machine: share."""

    @property
    def body_timeout_s(self) -> float:
        """From its head to its end: slow."""

    @property
    def body_grace_s(self) -> float:
        """From then on it must have come as fast as:"""

    @property
    def body_bytes_per_s(self) -> int:
        """Else: slow."""


class Held:
    """One body, as `async with`: given back at its end."""

    __slots__ = ("_bodies", "_incoming", "client", "size_bytes")

    def __init__(self, bodies: Bodies, incoming: Incoming) -> None:
        self._bodies, self._incoming = bodies, incoming
        self.size_bytes = 0
        self.client = "" if is_loopback(incoming.client) else incoming.client

    async def __aenter__(self) -> bytes:
        try:
            return await self._bodies.read(self._incoming, self)
        except BaseException:
            self._give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._bodies.give_back(self)


class Bodies:
    """Counts what is held. `refuse` makes the exception that says why one is not, in the words of its port."""

    def __init__(self, bounds: Bounds, refuse: Refuse) -> None:
        self._bounds, self._refuse = bounds, refuse
        self.held_bytes = 0
        self._of: dict[str, int] = {}  # bytes of each address but loopback

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
            began = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(None) as scope:
                    self._take(incoming, held, parts)
                    while not incoming.whole:
                        scope.reschedule(began + self._patience_s(held.size_bytes))
                        await incoming.more()
                        self._take(incoming, held, parts)
            except TimeoutError as error:
                raise self._refuse("slow", self._too_slow(held.size_bytes)) from error
            except BrokenBodyError as error:
                raise self._refuse("broken", str(error)) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def count(self, held: Held, size_bytes: int) -> None:
        """`held` is so much larger now (or smaller). Raises what `refuse` makes."""
        held.size_bytes += size_bytes
        self.held_bytes += size_bytes
        if held.client:
            share = self._of[held.client] = self._of.get(held.client, 0) + size_bytes
            if share > self._bounds.bodies_address_bytes:
                most = self._bounds.bodies_address_bytes
                raise self._refuse("share", f"requests from your address hold {most} bytes here already")
        self._fits(held.size_bytes)

    def give_back(self, held: Held) -> None:
        """It is not held any more."""
        self.held_bytes -= held.size_bytes
        assert self.held_bytes >= 0
        if held.client in self._of:
            self._of[held.client] -= held.size_bytes
            if not self._of[held.client]:
                del self._of[held.client]

    def _patience_s(self, size_bytes: int) -> float:
        """How long after its head a body of which so much has come is waited for."""
        bounds = self._bounds
        return min(bounds.body_timeout_s, bounds.body_grace_s + size_bytes / bounds.body_bytes_per_s)

    def _too_slow(self, size_bytes: int) -> str:
        bounds = self._bounds
        if self._patience_s(size_bytes) >= bounds.body_timeout_s:
            return f"the body did not arrive within {bounds.body_timeout_s:g} s"
        return f"the body came with less than {bounds.body_bytes_per_s} bytes a second: {size_bytes} of them are here"

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
