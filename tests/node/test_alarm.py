"""One timer for many waits: it rings when it was last set to, and not before."""

from __future__ import annotations

import asyncio

from node.io.alarm import Alarm
from tests.mesh.waiting import until


class Rung:
    def __init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.at: list[float] = []
        self.alarm = Alarm(lambda: self.at.append(self.clock()))


async def test_it_rings_once_and_not_before_its_time() -> None:
    rung = Rung()
    due = rung.clock() + 0.05
    rung.alarm.set(due)
    await until(lambda: rung.at)
    await asyncio.sleep(0.1)
    assert len(rung.at) == 1
    assert rung.at[0] >= due - 0.002  # uvloop's clock has milliseconds


async def test_set_later_it_rings_later_and_set_sooner_sooner() -> None:
    rung = Rung()
    later = rung.clock() + 0.1
    rung.alarm.set(rung.clock() + 0.02)
    rung.alarm.set(later)
    await until(lambda: rung.at)
    assert rung.at[0] >= later - 0.002
    rung.alarm.set(rung.clock() + 600.0)
    rung.alarm.set(rung.clock() + 0.01)
    await until(lambda: len(rung.at) == 2)


async def test_cleared_it_is_silent_until_it_is_set_again_and_closed_for_ever() -> None:
    rung = Rung()
    rung.alarm.set(rung.clock() + 0.01)
    rung.alarm.clear()
    await asyncio.sleep(0.05)
    assert rung.at == []
    rung.alarm.set(rung.clock() + 0.01)
    await until(lambda: rung.at)
    rung.alarm.set(rung.clock() + 0.01)
    rung.alarm.close()
    rung.alarm.set(rung.clock() + 0.01)
    await asyncio.sleep(0.05)
    assert len(rung.at) == 1
