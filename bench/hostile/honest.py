"""One honest client: asks at a steady rate, every second time on a new connection; how long each answer took.

    python -m bench.hostile.honest --server 10.77.0.1:4000 --address 10.77.9.9 --rate 25 --out FILE

Writes a line for each request, "monotonic seconds when it was due, seconds it took, 1 if it was right", until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path
from typing import TextIO

LIMIT_S = 20.0
ASK = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 10.77.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(ASK)
) + ASK


class Honest:
    """Asks in an open loop: a slow answer holds no other request up."""

    def __init__(self, server: tuple[str, int], address: str, out: TextIO) -> None:
        self._server, self._address, self._out = server, address, out
        self._kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, due: float, *, fresh: bool) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(LIMIT_S):
                good = await self._ask(fresh=fresh)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            good = False
        self._out.write(f"{due:.4f} {clock() - due:.5f} {int(good)}\n")
        self._out.flush()

    async def _ask(self, *, fresh: bool) -> bool:
        self._kept = [kept for kept in self._kept if not kept[0].at_eof()]  # closed after a long rest
        line = self._kept.pop(0) if self._kept and not fresh else await self._connect()
        reader, writer = line
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if fresh:
            writer.close()
        else:
            self._kept.append(line)
        return head.startswith(b"http/1.1 200 ") and b'"choices"' in body

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._server
        return await asyncio.open_connection(host, port, local_addr=(self._address, 0))

    async def run(self, rate: float) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        due, number = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                await asyncio.sleep(due - loop.time())
                group.create_task(self.ask(due, fresh=number % 2 == 1))
                due, number = due + 1 / rate, number + 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.hostile.honest", description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--rate", type=float, default=25.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    host, _, port = options.server.rpartition(":")
    with options.out.open("w", encoding="ascii") as out:
        asyncio.run(Honest((host, int(port)), options.address, out).run(options.rate))


if __name__ == "__main__":
    main()
