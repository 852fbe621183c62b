"""The driver: events in order, timers on time, and neither starves the other."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.io.driver import drive


class Recorder:
    """Answers every event with itself; re-arms its timer while `ticks` are left."""

    def __init__(self, deadline: float | None = None, ticks: int = 0, every_s: float = 0.0) -> None:
        self.deadline = deadline
        self._ticks, self._every_s = ticks, every_s
        self.seen: list[tuple[str, float]] = []

    def step(self, event: str, now: float) -> list[str]:
        self.seen.append((event, now))
        if event == "tick":
            self._ticks -= 1
            self.deadline = now + self._every_s if self._ticks > 0 else None
        return [event]


async def run(machine: Recorder, inbox: asyncio.Queue[str], count: int) -> list[str]:
    """What was performed once `count` effects were there."""
    done: list[str] = []
    enough = asyncio.Event()

    def perform(effect: str) -> None:
        done.append(effect)
        if len(done) >= count:
            enough.set()

    task = asyncio.create_task(drive(machine, inbox, "tick", perform))
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return done


async def test_events_in_the_order_they_came() -> None:
    inbox: asyncio.Queue[str] = asyncio.Queue()
    for event in "abc":
        inbox.put_nowait(event)
    assert await run(Recorder(), inbox, 3) == ["a", "b", "c"]


async def test_a_timer_that_is_due_goes_before_a_full_inbox() -> None:
    inbox: asyncio.Queue[str] = asyncio.Queue()
    for event in "abc":
        inbox.put_nowait(event)
    now = asyncio.get_running_loop().time()
    assert await run(Recorder(deadline=now - 1.0, ticks=1), inbox, 4) == ["tick", "a", "b", "c"]


async def test_a_timer_never_rings_early_and_rings_without_events() -> None:
    due = asyncio.get_running_loop().time() + 0.05
    machine = Recorder(deadline=due, ticks=3, every_s=0.01)
    assert await run(machine, asyncio.Queue(), 3) == ["tick"] * 3
    assert machine.seen[0][1] >= due


async def test_a_machine_that_is_always_due_leaves_the_loop_to_others() -> None:
    machine = Recorder(deadline=0.0, ticks=10**9)
    task = asyncio.create_task(drive(machine, asyncio.Queue(), "tick", lambda _: None))
    await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)  # Comes back each time.
    task.cancel()
    await asyncio.wait({task})
    assert 1 <= len(machine.seen) <= 20


async def test_no_event_is_lost_between_timers() -> None:
    inbox: asyncio.Queue[str] = asyncio.Queue()
    machine = Recorder(deadline=0.0, ticks=10**9, every_s=0.0005)
    events = [str(n) for n in range(300)]

    async def feed() -> None:
        for event in events:
            inbox.put_nowait(event)
            await asyncio.sleep(0.0003)

    feeding = asyncio.create_task(feed())
    task = asyncio.create_task(drive(machine, inbox, "tick", lambda _: None))
    await feeding
    async with asyncio.timeout(10):
        while not inbox.empty():  # noqa: ASYNC110 - the machine under test empties it
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    assert [e for e, _ in machine.seen if e != "tick"] == events


async def test_a_fault_of_the_machine_ends_the_driver() -> None:
    class Broken(Recorder):
        def step(self, event: str, now: float) -> list[str]:
            raise AssertionError(event)

    with pytest.raises(AssertionError, match="tick"):
        await drive(Broken(deadline=0.0), asyncio.Queue(), "tick", lambda _: None)
