"""One timer for many waits, on a made-up clock: it rings when it was last set to, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node.io.alarm import Alarm


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """What an alarm needs of one. `let` lets time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.set: list[tuple[float, Callable[[], None], Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self.set.append((when, callback, timer))
        return timer

    def let(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted(
            (when, n) for n, (when, _, timer) in enumerate(self.set) if when <= end and not timer.cancelled
        ):
            when, callback, _ = self.set.pop(due[0][1])
            self.now = max(self.now, when)
            callback()
        self.now = end

    @property
    def waiting(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self.set)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def test_it_rings_once_and_not_before_its_time(loop: Loop) -> None:
    rung: list[float] = []
    Alarm(lambda: rung.append(loop.now)).set(5.0)
    loop.let(4.9)
    assert rung == []
    loop.let(600.0)
    assert (rung, loop.waiting) == ([5.0], 0)


def test_set_later_it_rings_later_and_set_sooner_sooner(loop: Loop) -> None:
    rung: list[float] = []
    alarm = Alarm(lambda: rung.append(loop.now))
    alarm.set(2.0)
    alarm.set(10.0)
    assert loop.waiting == 1, "later costs no timer"
    loop.let(9.9)
    assert rung == []
    loop.let(0.1)
    assert rung == [10.0]
    alarm.set(600.0)
    alarm.set(11.0)
    loop.let(1000.0)
    assert rung == [10.0, 11.0]


def test_cleared_it_is_silent_until_it_is_set_again_and_closed_for_ever(loop: Loop) -> None:
    rung: list[float] = []
    alarm = Alarm(lambda: rung.append(loop.now))
    alarm.set(1.0)
    alarm.clear()
    loop.let(5.0)
    assert rung == []
    alarm.set(6.0)
    loop.let(1.0)
    assert rung == [6.0]
    alarm.set(7.0)
    alarm.close()
    alarm.set(8.0)
    loop.let(100.0)
    assert (rung, loop.waiting) == ([6.0], 0)
