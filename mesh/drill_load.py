"""The drill's own requests: small ones, streamed and whole in turn, from a few clients in threads of the command."""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mesh.drill import Asked

SILENCE_S = 60.0  # a node says each second that it lives: a stream on which nothing came for so long is lost
TOKENS = 48
PAUSE_S = 0.05  # a client thinks so long before it asks again,
LOST_PAUSE_S = 0.5  # and after a failure: what is refused at once is not worth a thousand tries
LINE_BYTES = 1 << 20
ANSWER_BYTES = 16 << 20


class Load:
    """`begin()` it, `end()` it; `asked` are all requests that are over, `open` those under way. They go to this host
    and port and bear ids that start with `name`. `limit_s` is the edge's own for a whole answer, after which it says so
    itself."""

    def __init__(
        self, host: str, port: int, model: str, name: str, *, clients: int, limit_s: float, tls: bool = False
    ) -> None:
        self._host, self._port, self._model, self._name, self._tls = host, port, model, name, tls
        self._limit_s = limit_s + SILENCE_S
        self._over = threading.Event()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._done: list[Asked] = []
        self._open: dict[int, float] = {}  # the requests under way, and when they began
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"drill client {i}", daemon=True)
            for i in range(clients)
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No new requests; returns when those that are open have ended."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """No new requests; those that are open are left to end with the process."""
        self._over.set()

    @property
    def asked(self) -> list[Asked]:
        with self._lock:
            return list(self._done)

    @property
    def open(self) -> list[float]:
        """When each request that is under way began."""
        with self._lock:
            return list(self._open.values())

    def _work(self, client: int) -> None:
        for turn in itertools.count(client):
            with self._lock:
                number = next(self._numbers)
                self._open[number] = time.monotonic()
            one = self._ask(f"{self._name}-{number}", number, stream=turn % 2 == 0)
            with self._lock:
                self._done.append(one)
                del self._open[number]
            if self._over.wait(LOST_PAUSE_S if one.lost else PAUSE_S):
                return

    def _ask(self, name: str, number: int, *, stream: bool) -> Asked:
        question = f"Count upwards from {number}, in words."
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "temperature": 0,
                "stream": stream,
            }
        )
        silence_s = SILENCE_S if stream else self._limit_s
        connection = http.client.HTTPConnection(self._host, self._port, timeout=silence_s)
        if self._tls:  # It is this machine's own daemon: whose name its certificate carries does not matter.
            anyone = ssl._create_unverified_context()  # noqa: S323, SLF001 - as said above
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=silence_s, context=anyone)
        began, heard = time.monotonic(), Heard()
        try:
            connection.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json", "x-request-id": name}
            )
            answer = connection.getresponse()
            if answer.status != 200 or not stream:
                lost = verdict(answer.status, answer.read(ANSWER_BYTES))
            else:
                lost = streamed(lambda: answer.readline(LINE_BYTES), heard)
        except TimeoutError:
            lost = f"silent for {silence_s:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            lost = f"broken off ({type(error).__name__})"
        finally:
            connection.close()
        ended = time.monotonic()
        return Asked(id=name, began=began, ended=ended, stream=stream, lost=lost, pause_s=round(heard.longest_s, 3))


class Heard:
    """When something was heard of a stream; `longest_s` between two signs of its answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: float | None = None
        self.longest_s = 0.0

    def sign(self) -> None:
        now = self._clock()
        if self._at is not None:
            self.longest_s = max(self.longest_s, now - self._at)
        self._at = now


def streamed(readline: Callable[[], bytes], heard: Heard) -> str:
    """Reads a stream to its end; "" when it was whole, else what was wrong."""
    finished = False
    while (line := readline()).endswith(b"\n"):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return "" if finished else "[DONE] without a finish_reason"
        heard.sign()
        try:
            chunk = json.loads(data)
        except ValueError:
            return "an event that is no JSON"
        if "error" in chunk:
            return _code(chunk)
        finished = finished or any(choice.get("finish_reason") for choice in chunk.get("choices") or ())
    return "the stream ended without [DONE]"


def verdict(status: int, body: bytes) -> str:
    """Of an answer in one piece: "" when it is one, else what was wrong."""
    answer: Any = None
    with suppress(ValueError):
        answer = json.loads(body)
    if not isinstance(answer, dict):
        return f"status {status} without JSON"
    if status != 200 or "error" in answer:
        return f"status {status}, {_code(answer)}"
    choices: list[dict[str, Any]] = answer.get("choices") or []
    return "" if choices and choices[0].get("finish_reason") else "an answer without a finish_reason"


def _code(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("code") or error.get("type") or "an error") if isinstance(error, dict) else "an error"
