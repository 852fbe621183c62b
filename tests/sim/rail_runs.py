"""One run of the rail: a node with more models than memory, for some minutes. A pure function of its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.rail_checkers import RailChecker
from tests.sim.rail_world import World

LIVE_S = 240.0


@dataclass(frozen=True)
class RailResult:
    simulated_s: float
    steps: int
    requests: int
    answered: int
    loads: int
    evictions: int
    longest_wait_s: float
    digest: int


def rail(seed: int, *, on_world: Callable[[World], None] | None = None) -> RailResult:
    """Raises ViolationError."""
    world = World(seed, narrate=on_world is not None)
    if on_world is not None:
        on_world(world)
    checker = RailChecker(world)
    loop = world.loop
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(world.live(LIVE_S))
        checker.at_the_end()
    except Exception as error:
        raise checker.violation or _first(error) from error
    finally:
        world.on_rail, loop.after_step = lambda *_: None, lambda: None
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
    requests = sum(world.outcomes.values())
    return RailResult(
        simulated_s=world.loop.time(),
        steps=world.loop.steps,
        requests=requests,
        answered=world.outcomes.get("ok", 0),
        loads=checker.loads,
        evictions=checker.evictions,
        longest_wait_s=checker.longest_wait_s,
        digest=world.digest,
    )


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
