"""An event loop whose time is simulated: it jumps to the next timer. An hour takes a moment, and every run is alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class _Selector(selectors.SelectSelector):
    """Never waits: there is no outside world. When nothing is ready, time goes on to the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits, and nothing will ever happen")
        if timeout > 0:
            self.loop.jump()
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`after_step` is called after every turn of the loop. Threads are not: what goes to one is done at once."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self._seconds = 0.0
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        super().__init__(selector)

    def time(self) -> float:
        return self._seconds

    def jump(self) -> None:
        self._seconds = max(self._seconds, self._scheduled[0].when())  # type: ignore[attr-defined]  # private: its heap of timers

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # private too: one turn of the loop
        self.steps += 1
        self.after_step()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's, as with a thread
            done.set_exception(error)
        return done
