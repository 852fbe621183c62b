"""Hostile bytes over sockets at a real daemon with a mesh: both TCP ports, links, datagrams. What is looked for shows
from outside: an exception in its log, an end, no answer, memory. `python -m bench.fuzz.live --seconds N --folder OUT`.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil

from bench.daemon import Daemon, running
from bench.fuzz.corpus import kept
from bench.fuzz.mutate import Mutator
from bench.fuzz.target import Target
from bench.fuzz.targets import TARGETS
from mesh.client import MeshClientError
from mesh.wire import PROTOCOL, Hello, encode
from node.types import NodeId

_LOOK_EVERY = 200  # inputs
_CLOSED_S = 30.0  # for the daemon to end a connection whose client says no more
_SETTLE = 2000  # inputs before its memory is measured first
_MESH = "mesh"  # the name of it in the examples of datagrams and frames
_HEAD = (
    b"GET /mesh/v1/link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)
_HELLO = encode(
    Hello(id=NodeId("id"), boot="boot", name="x", mesh=_MESH, mesh_id="", version="", protocol=PROTOCOL, peer_port=1,
          port=1)
)  # fmt: skip


class Attacker:
    """Who sends; `port` is the edge's, `peer_port` the mesh's."""

    def __init__(self, port: int, peer_port: int, rng: Random) -> None:
        self._port, self._peer_port, self._rng = port, peer_port, rng
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._makers = {name: Mutator(TARGETS[name], rng) for name in ("requests", "bodies", "frames", "datagrams")}
        self._seeds = {name: list(_seeds(TARGETS[name])) for name in self._makers}
        self.late = 0

    def attack(self) -> bytes:
        """One input, of some kind; what was sent."""
        match self._rng.randrange(6):
            case 0 | 1:
                data = self._made("requests")
                self._tell(self._port, data.replace(b"/mesh/v1/", b"/v1/") if self._rng.random() < 0.5 else data)
            case 2:
                body = self._made("bodies")
                path = self._rng.choice((b"chat/completions", b"completions", b"embeddings", b"audio/x"))
                data = b"POST /v1/%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, len(body)) + body
                self._tell(self._port, data)
            case 3:
                data = self._made("requests").replace(b"/v1/chat/completions", b"/mesh/v1/serve/chat/completions")
                self._tell(self._peer_port, data)
            case 4:
                key = base64.b64encode(self._rng.randbytes(16))
                parts = [_HELLO] * (self._rng.random() < 0.9)
                parts += [self._made("frames") for _ in range(self._rng.randrange(1, 6))]
                said = b"".join(map(self._framed, parts))
                data = _HEAD + b"Sec-WebSocket-Key: " + key + b"\r\n\r\n" + said
                self._tell(self._peer_port, data)
            case _:
                data = self._made("datagrams")
                with suppress(OSError):
                    self._udp.sendto(data, ("127.0.0.1", self._peer_port))
        return data

    def _made(self, name: str) -> bytes:
        return self._makers[name].of(self._seeds[name])

    def _framed(self, data: bytes) -> bytes:
        """A masked WebSocket frame, sometimes an odd one."""
        first = 0x82 if self._rng.random() < 0.9 else self._rng.randrange(256)
        size = struct.pack("!BBH", first, 0x80 | 126, len(data) & 0xFFFF)
        return size + bytes(4) + data  # a mask of zeros changes nothing

    def _tell(self, port: int, data: bytes) -> None:
        """One connection, from its first byte to its end."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_CLOSED_S) as client:
                half = self._rng.randrange(len(data) + 1)
                client.sendall(data[:half])
                client.sendall(data[half:])
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        except TimeoutError:
            self.late += 1
        except OSError:
            pass  # it was refused before all was said


def _seeds(target: Target) -> Iterator[bytes]:
    yield from target.seeds()
    yield from kept(target.name)


class Watch:
    """What the daemon shows of itself."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._process = daemon, psutil.Process(daemon.pid)
        self._place = 0
        self.findings: dict[str, dict[str, str]] = {}
        self.rss_start = self.rss = 0

    def look(self, last: bytes) -> bool:
        """False: it is over."""
        for line in self._new_lines():
            with suppress(ValueError):
                said: dict[str, Any] = json.loads(line)
                if "exception" in said:
                    self._add("crash", said["exception"].rpartition("\n")[2], str(said["exception"])[-800:], last)
        try:
            self._daemon.client.status()
            self.rss = self._process.memory_info().rss
        except (MeshClientError, OSError, psutil.Error) as error:
            printed = (self._daemon.home / "printed").read_text(errors="replace")[-500:]
            self._add("hang" if psutil.pid_exists(self._daemon.pid) else "crash", "", f"{error}: {printed}", last)
            return False
        return True

    def _new_lines(self) -> list[bytes]:
        with (self._daemon.home / "logs" / "daemon.log").open("rb") as log:
            log.seek(self._place)
            data = log.read()
        whole = data.rpartition(b"\n")[0]
        self._place += len(whole)
        return whole.splitlines()

    def _add(self, kind: str, where: str, what: str, last: bytes) -> None:
        self.findings.setdefault(where, {"kind": kind, "where": where, "what": what, "data": repr(last[:2000])})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="live")
    parser.add_argument("--guided", action="store_true", help="says nothing here: it is another process that is tried")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-fuzz-") as folder:
        with running(Path(folder), [], mesh_enabled=True, mesh_name=_MESH, node_name="fuzzed") as daemon:
            status = daemon.client.status()
            attacker = Attacker(status.port, status.peer_port, Random(args.seed))
            watch, runs, end = Watch(daemon), 0, time.monotonic() + args.seconds
            last, goes_on = b"", True
            while goes_on and time.monotonic() < end:
                last = attacker.attack()
                runs += 1
                if runs % _LOOK_EVERY == 0:
                    goes_on = watch.look(last)
                    if runs <= _SETTLE:
                        watch.rss_start = watch.rss
            watch.look(last)
            if attacker.late:
                what = f"{attacker.late} connections were not closed within {_CLOSED_S:g} s"
                watch.findings["late"] = {"kind": "hang", "where": "", "what": what, "data": ""}
            row = {
                "runs": runs,
                "corpus": 0,
                "findings": list(watch.findings.values()),
                "rss_start": watch.rss_start,
                "rss_grown": max(0, watch.rss - watch.rss_start),
            }
            (args.folder / "status.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main()
