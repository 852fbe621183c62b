"""Many hostile clients of one kind in one process, each from one of many addresses: what became of their connections.

    python -m bench.hostile.crowd slowloris --server 10.77.0.1:4000 --count 1000 --addresses 40 --seconds 30

Prints one JSON object: how many connections ended how, by what they were told, and how many were open at the end.
"""

from __future__ import annotations

import argparse
import errno
import json
import select
import socket
import time
from collections import Counter
from contextlib import suppress

from msgspec import Struct

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 10.77.0.1\r\nContent-Type: application/json\r\n"
ONCE = HEAD + b"Content-Length: 2\r\n\r\n{}"  # refused with 400, and the connection stays
DRIP_S = 1.0
TICK_S = 0.05
STREAM = {"model": "fake", "stream": True, "max_tokens": 100_000, "user": "pace=1000000,text=16000"}


class Kind(Struct, frozen=True):
    """What each of them sends at first, then a byte at a time for ever; whether it reads what comes, and whether
    another one comes for each that is closed."""

    first: bytes
    drip: bytes = b""
    reads: bool = True
    again: bool = False
    receives_bytes: int = 0  # of the system's buffer; 0: as it likes


def kinds() -> dict[str, list[Kind]]:
    """By name; the members of a crowd take turns."""
    body = json.dumps(STREAM | {"messages": [{"role": "user", "content": "hi"}]}).encode()
    stream = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return {
        "idle": [Kind(b""), Kind(ONCE)],
        "slowloris": [Kind(HEAD[:20], b"X-A: b\r\n", again=True)],
        "readers": [Kind(stream, reads=False, receives_bytes=4096)],
        "senders": [Kind(HEAD + b"Content-Length: 1000000\r\n\r\n{", b" ", again=True)],
    }


class Client:
    __slots__ = ("kind", "said", "sent", "sock", "waiting")

    def __init__(self, kind: Kind, sock: socket.socket) -> None:
        self.kind, self.sock = kind, sock
        self.waiting = kind.first
        self.sent = 0  # bytes of the drip
        self.said = b""


class Crowd:
    """`count` connections over `ramp_s`, kept until `run` ends."""

    def __init__(self, kinds: list[Kind], server: tuple[str, int], addresses: list[str], count: int) -> None:
        self._kinds, self._server, self._addresses, self._count = kinds, server, addresses, count
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._number = 0
        self.ends: Counter[str] = Counter()
        self.begun = self.peak = 0

    def run(self, seconds: float, ramp_s: float) -> None:
        began = time.monotonic()
        drip_at = began
        while (now := time.monotonic()) < began + seconds:
            target = min(self._count, int(self._count * (now - began) / ramp_s) + 1)
            again = len(self._clients) if any(k.again for k in self._kinds) else self.begun
            for _ in range(min(200, target - again)):
                self._open()
            if now >= drip_at:
                drip_at += DRIP_S
                for client in list(self._clients.values()):
                    self._drip(client)
            for fd, events in self._poll.poll(TICK_S, 1024):
                if (found := self._clients.get(fd)) is not None:
                    self._news(found, events)
            self.peak = max(self.peak, len(self._clients))

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._end(client, "open at the end")

    def _open(self) -> None:
        number, self._number = self._number, self._number + 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        kind = self._kinds[number % len(self._kinds)]
        if kind.receives_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kind.receives_bytes)
        with suppress(BlockingIOError):
            try:
                sock.bind((self._addresses[number % len(self._addresses)], 0))
                sock.connect(self._server)
            except OSError as error:
                if error.errno != errno.EINPROGRESS:
                    self.ends[f"not connected: {error.strerror}"] += 1
                    sock.close()
                    return
        self.begun += 1
        self._clients[sock.fileno()] = Client(kind, sock)
        self._poll.register(sock, select.EPOLLOUT | select.EPOLLIN)

    def _news(self, client: Client, events: int) -> None:
        broken = events & (select.EPOLLERR | select.EPOLLHUP)
        if broken or (events & select.EPOLLOUT and not self._send(client)):
            self._end(client, "")
        elif events & select.EPOLLIN and client.kind.reads:
            try:
                data = client.sock.recv(65536)
            except OSError:
                data = b""
            client.said += data[: 200 - len(client.said)]
            if not data:
                self._end(client, "")

    def _send(self, client: Client) -> bool:
        try:
            client.waiting = client.waiting[client.sock.send(client.waiting) :] if client.waiting else b""
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not client.waiting:
            with suppress(OSError):
                self._poll.modify(client.sock, select.EPOLLIN if client.kind.reads else 0)
        return True

    def _drip(self, client: Client) -> None:
        drip = client.kind.drip
        if drip and not client.waiting:
            try:
                client.sock.send(drip[client.sent % len(drip) :][:1])
                client.sent += 1
            except BlockingIOError:
                pass
            except OSError:
                self._end(client, "")

    def _end(self, client: Client, how: str) -> None:
        with suppress(OSError):
            client.said += client.sock.recv(200)
        status = client.said.rpartition(b"HTTP/1.1 ")[2][:3].decode() if client.said else "nothing"
        self.ends[how or f"closed, told {status}"] += 1
        del self._clients[client.sock.fileno()]
        client.sock.close()


def addresses_of(net: str, number: int) -> list[str]:
    """`net` "10.77" or "127.0": further addresses of it."""
    return [f"{net}.{1 + n // 200}.{1 + n % 200}" for n in range(number)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.hostile.crowd", description=__doc__)
    parser.add_argument("kind", choices=kinds())
    parser.add_argument("--server", required=True)
    parser.add_argument("--net", default="10.77")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--addresses", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--ramp-s", type=float, default=5.0)
    options = parser.parse_args()
    host, _, port = options.server.rpartition(":")
    crowd = Crowd(kinds()[options.kind], (host, int(port)), addresses_of(options.net, options.addresses), options.count)
    crowd.run(options.seconds, options.ramp_s)
    crowd.close()
    print(json.dumps({"begun": crowd.begun, "peak": crowd.peak, "ends": crowd.ends}))


if __name__ == "__main__":
    main()
