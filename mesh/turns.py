"""Steps of one machine, one after another: a step that leads to another must not run inside the first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Turns:
    """`take(step)` runs it at once, or, when called from within a step, right after that one. An exception ends its own
    step only."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False

    def take(self, step: Callable[[], None]) -> None:
        self._waiting.append(step)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._waiting.popleft()()
        finally:
            self._busy = False
            if self._waiting:  # the step raised: those behind it still get their turn
                self.take(self._waiting.popleft())
