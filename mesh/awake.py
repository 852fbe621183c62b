"""Keeps a Mac from idle sleep while it serves: `caffeinate -i` as a child, ended a while after the last request.

Where there is no caffeinate (Linux) nothing is done. That it could not be had never matters to a request.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

LINGER_S = 30.0  # after the last request: agents ask again soon, and each start is a process
AGAIN_S = 60.0  # before another start when one failed or ended by itself
END_S = 2.0


class Child(Protocol):
    """The part of subprocess.Popen that is needed."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


Spawn: TypeAlias = Callable[[Sequence[str]], Child]


def spawn(argv: Sequence[str]) -> Child:
    """Raises OSError."""
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True
    )


class Awake:
    """Tell it again and again whether this node is `busy`; `now` in seconds."""

    def __init__(self, spawn: Spawn = spawn, which: Callable[[str], str | None] = shutil.which) -> None:
        program = which("caffeinate")
        # -w: it ends with this process, however that ends.
        self._argv = (program, "-i", "-w", str(os.getpid())) if program else None
        self._spawn = spawn
        self._child: Child | None = None
        self._until = 0.0
        self._not_before = 0.0
        self._ending = False  # by us

    @property
    def held(self) -> bool:
        return self._child is not None

    def look(self, busy: bool, now: float) -> None:
        """Starts it at once, ends it LINGER_S after the node was last busy. Never raises, never waits."""
        if busy:
            self._until = now + LINGER_S
        if self._child is not None and self._child.poll() is not None:
            self._child, self._not_before = None, 0.0 if self._ending else now + AGAIN_S
            self._ending = False
        if self._child is None and busy and now >= self._not_before:
            self._start(now)
        elif self._child is not None and now >= self._until:
            self._ending = True
            self._child.terminate()  # its end is noticed at the next look

    def _start(self, now: float) -> None:
        if self._argv is None:
            return
        try:
            self._child = self._spawn(self._argv)
        except OSError:
            self._not_before = now + AGAIN_S

    def close(self) -> None:
        """Ends it, waiting a moment for that. Idempotent."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
