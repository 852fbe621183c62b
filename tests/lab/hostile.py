"""A machine that does a mesh no good, run as a program inside a namespace: its arguments are the node to attack, by
address, and for how many seconds. Prints `over`, and a JSON line of what it did."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from mesh.wire import FRAME_BYTES_MAX

PORT, EDGE = 4001, 4000
ME = "e" * 16
rng = random.Random(4)
did: Counter[str] = Counter()
pack = msgspec.msgpack.encode
NESTED = b"\x82\xa1v\x01\xa5frame\x82\xa4type\xa3bye\xa1q" + b"\x91" * 100_000


def frame(kind: str, v: int = 1, **fields: Any) -> bytes:
    return pack({"v": v, "frame": {"type": kind, **fields}})


def hello(**other: Any) -> bytes:
    fields: dict[str, Any] = {"id": ME, "boot": "b1", "name": "mallory", "mesh": "default", "mesh_id": "",
                              "version": "0.1", "protocol": 1, "peer_port": PORT, "port": EDGE}  # fmt: skip
    return frame("hello", **{**fields, **other})


def beat(**other: Any) -> dict[str, Any]:
    rank = {"near": True, "priority": 100, "uptime_steps": 1, "id": ME, "boot": "b1"}
    said: dict[str, Any] = {"kind": "hb", "sender": ME, "boot": "b1", "seq": rng.getrandbits(30), "mesh": "default",
                            "rank": rank, "reign": {"term": 0, "rank": None}, "coordinator": None, "role": "F",
                            "uptime_s": 12.0}  # fmt: skip
    return {**said, **other}


def datagram() -> bytes:
    junk = rng.randbytes(rng.choice((0, 1, 3, 4, 5, 200, 1200, 1201, 1400)))
    wrong: dict[str, Any] = rng.choice(
        [
            {"kind": "vote"},
            {"mesh": "another"},
            {"uptime_s": float("nan")},
            {"age_s": float("-inf")},
            {"reign": {"term": 2**60, "rank": None}, "role": "L", "coordinator": ME},
            {"sender": "x" * 40},
            {"seq": "one"},
            {"sender": "1" * 16},
            {"kind": "bye", "sender": "2" * 16},
        ]
    )
    return rng.choice(
        [
            junk,
            b"MXM\x01" + junk[:1190],
            b"MXM\x02" + junk[:1190],
            b"MXM\x01" + b"\x91" * 1100,
            b"MXM\x01" + b"\x81\xa1x" * 350,
            b"MXM\x01" + pack(beat(**wrong)),
        ]
    )


async def datagrams(host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(200):
            with suppress(OSError):
                sock.sendto(datagram(), (host, PORT))
            did["datagrams"] += 1
    await asyncio.sleep(0.1)


async def silence(host: str) -> None:
    """Connections on which nobody says anything, or never to the end."""
    opened = []
    for port in (PORT, EDGE):
        for says in (b"", b"GET / HTTP/1.1\r\nX: ", rng.randbytes(400), b"\x16\x03\x01\x02\x00\x01"):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(says)
                opened.append((reader, writer))
                did["silent connections"] += 1
    await asyncio.sleep(1.0)
    for _, writer in opened[::2]:  # the others stay open until this program ends
        writer.close()


async def link(host: str, session: aiohttp.ClientSession, *frames: bytes | str, stay_s: float = 0.2) -> None:
    """One link that says these frames, and then nothing."""
    url = f"http://{host}:{PORT}/mesh/v1/link"
    with suppress(aiohttp.ClientError, OSError, TimeoutError, RuntimeError):
        async with asyncio.timeout(10), session.ws_connect(url, compress=15, max_msg_size=0) as ws:
            assert ws.compress == 0, "compression would let a few bytes become gigabytes"
            for one in frames:
                await (ws.send_str(one) if isinstance(one, str) else ws.send_bytes(one))
                did["frames"] += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(stay_s):
                    while (await ws.receive()).type is aiohttp.WSMsgType.BINARY:
                        did["frames heard"] += 1
    did["links"] += 1


def gossip(count: int) -> bytes:
    peers = [
        {"id": f"{rng.getrandbits(64):016x}", "name": f"ghost{n}", "addresses": [f"10.77.{n % 256}.{n // 256}"]}
        for n in range(count)
    ]
    return frame("gossip", peers=peers)


def stories(victim: str) -> list[list[bytes | str]]:
    """What links say, one list each."""
    done = {"id": "req-1", "attempt": 1, "outcome": "ok"}
    granted: dict[str, Any] = {"id": "req-1", "attempt": 1, "node": ME, "model": "x", "decision":
               {"request": {}, "chosen": ME, "waited_ms": 0.0, "candidates": []}}  # fmt: skip
    state = {"id": victim, "boot": "b1", "name": "not me", "version": "", "protocol": 1, "priority": 9, "uptime_s": 1.0}
    return [
        [],
        ["a text"],
        [rng.randbytes(100)],
        [NESTED],
        [b"x" * (FRAME_BYTES_MAX + 1)],
        [frame("state", report=state)],
        [hello(id="x" * 10_000)],
        [hello(name="n" * 3_000_000)],
        [hello(mesh="another")],
        [hello(protocol=2)],
        [frame("hello", v=7, news=1)],
        [hello(peer_port=0)],
        [hello(), hello(), hello(id="d" * 16)],
        [hello(), rng.randbytes(50), rng.randbytes(50), rng.randbytes(50)],
        [hello(), "one", "two", "three"],
        [hello(), NESTED, frame("state", report=state), frame("state", report={**state, "id": ME, "models": [1]})],
        [hello(), *[frame("vote", of=n) for n in range(500)]],
        [hello(), *[frame("ping", n=n) for n in range(2000)]],
        [hello(), gossip(10_000)],
        [hello(), frame("account", account={"queue_depth": 10**6, "nodes": {}})],
        [hello(), frame("done", **done), frame("grant", **granted), frame("cancel", id="req-1", attempt=1)],
        [hello(), b"x" * (FRAME_BYTES_MAX + 1)],
        [hello(), frame("bye", reason="duplicate")],
        [hello(), frame("bye", reason="r" * 900)],
    ]


async def links(host: str, session: aiohttp.ClientSession, victim: str) -> None:
    for story in stories(victim):
        await link(host, session, *story)


async def again(what: Callable[[], Awaitable[None]], until: float) -> None:
    while time.monotonic() < until:
        await what()


async def main() -> None:
    host, seconds, victim = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        group.create_task(again(lambda: datagrams(host), until))
        group.create_task(again(lambda: silence(host), until))
        for _ in range(2):
            group.create_task(again(lambda: links(host, session, victim), until))
    print(json.dumps(did))
    print("over", flush=True)


asyncio.run(main())
