"""A small OpenAI server that says one text word by word, and may break off: for engines that are not ours."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TEXT = " ".join(f"word-{n}" for n in range(40))


class Reciter:
    """`stops_after` so many words the next stream breaks off, once; None: never. `changes`: it says other words each
    time. Chunks of each stream are cut in other places than those of the one before."""

    def __init__(self) -> None:
        self.text, self.stops_after, self.changes = TEXT, None, False
        self.streams = 0
        self._lock = threading.Lock()
        reciter = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                body = b'{"object":"list","data":[{"id":"reciter","object":"model"}]}'
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reciter._recite(self, probe=asked.get("max_tokens") == 1)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Reciter:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _recite(self, handler: BaseHTTPRequestHandler, *, probe: bool) -> None:
        with self._lock:
            number, stops = self.streams, None
            if not probe:
                self.streams += 1
                stops, self.stops_after = self.stops_after, None
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        text = self.text + (f" {number}" if self.changes else "")
        if self.changes:
            text = f"{number} {text}"
        size = 7 + number % 3
        for at in range(0, len(text), size):
            if stops is not None and at >= stops * size:
                return
            self._say(handler, number, {"content": text[at : at + size]}, None)
            if probe:
                break
        self._say(handler, number, {}, "stop")
        handler.wfile.write(b"data: [DONE]\n\n")

    def _say(self, handler: BaseHTTPRequestHandler, number: int, delta: dict[str, str], finish: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        body = {
            "id": f"r-{id(self)}-{number}",
            "object": "chat.completion.chunk",
            "created": number,
            "model": "reciter",
        }
        handler.wfile.write(b"data: " + json.dumps(body | {"choices": [choice]}).encode() + b"\n\n")
