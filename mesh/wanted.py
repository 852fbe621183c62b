"""A peer that a link is kept with: where it is, how its dials went, and when the next one is due."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from mesh.link import now
from mesh.settings import LinkSettings
from node.types import NodeId


@dataclass(slots=True, eq=False)
class Wanted:
    """A peer to keep a link with."""

    node: NodeId
    addresses: tuple[str, ...]
    port: int
    good: str | None = None  # the address of the last link
    wrong: set[str] = field(default_factory=set)  # addresses where another node has answered
    at_once: bool = True
    forgotten: bool = False
    failures: int = 0
    tried_at: float = float("-inf")
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def pause(self, settings: LinkSettings, *, larger: bool, jitter: float) -> None:
        """Back-off, times `jitter`; cut short by `at_once`, but never so short that two nodes spin. `larger`: this
        node's id is the larger one, and waits a little."""
        s, delay_s = settings, 0.0
        self.wake.clear()
        if not self.at_once:
            delay_s = min(s.backoff_max_s, s.backoff_first_s * 2.0 ** min(self.failures, 10)) * jitter
        if larger and (self.good is None or not self.at_once):
            delay_s += s.larger_id_waits_s
        if delay_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self.wake.wait()
        self.at_once = False
        await asyncio.sleep(max(0.0, self.tried_at + s.backoff_first_s - now()))
