"""Inside one model server's process: who asks, whether they are still there, and what has been done for them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CallerGoneError(Exception):
    """Nobody waits for this answer any more."""


class Call:
    """One caller's request: the connection it came on, and whether what went wrong was its own fault."""

    def __init__(self, connection: socket.socket, *, quiet: bool = False) -> None:
        self._connection, self.quiet = connection, quiet  # `quiet`: a probe of ours, not worth a line
        self.clients_fault = False

    def gone(self) -> bool:
        """The caller has closed its connection. A look costs a microsecond."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Counters:
    """What this worker has done since it started. Tokens are written by the generation thread alone."""

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.continues = False  # chunks can name their tokens, and answers begun elsewhere go on here
        self.reading: dict[Call, tuple[int, int]] = {}  # prompt tokens done and to do, of requests being read now
        self._active, self._lock = 0, threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """One more request is here, waiting or running, until the block ends."""
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def as_json(self) -> bytes:
        """WorkerStats, and how far the prompts are that are being read."""
        reading = list(self.reading.copy().values())
        return json.dumps(
            {
                "generated_tokens": self.generated_tokens,
                "prompt_tokens": self.prompt_tokens,
                "active": self._active,
                "alive": True,
                "continues": self.continues,
                "prefill": {"done": sum(done for done, _ in reading), "total": sum(total for _, total in reading)},
            }
        ).encode()
