"""Runs one pure machine: its events in turn, its effects in order, its timer at its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import ceil, inf
from typing import Generic, Protocol, TypeVar

from mesh import clock
from mesh.turns import Turns

E = TypeVar("E")
F = TypeVar("F")
E_contra = TypeVar("E_contra", contravariant=True)
F_co = TypeVar("F_co", covariant=True)


class Machine(Protocol[E_contra, F_co]):
    """Decides; never reads a clock. `deadline`: when it wants its tick, None or infinite for never."""

    @property
    def deadline(self) -> float | None: ...

    def step(self, event: E_contra, now: float) -> Iterable[F_co]: ...


class Driver(Generic[E, F]):
    """`tell(event)` steps the machine at once, or, from within a step, right after that one: effects happen in the
    order decided. `perform` must not wait. `failed` gets the exception of a timer's step: the next timer is not set
    then, so the machine would stand still. `late(seconds)` is called, before the step, when a deadline has passed by so
    much: this process stood still, or the machine slept.

    Machines are stepped with the clock that runs in sleep, the loop's timers are set by differences of it."""

    def __init__(
        self,
        machine: Machine[E, F],
        tick: E,
        perform: Callable[[F], None],
        *,
        failed: Callable[[Exception], None],
        stepped: Callable[[], None] = lambda: None,
        late: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._machine, self._tick, self._perform = machine, tick, perform
        self._failed, self._stepped, self._late = failed, stepped, late
        self._loop = asyncio.get_running_loop()
        self._turns = Turns()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = self._wakes_at = inf  # the deadline, and what the timer is set for
        self._closed = False

    def tell(self, event: E) -> None:
        self._turns.take(lambda: self._step(event))

    def close(self) -> None:
        """No timer any more; events are still taken."""
        self._closed = True
        self._stop_timer()

    def _step(self, event: E) -> None:
        now = clock.now()
        due_at, self._due_at = self._due_at, inf
        if now > due_at:
            self._late(now - due_at)
        for effect in self._machine.step(event, now):
            self._perform(effect)
        self._stepped()
        self._set_timer()

    def _set_timer(self) -> None:
        """For the deadline. A timer that comes sooner is kept, and looks again: nearly every event puts the deadline
        off, and to set a timer for each costs more than the step."""
        at = self._machine.deadline
        if at is None or at == inf or self._closed:
            self._stop_timer()
            return
        now = clock.now()
        self._due_at = max(at, now)
        if self._timer is None or self._due_at < self._wakes_at:
            self._stop_timer()
            self._wakes_at = self._due_at
            self._timer = self._loop.call_later(_not_early(at - now), self._due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        if clock.now() < self._due_at < inf:
            self._set_timer()
            return
        try:
            self.tell(self._tick)
        except Exception as fault:  # noqa: BLE001 - it is raised by who runs this machine
            self._failed(fault)


def _not_early(delay_s: float) -> float:
    """At least `delay_s`, for a timer that counts whole milliseconds from the one it was set in, as uvloop's does. One
    that fires a little early would be set for 0 ms, and fire early again, sixty times over for each heartbeat."""
    return (ceil(max(0.0, delay_s) * 1000) + 1) / 1000
