"""Runs any sans-IO machine on asyncio: one event or one due timer at a time, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol, TypeVar

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)
F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)


class Machine(Protocol[E_contra, F_co]):
    """Decides: takes an event and a time, returns what should happen. Wake it with a tick at `deadline`."""

    @property
    def deadline(self) -> float | None:
        """Seconds on the clock of `step`; None: only events wake it."""

    def step(self, event: E_contra, now: float) -> Sequence[F_co]:
        """`now` never goes back. A tick before the deadline changes nothing."""


async def drive(machine: Machine[E, F], inbox: asyncio.Queue[E], tick: E, perform: Callable[[F], None]) -> NoReturn:
    """Steps `machine` until cancelled. `perform` must not block: it hands over to a bounded outbox."""
    clock = asyncio.get_running_loop().time
    while True:
        event, due = tick, machine.deadline  # A timer is one more event, and one that is due goes first:
        if due is None or clock() < due:  # otherwise a busy inbox would starve it.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    event = await inbox.get()
        else:
            await asyncio.sleep(0)  # A machine that is always due must not starve the loop.
        for effect in machine.step(event, clock()):
            perform(effect)  # Not awaited, so a slow peer cannot stop time.
