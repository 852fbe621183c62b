"""The drill's own requests against a server that answers what a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mesh.drill_load import Heard, Load, streamed, verdict

CHUNK = {"choices": [{"delta": {"content": "x"}, "finish_reason": None}]}
LAST = {"choices": [{"delta": {}, "finish_reason": "length"}]}
ENVELOPE = {"error": {"message": "no", "type": "server_error", "code": "stream_lost"}}


def wait_until(holds: Callable[[], object], limit_s: float = 60.0) -> None:
    """Polls; an AssertionError at the limit."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n" for e in events)


def read(data: bytes) -> str:
    lines = iter(data.splitlines(keepends=True))
    return streamed(lambda: next(lines, b""), Heard())


@pytest.mark.parametrize(
    ("data", "lost"),
    [
        (b": working\n\n" + sse(CHUNK, LAST, b"[DONE]"), ""),
        (sse(CHUNK, LAST, {"choices": [], "usage": {}}, b"[DONE]"), ""),
        (sse(CHUNK, LAST), "the stream ended without [DONE]"),
        (b"", "the stream ended without [DONE]"),
        (sse(CHUNK, LAST)[:-7], "the stream ended without [DONE]"),
        (sse(CHUNK, b"[DONE]"), "[DONE] without a finish_reason"),
        (sse(CHUNK, ENVELOPE), "stream_lost"),
        (sse(b"{half"), "an event that is no JSON"),
    ],
)
def test_only_a_whole_stream_counts(data: bytes, lost: str) -> None:
    assert read(data) == lost


@pytest.mark.parametrize(
    ("status", "body", "lost"),
    [
        (200, {"choices": [{"message": {}, "finish_reason": "stop"}]}, ""),
        (200, {"choices": [{"message": {}}]}, "an answer without a finish_reason"),
        (200, {"choices": []}, "an answer without a finish_reason"),
        (503, ENVELOPE, "status 503, stream_lost"),
        (500, {"error": "what"}, "status 500, an error"),
    ],
)
def test_only_a_whole_answer_counts(status: int, body: Any, lost: str) -> None:
    assert verdict(status, json.dumps(body).encode()) == lost


def test_an_answer_that_is_no_json_is_none() -> None:
    assert verdict(502, b"<html>") == "status 502 without JSON"
    assert verdict(200, b"[]") == "status 200 without JSON"


def test_the_longest_pause_is_between_two_signs_of_the_answer() -> None:
    times = iter([1.0, 1.5, 4.0, 4.1])
    heard = Heard(lambda: next(times))
    for _ in range(4):
        heard.sign()
    assert heard.longest_s == 2.5


class Engine(ThreadingHTTPServer):
    """Answers every request well; `broken` ones are cut off in the middle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.broken = False


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.headers["x-request-id"], body))
        whole = json.dumps({"choices": [{"finish_reason": "stop"}]}).encode()
        data = sse(CHUNK, LAST, b"[DONE]") if body["stream"] else whole
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:5] if self.server.broken else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    server = Engine()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_clients_ask_streamed_and_whole_in_turn_until_they_are_told_to_end(engine: Engine) -> None:
    load = Load("127.0.0.1", engine.server_address[1], "smol", "drill-1", clients=3, limit_s=60.0)
    load.begin()
    wait_until(lambda: len(load.asked) >= 9)
    load.end()
    asked = load.asked
    assert len(asked) == len(engine.asked)
    assert {a.lost for a in asked} == {""}
    assert {a.stream for a in asked} == {True, False}
    assert len({a.id for a in asked}) == len(asked)
    assert {name for name, _ in engine.asked} == {a.id for a in asked}
    assert {body["model"] for _, body in engine.asked} == {"smol"}
    assert all(a.began <= a.ended for a in asked)


def test_an_answer_that_breaks_off_or_does_not_come_is_lost(engine: Engine) -> None:
    engine.broken = True
    load = Load("127.0.0.1", engine.server_address[1], "smol", "d", clients=2, limit_s=60.0)
    load.begin()
    wait_until(lambda: len(load.asked) >= 4)
    load.end()
    assert {(a.stream, a.lost) for a in load.asked} == {
        (True, "the stream ended without [DONE]"),
        (False, "status 200 without JSON"),
    }
    engine.server_close()
    nobody = Load("127.0.0.1", engine.server_address[1], "smol", "d", clients=1, limit_s=60.0)
    nobody.begin()
    wait_until(lambda: nobody.asked)
    nobody.end()
    assert nobody.asked[0].lost.startswith("broken off (Connection")
