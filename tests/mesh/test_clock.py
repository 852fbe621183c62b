"""mesh/clock.py and, through mesh/driver.py, what a machine sees of a night's sleep."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from random import Random

import pytest

from election.machine import Election
from election.messages import Effect, Event, Follow, Heard, Message, PeerKnown, Rank, Reign, Role, Send, Tick
from election.settings import ElectionSettings
from mesh import clock
from mesh.driver import Driver
from tests.mesh.waiting import until


def test_it_is_the_clock_that_runs_in_sleep() -> None:
    if sys.platform == "linux":
        assert abs(clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60.0
    for platform in ("linux", "darwin", "win32"):
        read = clock.sleepless(platform)
        before = read()
        assert before <= read()
    assert clock.sleepless("win32") is time.monotonic


@dataclass
class Slept:
    """The clock, as after a sleep that the event loop knows nothing of."""

    slept_s: float = 0.0
    late: list[float] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() + self.slept_s


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    sleeper = Slept()
    monkeypatch.setattr(clock, "now", sleeper.now)
    return sleeper


class Metronome:
    """Wants a tick 20 ms after the last."""

    def __init__(self, now: float) -> None:
        self.deadline: float | None = now
        self.steps: list[float] = []

    def step(self, _event: str, now: float) -> list[str]:
        self.steps.append(now)
        self.deadline = now + 0.02
        return []


async def test_a_timer_goes_on_after_a_jump_and_the_jump_is_told_before_the_step(slept: Slept) -> None:
    machine, told = Metronome(slept.now()), list[tuple[float, int]]()
    driver = Driver(
        machine, "tick", lambda _: None, failed=pytest.fail, late=lambda s: told.append((s, len(machine.steps)))
    )
    driver.tell("start")
    await until(lambda: len(machine.steps) > 3)
    slept.slept_s = 3600.0
    at = len(machine.steps)
    await until(lambda: len(machine.steps) > at + 3)
    driver.close()
    jumps = [(late_s, steps) for late_s, steps in told if late_s > 3000.0]
    assert len(jumps) == 1
    assert machine.steps[jumps[0][1]] - machine.steps[jumps[0][1] - 1] > 3000.0


async def test_a_message_that_comes_before_the_timer_tells_of_the_sleep_too(slept: Slept) -> None:
    machine, told = Metronome(slept.now()), list[float]()
    driver = Driver(machine, "tick", lambda _: None, failed=pytest.fail, late=told.append)
    driver.tell("start")
    slept.slept_s = 60.0
    driver.tell("message")
    driver.close()
    assert [late_s for late_s in told if late_s > 59.0] != []


async def test_a_coordinator_that_slept_an_hour_steps_back_before_it_speaks(slept: Slept) -> None:
    """It may have been succeeded: the first thing it says is not that it coordinates."""
    me, peer = "a" * 16, "b" * 16
    rng = Random(1)
    election = Election(
        me=me, boot="a1", mesh="m", priority=100, settings=ElectionSettings(), term=0, now=slept.now(), rng=rng
    )
    done: list[Effect] = []
    driver: Driver[Event, Effect] = Driver(
        election, Tick(), done.append, failed=pytest.fail, late=slept.late.append
    )  # fmt: skip
    driver.tell(PeerKnown(peer))
    seq = 0

    def beat() -> None:
        nonlocal seq
        seq += 1
        mine = election.reign if election.role is Role.COORDINATOR else Reign()
        holder = me if election.role is Role.COORDINATOR else None
        driver.tell(
            Heard(
                Message(
                    kind="hb", sender=peer, boot="b1", seq=seq, mesh="m", reign=mine, coordinator=holder,
                    role=Role.FOLLOWER, rank=Rank(True, 0, 0, peer, "b1"), uptime_s=1.0,
                )
            )
        )  # fmt: skip

    async with asyncio.timeout(20):
        while election.role is not Role.COORDINATOR:
            beat()
            await asyncio.sleep(0.05)
    done.clear()
    slept.slept_s = 3600.0
    driver.tell(Tick())
    driver.close()
    assert slept.late
    assert max(slept.late) > 3000.0
    assert election.role is Role.FOLLOWER
    assert isinstance(done[0], Follow)
    assert (done[0].role, done[0].coordinator) == (Role.FOLLOWER, None)
    assert all(e.message.role is Role.FOLLOWER for e in done if isinstance(e, Send))
