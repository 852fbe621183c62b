"""mesh/driver.py: a machine is woken at its deadline, in turn, and no more often than that."""

from __future__ import annotations

import asyncio
from math import inf

import uvloop

from mesh import clock
from mesh.driver import Driver

TICKS = 20
GAP_S = 0.0104  # no whole number of milliseconds


class Ticker:
    """Wants a tick every GAP_S, TICKS of them; counts every step."""

    def __init__(self, now: float) -> None:
        self.deadline, self.ticks, self.steps = now + GAP_S, 0, 0

    def step(self, _event: str, now: float) -> list[int]:
        self.steps += 1
        if now < self.deadline:
            return []
        self.ticks += 1
        self.deadline = self.deadline + GAP_S if self.ticks < TICKS else inf
        return [self.ticks]


async def _driven() -> Ticker:
    machine, over = Ticker(clock.now()), asyncio.get_running_loop().create_future()

    def perform(tick: int) -> None:
        if tick == TICKS:
            over.set_result(None)

    driver: Driver[str, int] = Driver(machine, "tick", perform, failed=over.set_exception)
    driver.tell("begin")
    await asyncio.wait_for(over, 60.0)
    driver.close()
    return machine


def test_a_deadline_between_two_milliseconds_is_one_wake_up() -> None:
    """uvloop's timers count whole milliseconds; one that fires early would spin until its time has come."""
    machine = uvloop.run(_driven())
    assert machine.steps < 1.5 * TICKS  # two clocks may differ by a hair; spinning takes several times as many


def test_any_event_loop_will_do() -> None:
    machine = asyncio.run(_driven())
    assert machine.steps < 1.5 * TICKS  # two clocks may differ by a hair; spinning takes several times as many


class Alarm:
    """Wants one tick at the time it was last told, seconds from then."""

    deadline = inf

    def step(self, event: float, now: float) -> list[float]:
        if event:
            self.deadline = now + event
        elif now >= self.deadline:
            self.deadline = inf
            return [now]
        return []


async def _rung(*events: float) -> tuple[float, float]:
    """When the alarm was set for after all these, and when it rang; with the timers' own pauses in between."""
    alarm, rung = Alarm(), asyncio.get_running_loop().create_future()
    driver: Driver[float, float] = Driver(alarm, 0.0, rung.set_result, failed=rung.set_exception)
    for event in events:
        driver.tell(event)
        await asyncio.sleep(0.0)
    wanted = alarm.deadline
    return wanted, await asyncio.wait_for(rung, 60.0)


def test_a_deadline_that_is_put_off_again_and_again_comes_once_in_time() -> None:
    wanted, rung = uvloop.run(_rung(*(0.05 + 0.001 * n for n in range(50))))
    assert rung >= wanted


def test_a_sooner_deadline_does_not_wait_for_the_timer_of_a_later_one() -> None:
    wanted, rung = uvloop.run(_rung(3600.0, 0.01))
    assert rung >= wanted
