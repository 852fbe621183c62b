"""Waiting in a test for what sockets, packets, files and timers bring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_EVERY_S = 0.005


async def until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Returns when `condition` is true. Raises TimeoutError at the limit."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event of ours
            await asyncio.sleep(LOOK_EVERY_S)
